"""Length-prefixed messages on a byte channel."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.errors import RemoteProtocolError
from bridge.protocol.frames import FrameReader, encode


@given(st.lists(st.binary(max_size=50), max_size=10), st.integers(1, 17))
def test_bodies_come_back_whole_however_they_were_cut(bodies: list[bytes], size: int) -> None:
    text = b"".join(encode(body) for body in bodies)
    reader, got = FrameReader(50), []
    for start in range(0, len(text), size):
        got += reader.feed(text[start : start + size])
    assert got == bodies
    assert reader.held_bytes == 0


def test_a_body_past_the_limit_is_refused_before_it_comes() -> None:
    reader = FrameReader(10)
    assert reader.feed(encode(b"x" * 10)) == [b"x" * 10]
    with pytest.raises(RemoteProtocolError, match="a frame of 11 bytes came, 10 are allowed"):
        reader.feed(b"\x00\x00\x00\x0b")


def test_what_is_not_whole_is_held() -> None:
    reader = FrameReader(10)
    assert reader.feed(memoryview(encode(b"abc"))[:6]) == []
    assert reader.held_bytes == 6

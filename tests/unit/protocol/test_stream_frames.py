"""The stream's frames, whole and in pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.errors import RemoteProtocolError
from bridge.protocol.stream_frames import HEADER, MAX_BODY, Kind, Reader, encode, u64


def feed(reader: Reader, data: bytes) -> list[tuple[Kind, bytes]]:
    return [(kind, bytes(body)) for kind, body in reader.feed(memoryview(data))]


@given(
    st.lists(st.one_of(st.just(encode(Kind.PING)), st.just(encode(Kind.ACK, u64(7))), st.binary(min_size=1, max_size=40)), max_size=12),
    st.lists(st.integers(1, 30), min_size=1),
)
def test_any_cut_into_pieces_gives_the_same_frames(parts: list[bytes], sizes: list[int]) -> None:
    special = (encode(Kind.PING), encode(Kind.ACK, u64(7)))
    frames = [part if part in special else HEADER.pack(Kind.DATA, len(part)) + part for part in parts]
    text, reader, got = b"".join(frames), Reader(), []
    position = step = 0
    while position < len(text):
        size = sizes[step % len(sizes)]
        got += feed(reader, text[position : position + size])
        position, step = position + size, step + 1
    assert _joined(got) == _joined(feed(Reader(), text))


def _joined(frames: list[tuple[Kind, bytes]]) -> list[tuple[Kind, bytes]]:
    """Neighbouring DATA become one: where they were cut carries no meaning."""
    joined: list[tuple[Kind, bytes]] = []
    for kind, body in frames:
        if joined and kind is Kind.DATA and joined[-1][0] is Kind.DATA:
            joined[-1] = (kind, joined[-1][1] + body)
        else:
            joined.append((kind, body))
    return joined


def test_data_is_passed_on_as_views_before_its_frame_is_whole() -> None:
    buffer = bytearray(HEADER.pack(Kind.DATA, MAX_BODY) + b"abc")
    ((kind, body),) = Reader().feed(memoryview(buffer))
    buffer[-1:] = b"!"
    assert (kind, bytes(body)) == (Kind.DATA, b"ab!")


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (HEADER.pack(99, 0), "unknown type 99"),
        (HEADER.pack(0, 0), "unknown type 0"),
        (HEADER.pack(Kind.DATA, MAX_BODY + 1), "DATA frame of 1048577 bytes"),
        (HEADER.pack(Kind.DATA, 0), "DATA frame of 0 bytes"),
        (HEADER.pack(Kind.OPEN, 15), "OPEN frame of 15 bytes"),
        (HEADER.pack(Kind.REFUSED, 201), "REFUSED frame of 201 bytes"),
        (HEADER.pack(Kind.PING, 1), "PING frame of 1 bytes"),
        (HEADER.pack(Kind.ACK, 0xFFFFFFFF), "ACK frame of 4294967295 bytes"),
    ],
)
@pytest.mark.parametrize("in_pieces", [False, True])
def test_a_frame_out_of_bounds_is_refused_at_its_header(header: bytes, words: str, in_pieces: bool) -> None:
    reader = Reader()
    if in_pieces:
        assert feed(reader, header[:2]) == feed(reader, header[2:4]) == []
    with pytest.raises(RemoteProtocolError, match=words):
        feed(reader, header[4:] if in_pieces else header)

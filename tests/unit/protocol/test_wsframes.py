"""WebSocket frames as a server sends them, however they are cut."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.errors import RemoteProtocolError
from bridge.protocol.wsframes import Decoder, close, header, pong


def frame(payload: bytes, opcode: int = 2, final: bool = True) -> bytes:
    """A server's: not masked."""
    first = bytes(((0x80 if final else 0) | opcode,))
    size = len(payload)
    if size < 126:
        return first + bytes((size,)) + payload
    return first + (struct.pack("!BH", 126, size) if size < 1 << 16 else struct.pack("!BQ", 127, size)) + payload


def messages(pieces: list[tuple[str, bytes, bool]]) -> list[tuple[str, bytes]]:
    """Pieces put together again."""
    whole: list[tuple[str, bytes]] = []
    under_way = -1
    for kind, body, start in pieces:
        if kind != "data":
            whole.append((kind, body))
        elif start:
            whole.append((kind, body))
            under_way = len(whole) - 1
        else:
            whole[under_way] = (kind, whole[under_way][1] + body)
    return whole


def fed(decoder: Decoder, data: bytes) -> list[tuple[str, bytes, bool]]:
    return [(piece.kind, bytes(piece.body), piece.start) for piece in decoder.feed(data)]


@given(st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=6), st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_messages_come_back_whole_wherever_the_stream_is_cut(payloads: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(map(frame, payloads))
    decoder, pieces, number = Decoder(), list[tuple[str, bytes, bool]](), 0
    while stream:
        size = cuts[number % len(cuts)]
        pieces += fed(decoder, stream[:size])
        stream, number = stream[size:], number + 1
    assert messages(pieces) == [("data", payload) for payload in payloads]


def test_a_message_in_several_frames_starts_once_and_a_ping_may_stand_between() -> None:
    stream = frame(b"ab", final=False) + frame(b"?", opcode=9) + frame(b"cd", opcode=0)
    assert fed(Decoder(), stream) == [("data", b"ab", True), ("ping", b"?", True), ("data", b"cd", False)]


def test_a_first_frame_without_payload_leaves_the_start_to_the_next() -> None:
    assert fed(Decoder(), frame(b"", final=False) + frame(b"x", opcode=0)) == [("data", b"x", True)]


@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536])
def test_our_headers_say_the_size_and_a_mask_that_changes_nothing(size: int) -> None:
    made = header(size)
    assert made[0] == 0x82
    assert made[1] & 0x80, "a client's frame is masked"
    assert made[-4:] == bytes(4)
    assert fed(Decoder(), bytes((made[0], made[1] & 0x7F)) + made[2:-4] + bytes(size)) == ([("data", bytes(size), True)] if size else [])


def test_pong_and_close_are_whole_frames() -> None:
    assert pong(b"hi") == b"\x8a\x82" + bytes(4) + b"hi"
    assert close() == b"\x88\x82" + bytes(4) + b"\x03\xe8"


@pytest.mark.parametrize("bad", [b"\x82\x81", b"\xc2\x01", b"\x89\x7e", b"\x09\x01", b"\x80\x01", b"\x83\x01"])
def test_what_no_server_may_send_is_refused(bad: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        Decoder().feed(bad + bytes(8))


@given(st.binary(max_size=400))
def test_any_bytes_are_frames_or_a_remote_protocol_error(data: bytes) -> None:
    decoder = Decoder()
    try:
        for at in range(0, len(data), 7):
            decoder.feed(data[at : at + 7])
    except RemoteProtocolError:
        pass

"""What engines, API servers and agents send, cut as the network likes: bytes come out as they were meant, or the declared error does.

The parsers here sit between a socket and the app's bytes, so two things are asked of each: the cuts make no difference, and what is
held of a far end that never finishes is bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from types import SimpleNamespace
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from bridge.adapters.docker.wire import Hijacked, _body, _header
from bridge.adapters.kube.pump import Pump
from bridge.errors import EngineUnavailable, RemoteProtocolError
from bridge.protocol import control, packets, udp, wsframes
from bridge.protocol.channels import Channels

MANY = settings(max_examples=500, deadline=None)
CUTS = st.lists(st.integers(1, 40), max_size=30)


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces, at = [], 0
    for size in sizes:
        pieces.append(data[at : at + size])
        at += size
    return [*pieces, data[at:]]


# --- WebSocket, and Kubernetes' channels in it -----------------------------------------------------------------------------


def frame(opcode: int, payload: bytes, final: bool = True) -> bytes:
    first = bytes((opcode | 0x80 * final,))
    if len(payload) < 126:
        return first + bytes((len(payload),)) + payload
    return first + struct.pack("!BH", 126, len(payload)) + payload


@st.composite
def messages(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """A server's frames on the wire, and the messages that they carry: in parts, with pings between the parts."""
    wire, carried = b"", []
    for _ in range(draw(st.integers(0, 5))):
        parts = draw(st.lists(st.binary(max_size=200), min_size=1, max_size=4))
        for number, part in enumerate(parts):
            if draw(st.booleans()):
                wire += frame(0x9, draw(st.binary(max_size=125)))
            wire += frame(0x2 if number == 0 else 0x0, part, final=number + 1 == len(parts))
        carried.append(b"".join(parts))
    return wire, carried


@MANY
@given(messages(), CUTS)
def test_messages_are_those_that_were_sent_however_they_are_cut(sent: tuple[bytes, list[bytes]], cuts: list[int]) -> None:
    decoder, got = wsframes.Decoder(), list[bytes]()
    for piece in cut(sent[0], cuts):
        for found in decoder.feed(piece):
            if found.kind == "data":
                if found.start:
                    got.append(b"")
                got[-1] += found.body
    assert got == [message for message in sent[1] if message]


@MANY
@given(messages(), st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), max_size=4), st.binary(max_size=60), CUTS)
def test_damaged_frames_end_in_the_declared_error_and_nothing_is_hoarded(
    sent: tuple[bytes, list[bytes]], damage: list[tuple[int, int]], noise: bytes, cuts: list[int]
) -> None:
    wire = bytearray(sent[0] + noise)
    for place, value in damage:
        if wire:
            wire[place % len(wire)] = value
    decoder, handed_on = wsframes.Decoder(), 0
    with contextlib.suppress(RemoteProtocolError):
        for piece in cut(bytes(wire), cuts):
            handed_on += sum(len(found.body) for found in decoder.feed(piece))
            assert len(decoder._held) < 2 + 125
    assert handed_on <= len(wire)


class _Connection:
    """Of an upgraded answer, as far as the pump uses it."""

    def __init__(self) -> None:
        self.protocol = SimpleNamespace(set_parser=lambda parser, payload: None, connection_lost=lambda exc: None)
        self.transport = self
        self.written = b""

    def set_protocol(self, protocol: Any) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def write(self, data: bytes) -> None:
        self.written += data


channelled = st.lists(st.tuples(st.sampled_from([0, 1, 2, 3, 255]), st.binary(max_size=60)), max_size=12)


@MANY
@given(channelled, st.sampled_from([(0, frozenset({1}), 2), (1, frozenset({2, 3}), 0)]), CUTS, st.binary(max_size=20))
@example([(2, b"x" * 60)] * 50, (1, frozenset({2, 3}), 0), [], b"")
def test_channels_are_told_apart_and_only_the_data_reaches_the_carrier(
    sent: list[tuple[int, bytes]], shape: tuple[int, frozenset[int], int], cuts: list[int], noise: bytes
) -> None:
    channel_out, errors, skip = shape
    wire = b"".join(frame(0x2, bytes((channel,)) + data) for channel, data in sent)
    expected = b"".join(data for channel, data in sent if channel == channel_out)[skip:]

    async def play() -> None:
        near, far = socket.socketpair()
        for end in (near, far):
            end.setblocking(False)
        connection = _Connection()
        answer: Any = SimpleNamespace(connection=connection, close=lambda: None)
        with near:
            pump = Pump(answer, far, Channels(channel_out, errors, skip))
            for piece in cut(wire, cuts):
                pump.data_received(piece)
            pump.data_received(noise)
            pump.stop()
            got = b""
            with contextlib.suppress(BlockingIOError):
                while data := near.recv(1 << 16):
                    got += data
        assert got[: len(expected)] == expected
        assert len(pump.why) <= 2000
        assert connection.written.endswith(wsframes.close())

    asyncio.run(play())


# --- an engine's HTTP and its multiplexed stdio ----------------------------------------------------------------------------


class _Discard:
    def close(self) -> None: ...


def streamed(data: bytes, cuts: list[int]) -> asyncio.StreamReader:
    """What an engine sends piece by piece and then ends, for the current loop."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 20)
    pieces = iter(cut(data, cuts))

    def feed() -> None:
        piece = next(pieces, None)
        if piece is None:
            reader.feed_eof()
        else:
            reader.feed_data(piece)
            loop.call_soon(feed)

    feed()
    return reader


@MANY
@given(st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=300)), max_size=10), st.integers(0, 3000), CUTS)
def test_stdio_of_a_container_is_told_apart_and_ends_where_the_engine_breaks_off(
    sent: list[tuple[int, bytes]], kept: int, cuts: list[int]
) -> None:
    wire = b"".join(struct.pack(">BxxxI", kind, len(data)) + data for kind, data in sent)

    async def play(data: bytes) -> dict[int, bytes]:
        got = {1: b"", 2: b""}
        async for kind, chunk in Hijacked(streamed(data, cuts), _Discard()).chunks():  # type: ignore[arg-type]  # closes nothing
            got[kind] += chunk
        return got

    whole = {kind: b"".join(data for one, data in sent if one == kind) for kind in (1, 2)}
    assert asyncio.run(play(wire)) == whole
    part = asyncio.run(play(wire[:kept]))
    assert all(whole[kind].startswith(part[kind]) for kind in (1, 2))


@MANY
@given(st.binary(max_size=200), CUTS)
@example(b"\x01\x00\x00\x00\xff\xff\xff\xffx", [])
def test_noise_for_stdio_hands_on_no_more_than_came(data: bytes, cuts: list[int]) -> None:
    async def play() -> int:
        return sum([len(chunk) async for _, chunk in Hijacked(streamed(data, cuts), _Discard()).chunks()])  # type: ignore[arg-type]  # closes nothing

    assert asyncio.run(play()) <= len(data)


LINES = st.sampled_from(
    [
        b"HTTP/1.1 200 OK",
        b"HTTP/1.0 404 x",
        b"HTTP/1.1",
        b"Transfer-Encoding: chunked",
        b"Content-Length: 5",
        b"Content-Length: -1",
        b":",
        b"",
    ]
)
CHUNKS = st.lists(
    st.one_of(st.sampled_from([b"5\r\nhello\r\n", b"0\r\n\r\n", b"-3\r\n", b"ffffffffffff\r\n"]), st.binary(max_size=20)), max_size=6
)


@MANY
@given(st.lists(st.one_of(LINES, st.binary(max_size=30)), max_size=6), CHUNKS, CUTS)
def test_an_engines_answer_is_read_or_a_named_error(head: list[bytes], body: list[bytes], cuts: list[int]) -> None:
    data = b"\r\n".join([*head, b"", b""]) + b"".join(body)

    async def play() -> None:
        reader = streamed(data, cuts)
        with contextlib.suppress(RemoteProtocolError, EngineUnavailable):
            status, header = await _header(reader)
            assert sum([len(chunk) async for chunk in _body(reader, header, status)]) <= len(data)

    asyncio.run(play())


@MANY
@given(st.lists(st.binary(min_size=1, max_size=200), max_size=6), CUTS)
def test_chunks_come_whole_however_they_are_cut(chunks: list[bytes], cuts: list[int]) -> None:
    wire = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"

    async def play() -> bytes:
        return b"".join([chunk async for chunk in _body(streamed(wire, cuts), {"transfer-encoding": "chunked"}, 200)])

    assert asyncio.run(play()) == b"".join(chunks)


# --- the link's messages ---------------------------------------------------------------------------------------------------

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.sampled_from(["AAAA", "", "\ud800", 10**400]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
FACTS = {"hostname": "orders-1", "addresses": ["10.0.3.7/24"], "resolv_conf": "", "hosts": "", "ping": True, "warnings": []}
RIGHT: dict[str, dict[str, Any]] = {
    "hello": {"version": [1, 0], "release": "1", "capabilities": ["dns"]},
    "facts": {"facts": FACTS},
    "ask": {"id": 1, "nameserver": "10.0.0.10", "query": "AAAA", "tcp": False},
    "answer": {"id": 1, "answer": "AAAA", "error": None},
}
FIELDS = st.sampled_from(sorted({name for fields in (*RIGHT.values(), FACTS) for name in fields}))


@MANY
@given(st.sampled_from(sorted(RIGHT)), st.dictionaries(FIELDS, values, max_size=3), st.booleans())
def test_a_control_message_is_one_that_can_be_said_again_or_the_declared_error(kind: str, wrong: dict[str, Any], inside: bool) -> None:
    said = {**RIGHT[kind], "facts": {**FACTS, **wrong}} if inside and kind == "facts" else {**RIGHT[kind], **wrong}
    with contextlib.suppress(RemoteProtocolError):
        message = control.decode(json.dumps({**said, "type": kind}).encode())
        assert message is not None
        assert control.decode(control.encode(message)) == message


ADDRESSES = st.sampled_from([b"\x04" + bytes(4), b"\x06" + bytes(16), b"\x07", b""])


@MANY
@given(st.integers(1, 6), st.integers(0, 2**32 - 1), ADDRESSES, st.binary(max_size=60))
def test_a_datagram_message_can_be_said_again_or_is_the_declared_error(kind: int, number: int, address: bytes, rest: bytes) -> None:
    body = struct.pack("!BI", kind, number) + address + rest
    with contextlib.suppress(RemoteProtocolError):
        assert udp.encode(udp.decode(body)) == body


@MANY
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 0xFFFF), st.integers(0, 20), st.binary(max_size=40)), max_size=60))
def test_pieces_of_ipv6_packets_are_bounded_and_make_packets_or_nothing(pieces: list[tuple[int, int, int, bytes]]) -> None:
    fragments = packets.Fragments()
    for source, place, ident, data in pieces:
        address = bytes(15) + bytes((source,))
        packet = b"\x60\0\0\0" + struct.pack("!HBB", 8 + len(data), 44, 64) + address + address
        whole = fragments.whole(packet + struct.pack("!BBHI", 17, 0, place, ident) + data)
        if whole is not None:
            packets.parse(whole)
            packets.build_protocol_unreachable(whole)
        held = fragments._pieces.values()
        assert len(held) <= 16
        assert all(sum(map(len, one)) <= 0xFFFF and b"" not in one for one in held)

"""Bytes from outside against everything that reads a carrier: named errors, bounded memory, never anything else."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.errors import BridgeError, LinkError, RemoteProtocolError
from bridge.protocol import preamble
from bridge.protocol.frames import FrameReader
from bridge.protocol.stream import Greeting, State, Stream, StreamRefused
from bridge.protocol.stream_frames import HEADER, MAX_BODY, Kind, Reader

ID, SECRET = b"i" * 16, b"s" * 32
EXAMPLES = 500

# Frames that are nearly right reach further than noise.
NUMBERS = st.one_of(st.sampled_from([0, 1, 5, 1 << 20, (1 << 63) - 1, (1 << 64) - 1]), st.integers(0, (1 << 64) - 1))
BODIES = st.one_of(
    st.binary(max_size=80),
    NUMBERS.map(lambda number: number.to_bytes(8, "big")),
    st.tuples(st.just(ID), st.binary(min_size=16, max_size=16), NUMBERS).map(
        lambda parts: parts[0] + parts[1] + parts[2].to_bytes(8, "big")
    ),
    st.tuples(st.binary(min_size=16, max_size=16), NUMBERS, st.binary(min_size=32, max_size=32)).map(
        lambda parts: parts[0] + parts[1].to_bytes(8, "big") + parts[2]
    ),
)
FRAMES = st.tuples(st.one_of(st.sampled_from(list(Kind)), st.integers(0, 255)), BODIES).map(
    lambda frame: HEADER.pack(frame[0], len(frame[1])) + frame[1]
)
TRAFFIC = st.lists(st.one_of(FRAMES, st.binary(max_size=30)), max_size=12).map(b"".join)
PIECES = st.integers(1, 64)


def pieces(data: bytes, size: int) -> list[memoryview]:
    return [memoryview(data[start : start + size]) for start in range(0, len(data), size)]


def check(stream: Stream, written: int) -> None:
    assert 0 <= stream.unsent_bytes <= stream.held_bytes <= written
    assert sum(map(len, stream.take(0.0))) <= written + 1000


@given(TRAFFIC, PIECES, st.sampled_from(["opened", "resuming", "carried"]))
@settings(max_examples=EXAMPLES, deadline=None)
def test_a_hostile_agent_can_only_end_the_stream(data: bytes, size: int, state: str) -> None:
    stream = Stream(ID, client=True)
    stream.attach(b"c" * 16, 0.0)
    stream.write(b"secret of the app")
    if state != "opened":
        stream.set_secret(SECRET)
        stream.take(0.0)
    if state == "resuming":
        stream.attach(b"d" * 16, 0.0)
    reader, received = Reader(), 0
    try:
        for piece in pieces(data, size):
            for kind, body in reader.feed(piece):
                received += len(stream.on_frame(kind, body, 0.0) or b"")
                if stream.state is State.CLOSED:
                    return
                check(stream, 17)
    except (RemoteProtocolError, StreamRefused):
        return
    assert received == stream.received <= len(data)
    if state == "resuming":
        assert stream.state is State.RESUMING  # nobody guesses the proof


@given(TRAFFIC, PIECES)
@settings(max_examples=EXAMPLES, deadline=None)
def test_a_hostile_client_cannot_disturb_another_ones_stream(data: bytes, size: int) -> None:
    stream = Stream(ID, client=False)
    stream.attach_server(0.0)
    stream.set_secret(SECRET)
    stream.write(b"answer")
    stream.take(0.0)
    greeting, reader = Greeting(lambda stream_id: stream if stream_id == ID else None, b"n" * 16), Reader()
    try:
        for piece in pieces(data, size):
            for kind, body in reader.feed(piece):
                found = greeting.on_frame(kind, body, 0.0)
                assert found is not stream
                if found is not None:
                    return  # a stream of its own, which SSH guards
    except (RemoteProtocolError, StreamRefused):
        pass
    assert stream.state is State.CARRIED
    assert (stream.received, stream.held_bytes) == (0, 6)
    assert sum(map(len, greeting.out)) <= 500


@given(st.binary(max_size=200), PIECES)
@settings(max_examples=EXAMPLES, deadline=None)
def test_the_frame_reader_holds_no_more_than_one_small_frame(data: bytes, size: int) -> None:
    reader = Reader()
    try:
        for piece in pieces(data, size):
            for kind, body in reader.feed(piece):
                assert len(body) <= (MAX_BODY if kind is Kind.DATA else 200)
            assert len(reader._head) <= HEADER.size + 200
    except RemoteProtocolError:
        pass


@given(st.binary(max_size=200), PIECES, st.integers(0, 100))
@settings(max_examples=EXAMPLES, deadline=None)
def test_messages_stay_within_their_limit(data: bytes, size: int, limit: int) -> None:
    reader = FrameReader(limit)
    try:
        for piece in pieces(data, size):
            assert all(len(body) <= limit for body in reader.feed(piece))
            assert reader.held_bytes <= limit + 4
    except RemoteProtocolError:
        pass


@given(st.one_of(st.binary(max_size=20), st.binary(max_size=12).map(lambda rest: preamble.MAGIC + rest)))
@settings(max_examples=EXAMPLES, deadline=None)
def test_a_preamble_is_the_agents_or_a_named_error(data: bytes) -> None:
    agent = "6d" * 8
    if data[:12] == preamble.encode(agent)[:12] and len(data) == preamble.SIZE:
        preamble.check(data, agent)
        return
    with pytest.raises(LinkError) as failed:
        preamble.check(data, agent)
    assert isinstance(failed.value, BridgeError)
    assert failed.value.message.isprintable()

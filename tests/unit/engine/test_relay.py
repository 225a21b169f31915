"""The byte pump, between a real socket pair (the app holds the other end) and a channel that only records."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import uvloop

from bridge.engine.needs import Sink
from bridge.engine.relay import AHEAD_BYTES, join, prepare


class RecordingChannel:
    """A needs.Channel: what the pump does to it, in order; bytes are joined."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.written = bytearray()
        self.largest = 0
        self.sink: Sink | None = None
        self.paused = False
        self.changed = asyncio.Event()

    def attach(self, sink: Sink) -> None:
        self.sink = sink

    def write(self, data: bytes | memoryview) -> None:
        self.written += data
        self.largest = max(self.largest, len(data))
        self.changed.set()

    def write_eof(self) -> None:
        self._tell("eof")

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False
        self.changed.set()

    def close(self) -> None:
        self._tell("close")

    def abort(self) -> None:
        self._tell("abort")

    def _tell(self, what: str) -> None:
        self.told.append(what)
        self.changed.set()

    async def until(self, fact: Callable[[], bool]) -> None:
        while not fact():
            self.changed.clear()
            async with asyncio.timeout(5):
                await self.changed.wait()


class Joined:
    def __init__(self, app: socket.socket, channel: RecordingChannel) -> None:
        self.app = app
        self.channel = channel
        self.ended: list[tuple[int, int, str]] = []

    @property
    def sink(self) -> Sink:
        assert self.channel.sink is not None
        return self.channel.sink

    def on_ended(self, sent: int, received: int, how: str) -> None:
        self.ended.append((sent, received, how))
        self.channel.changed.set()

    async def recv(self, size: int = 65536) -> bytes:
        async with asyncio.timeout(5):
            return await asyncio.get_running_loop().sock_recv(self.app, size)

    async def read_all(self) -> bytes:
        got = bytearray()
        while data := await self.recv(1 << 20):
            got += data
        return bytes(got)


@asynccontextmanager
async def joined(ahead: int = AHEAD_BYTES) -> AsyncIterator[Joined]:
    """A TCP connection on loopback: a socket pair of AF_UNIX knows no RST."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        app = socket.socket()
        app.setblocking(False)
        await loop.sock_connect(app, listener.getsockname())
        ours, _ = listener.accept()
    ours.setblocking(False)
    flow = Joined(app, RecordingChannel())
    prepare(ours)
    join(loop, ours, flow.channel, flow.on_ended, ahead=ahead)
    try:
        yield flow
    finally:
        app.close()
        ours.close()


def run(scenario: Callable[[Joined], Awaitable[None]], ahead: int = AHEAD_BYTES) -> None:
    async def main() -> None:
        async with asyncio.timeout(20), joined(ahead) as flow:
            await scenario(flow)

    uvloop.run(main())


def test_bytes_pass_both_ways_and_are_counted() -> None:
    async def scenario(flow: Joined) -> None:
        flow.app.send(b"ping")
        await flow.channel.until(lambda: flow.channel.written == b"ping")
        flow.sink.on_data(memoryview(b"pong!"))
        assert await flow.recv() == b"pong!"
        flow.app.shutdown(socket.SHUT_WR)
        await flow.channel.until(lambda: flow.channel.told == ["eof"])
        flow.sink.on_eof()
        assert await flow.recv() == b""
        assert flow.channel.told == ["eof", "close"]
        assert flow.ended == [(4, 5, "CLOSED")]

    run(scenario)


def test_A06_the_rest_of_the_answer_arrives_after_the_app_has_ended_its_side() -> None:
    async def scenario(flow: Joined) -> None:
        flow.app.shutdown(socket.SHUT_WR)
        await flow.channel.until(lambda: flow.channel.told == ["eof"])
        flow.sink.on_data(b"the rest")
        assert await flow.recv() == b"the rest"
        assert flow.ended == []

    run(scenario)


def test_A06_the_app_may_go_on_after_the_cluster_has_ended_its_side() -> None:
    async def scenario(flow: Joined) -> None:
        flow.sink.on_eof()
        assert await flow.recv() == b""
        flow.app.send(b"still here")
        await flow.channel.until(lambda: flow.channel.written == b"still here")
        assert flow.ended == []

    run(scenario)


def test_A07_a_reset_of_the_app_aborts_the_channel() -> None:
    async def scenario(flow: Joined) -> None:
        flow.app.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        flow.app.close()
        await flow.channel.until(lambda: bool(flow.ended))
        assert flow.channel.told == ["abort"]
        assert flow.ended == [(0, 0, "RESET by the app")]

    run(scenario)


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_A07_a_reset_with_bytes_before_it_aborts_the_channel_too(size: int) -> None:
    async def scenario(flow: Joined) -> None:
        await asyncio.sleep(0)  # the pump watches
        flow.app.setblocking(True)
        flow.app.send(bytes(size))
        flow.app.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        flow.app.close()
        await flow.channel.until(lambda: bool(flow.ended))
        assert flow.channel.told == ["abort"]
        assert flow.ended[0][2] == "RESET by the app"

    run(scenario)


def test_A07_a_reset_that_came_while_the_window_was_full_is_noticed_when_it_is_not() -> None:
    async def scenario(flow: Joined) -> None:
        flow.sink.on_writable(False)
        flow.app.send(bytes(1000))
        flow.app.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        flow.app.close()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert flow.ended == []
        flow.sink.on_writable(True)
        await flow.channel.until(lambda: bool(flow.ended))
        assert flow.channel.told == ["abort"]

    run(scenario)


def test_A07_a_reset_of_the_cluster_is_a_reset_at_the_app_even_with_bytes_pending() -> None:
    async def scenario(flow: Joined) -> None:
        while not flow.channel.paused:
            flow.sink.on_data(bytes(65536))
        flow.sink.on_lost(True)
        with pytest.raises(ConnectionResetError):
            await flow.read_all()
        assert flow.channel.told == []
        assert flow.ended[0][2] == "RESET by the cluster"

    run(scenario)


def test_a_slow_app_pauses_the_channel_and_gets_every_byte_before_the_end() -> None:
    async def scenario(flow: Joined) -> None:
        total = 0
        while not flow.channel.paused:
            flow.sink.on_data(total.to_bytes(4, "big") * 4096)
            total += 1
        flow.sink.on_eof()
        flow.sink.on_lost(False)
        got = await flow.read_all()
        assert got == b"".join(number.to_bytes(4, "big") * 4096 for number in range(total))
        assert flow.ended == [(0, len(got), "CLOSED")]

    run(scenario)


def test_the_channel_goes_on_once_the_app_has_read() -> None:
    async def scenario(flow: Joined) -> None:
        sent = 0
        while not flow.channel.paused:
            flow.sink.on_data(bytes(100_000))
            sent += 100_000
        while sent:
            sent -= len(await flow.recv(1 << 20))
        await flow.channel.until(lambda: not flow.channel.paused)

    run(scenario)


def test_a_full_window_stops_the_app_and_loses_nothing() -> None:
    async def scenario(flow: Joined) -> None:
        flow.sink.on_writable(False)
        sent = 0
        while True:
            try:
                sent += flow.app.send(bytes(65536))
            except BlockingIOError:
                break
        before = len(flow.channel.written)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(flow.channel.written) == before == 0
        flow.sink.on_writable(True)
        await flow.channel.until(lambda: len(flow.channel.written) == sent)

    run(scenario)


def test_A13_an_urgent_byte_does_not_disturb_the_stream() -> None:
    async def scenario(flow: Joined) -> None:
        flow.app.send(b"one")
        await flow.channel.until(lambda: flow.channel.written == b"one")
        flow.app.send(b"!", socket.MSG_OOB)
        flow.app.send(b"two")
        await flow.channel.until(lambda: flow.channel.written == b"onetwo")
        flow.sink.on_data(b"answer")
        assert await flow.recv() == b"answer"

    run(scenario)


def test_the_callers_buffer_may_be_reused_at_once() -> None:
    async def scenario(flow: Joined) -> None:
        buffer = bytearray(65536)
        number = 0
        while not flow.channel.paused:
            buffer[:] = bytes([number % 256]) * len(buffer)
            flow.sink.on_data(memoryview(buffer))
            number += 1
        buffer[:] = b"\xff" * len(buffer)
        flow.sink.on_eof()
        got = await flow.read_all()
        assert got == b"".join(bytes([n % 256]) * 65536 for n in range(number))

    run(scenario)


def test_nothing_follows_the_end() -> None:
    async def scenario(flow: Joined) -> None:
        flow.sink.on_lost(True)
        flow.sink.on_data(b"late")
        flow.sink.on_eof()
        flow.sink.on_writable(True)
        flow.sink.on_lost(False)
        assert flow.channel.told == []
        assert len(flow.ended) == 1

    run(scenario)


def test_with_nothing_ahead_the_first_byte_that_is_kept_pauses_the_channel_until_all_is_sent() -> None:
    async def scenario(flow: Joined) -> None:
        piece, sent = bytes(range(256)) * 256, 0
        while not flow.channel.paused:
            flow.sink.on_data(piece)
            sent += len(piece)
        got = bytearray()
        while flow.channel.paused:
            got += await flow.recv()
        flow.sink.on_eof()
        got += await flow.read_all()
        assert bytes(got) == piece * (sent // len(piece))

    run(scenario, ahead=0)


def test_A42_while_much_is_kept_for_others_a_flow_with_nothing_ahead_reads_small_pieces() -> None:
    async def main() -> None:
        async with asyncio.timeout(20), joined(0) as stalled, joined(0) as other, joined() as by_link:
            loop = asyncio.get_running_loop()
            for _ in range(24):
                stalled.sink.on_data(bytes(1 << 20))  # nobody reads: all but the kernel's part is kept
            assert await _largest(loop, other) == 4096
            assert await _largest(loop, by_link) > 4096, "its own windows bound it"
            stalled.sink.on_lost(True)
            other.channel.largest = 0
            assert await _largest(loop, other) > 4096

    async def _largest(loop: asyncio.AbstractEventLoop, flow: Joined) -> int:
        wanted = len(flow.channel.written) + (1 << 20)
        await loop.sock_sendall(flow.app, bytes(1 << 20))
        await flow.channel.until(lambda: len(flow.channel.written) == wanted)
        return flow.channel.largest

    uvloop.run(main())

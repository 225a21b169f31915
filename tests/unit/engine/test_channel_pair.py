"""A pair of channels: against a model of two queues, and between two byte pumps on real sockets."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import uvloop
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from bridge.engine.channel_pair import KEPT_BYTES, ChannelEnd
from bridge.engine.relay import join, prepare

MiB = 1 << 20
SIDES = st.sampled_from([0, 1])


class Sink:
    """What one end tells its user, of which nothing may come late, early or twice."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.eof = False
        self.lost: bool | None = None
        self.writable = True
        self.gone = False  # its user has ended this end

    def on_data(self, data: bytes | memoryview) -> None:
        assert not self.eof
        self._may_hear()
        self.data += data

    def on_eof(self) -> None:
        assert not self.eof
        self._may_hear()
        self.eof = True

    def on_lost(self, reset: bool) -> None:
        self._may_hear()
        self.lost = reset

    def on_writable(self, writable: bool) -> None:
        self._may_hear()
        assert writable != self.writable, "told what it knew"
        self.writable = writable

    def _may_hear(self) -> None:
        assert self.lost is None
        assert not self.gone


def pair() -> tuple[ChannelEnd, ChannelEnd]:
    one, other = ChannelEnd(), ChannelEnd()
    one.joined(other)
    return one, other


class Pairs(RuleBasedStateMachine):
    """Two users, each of its end: any of them may attach, write, pause and end in any order that the contract allows."""

    def __init__(self) -> None:
        super().__init__()
        self.ends = pair()
        self.sinks: list[Sink | None] = [None, None]
        self.written = [bytearray(), bytearray()]
        self.eof_written = [False, False]
        self.paused = [False, False]
        self.over: list[str | None] = [None, None]  # how a side ended its end: "close", "abort"

    def lives(self, side: int) -> bool:
        """Its user may still do something."""
        sink = self.sinks[side]
        return self.over[side] is None and (sink is None or sink.lost is None)

    @rule(side=SIDES, chance=st.integers(0, 2))
    def attach(self, side: int, chance: int) -> None:
        if chance != 1:
            return
        if self.sinks[side] is None and self.over[side] is None:
            sink = self.sinks[side] = Sink()
            self.ends[side].attach(sink)

    @rule(side=SIDES, data=st.binary(min_size=1, max_size=9), times=st.sampled_from([1, 1, 3, KEPT_BYTES // 8, KEPT_BYTES]))
    def write(self, side: int, data: bytes, times: int) -> None:
        if self.lives(side) and not self.eof_written[side]:
            buffer = bytearray(data * times)
            self.written[side] += buffer
            self.ends[side].write(memoryview(buffer))
            buffer[:] = bytes(len(buffer))  # it is the writer's again

    @rule(side=SIDES)
    def write_eof(self, side: int) -> None:
        if self.lives(side) and not self.eof_written[side]:
            self.eof_written[side] = True
            self.ends[side].write_eof()

    @rule(side=SIDES)
    def pause(self, side: int) -> None:
        if self.lives(side):
            self.paused[side] = True
            self.ends[side].pause_reading()

    @rule(side=SIDES)
    def resume(self, side: int) -> None:
        if self.lives(side):
            self.paused[side] = False
            self.ends[side].resume_reading()

    @rule(side=SIDES, reset=st.booleans(), chance=st.integers(0, 9))
    def end(self, side: int, reset: bool, chance: int) -> None:
        if self.lives(side) and chance == 5:  # seldom: all else is over then
            self.over[side] = "abort" if reset else "close"
            sink = self.sinks[side]
            if sink is not None:
                sink.gone = True
            (self.ends[side].abort if reset else self.ends[side].close)()

    @invariant()
    def what_came_out_is_what_went_in(self) -> None:
        for side, sink in enumerate(self.sinks):
            if sink is None:
                continue
            written, far = self.written[1 - side], self.over[1 - side]
            assert written.startswith(sink.data)
            if self.over[side] is not None:
                continue  # it has asked for nothing more
            hears = not self.paused[side]
            if far == "abort":
                assert sink.lost is True, "a reset waits for nobody"
                continue
            whole = sink.data == written
            assert whole or not hears
            assert sink.eof == (whole and self.eof_written[1 - side])
            assert sink.lost == (False if whole and far == "close" else None)

    @invariant()
    def a_channel_is_full_while_nobody_takes(self) -> None:
        for side, sink in enumerate(self.sinks):
            taker = self.sinks[1 - side]
            if sink is not None and self.lives(side) and self.lives(1 - side):
                kept = len(self.written[side]) - (len(taker.data) if taker else 0)
                assert sink.writable == (not self.paused[1 - side] and kept < KEPT_BYTES)


TestPairs = Pairs.TestCase
TestPairs.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)


def test_what_a_user_does_while_it_is_told_keeps_the_order() -> None:
    """It answers, pauses, goes on and ends within the calls by which it hears."""
    one, other = pair()
    for number in range(6):
        one.write(bytes([number]))
    one.write_eof()
    one.close()
    heard: list[object] = []

    class Busy(Sink):
        def on_data(self, data: bytes | memoryview) -> None:
            super().on_data(data)
            heard.append(bytes(data))
            other.pause_reading()
            other.write(b"answer")
            other.resume_reading()

        def on_eof(self) -> None:
            super().on_eof()
            heard.append("eof")

        def on_lost(self, reset: bool) -> None:
            super().on_lost(reset)
            heard.append("lost")
            other.close()

    other.attach(Busy())
    assert heard == [b"\0", b"\1", b"\2", b"\3", b"\4", b"\5", "eof", "lost"]


def test_what_is_written_while_older_bytes_are_told_comes_after_all_of_them() -> None:
    one, other = pair()
    one.write(b"1")
    one.write(b"2")

    class Asking(Sink):
        def on_data(self, data: bytes | memoryview) -> None:
            if data == b"1":
                other.write(b"question")
            super().on_data(data)

    class Answering(Sink):
        def on_data(self, data: bytes | memoryview) -> None:
            super().on_data(data)
            one.write(b"3")

    asking = Asking()
    one.attach(Answering())
    other.attach(asking)
    assert bytes(asking.data) == b"123"


def test_who_pauses_while_it_is_told_hears_the_rest_when_it_goes_on() -> None:
    one, other = pair()
    one.write(b"1")
    one.write(b"2")
    one.write_eof()

    class Slow(Sink):
        def on_data(self, data: bytes | memoryview) -> None:
            super().on_data(data)
            other.pause_reading()

    slow = Slow()
    other.attach(slow)
    assert (bytes(slow.data), slow.eof) == (b"1", False)
    other.resume_reading()
    assert (bytes(slow.data), slow.eof) == (b"12", True)


@pytest.mark.parametrize("paused", [False, True], ids=["nobody there", "paused"])
def test_a_reset_discards_what_was_kept(paused: bool) -> None:
    one, other = pair()
    sink = Sink()
    if paused:
        other.attach(sink)
        other.pause_reading()
    one.write(bytes(KEPT_BYTES))
    one.write_eof()
    one.abort()
    if not paused:
        other.attach(sink)
    assert (bytes(sink.data), sink.eof, sink.lost) == (b"", False, True)


def test_nothing_follows_the_end_whatever_its_user_still_does() -> None:
    one, other = pair()
    sink = Sink()
    other.attach(sink)
    one.close()
    assert sink.lost is False
    for late in (other.pause_reading, other.resume_reading, other.write_eof, other.close, other.abort):
        late()
    other.write(b"late")


@pytest.mark.parametrize("reset", [False, True])
def test_who_ends_its_end_while_it_is_told_hears_no_more(reset: bool) -> None:
    one, other = pair()
    for _ in range(3):
        one.write(b"x")
    one.write_eof()

    class Leaving(Sink):
        def on_data(self, data: bytes | memoryview) -> None:
            super().on_data(data)
            (other.abort if reset else other.close)()

    mine, leaving = Sink(), Leaving()
    one.attach(mine)
    other.attach(leaving)
    one.write(b"more")
    assert (bytes(leaving.data), leaving.eof, leaving.lost) == (b"x", False, None)
    assert mine.lost is reset


class Joined:
    """app ⇄ pump ⇄ pair ⇄ pump ⇄ server, the outer two held by the test."""

    def __init__(self) -> None:
        self.app, self.server = socket.socket(), socket.socket()
        self.ends: list[ChannelEnd] = list(pair())
        self.ended: list[tuple[int, int, str]] = []
        self.changed = asyncio.Event()

    def on_ended(self, sent: int, received: int, how: str) -> None:
        self.ended.append((sent, received, how))
        self.changed.set()

    async def until_both_ended(self) -> list[str]:
        async with asyncio.timeout(10):
            while len(self.ended) < 2:
                self.changed.clear()
                await self.changed.wait()
        return [how for _, _, how in self.ended]

    def begin(self, at: int, sock: socket.socket) -> None:
        join(asyncio.get_running_loop(), sock, self.ends[at], self.on_ended, ahead=0)


@asynccontextmanager
async def joined() -> AsyncIterator[Joined]:
    made = Joined()
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for at, outer in enumerate((made.app, made.server)):
            outer.setblocking(False)
            await loop.sock_connect(outer, listener.getsockname())
            inner, _ = listener.accept()
            inner.setblocking(False)
            prepare(inner)
            made.begin(at, inner)
    try:
        yield made
    finally:
        made.app.close()
        made.server.close()


def play(scenario: Callable[[Joined], Awaitable[None]]) -> None:
    async def main() -> None:
        faults: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
        async with asyncio.timeout(30), joined() as both:
            await scenario(both)
        assert faults == []

    uvloop.run(main())


async def recv(sock: socket.socket, size: int = 65536) -> bytes:
    async with asyncio.timeout(10):
        return await asyncio.get_running_loop().sock_recv(sock, size)


def outer(both: Joined, app_first: bool) -> tuple[socket.socket, socket.socket]:
    return (both.app, both.server) if app_first else (both.server, both.app)


@pytest.mark.parametrize("app_first", [True, False], ids=["app", "server"])
def test_A06_either_side_may_end_first_and_the_other_goes_on(app_first: bool) -> None:
    async def scenario(both: Joined) -> None:
        first, second = outer(both, app_first)
        first.send(b"question")
        first.shutdown(socket.SHUT_WR)
        assert await recv(second) == b"question"
        assert await recv(second) == b""
        second.send(b"answer")
        assert await recv(first) == b"answer"
        assert both.ended == []
        second.shutdown(socket.SHUT_WR)
        assert await recv(first) == b""
        assert await both.until_both_ended() == ["CLOSED", "CLOSED"]
        assert {(sent, received) for sent, received, _ in both.ended} == {(8, 6), (6, 8)}

    play(scenario)


@pytest.mark.parametrize("app_first", [True, False], ids=["app", "server"])
def test_A07_a_reset_of_either_side_is_a_reset_at_the_other(app_first: bool) -> None:
    async def scenario(both: Joined) -> None:
        first, second = outer(both, app_first)
        first.send(b"question")
        assert await recv(second) == b"question"
        first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        first.close()
        with pytest.raises(ConnectionResetError):
            await recv(second)
        assert sorted(await both.until_both_ended()) == ["RESET by the app", "RESET by the cluster"]

    play(scenario)


def test_5_MB_each_way_at_once_arrive_whole_at_readers_that_are_slow_and_little_is_kept() -> None:
    async def scenario(both: Joined) -> None:
        loop = asyncio.get_running_loop()
        data = {both.app: b"app!" * (5 * MiB // 4), both.server: b"srv?" * (5 * MiB // 4)}
        most = 0

        async def write(sock: socket.socket) -> None:
            await loop.sock_sendall(sock, data[sock])
            sock.shutdown(socket.SHUT_WR)

        async def read(sock: socket.socket) -> bytes:
            nonlocal most
            got = bytearray()
            while piece := await recv(sock, 20_000):
                got += piece
                most = max(most, *(kept_bytes(end) for end in both.ends))
                await asyncio.sleep(0)
            return bytes(got)

        async with asyncio.TaskGroup() as group:
            for sock in data:
                group.create_task(write(sock))
            reading = [group.create_task(read(sock)) for sock in data]
        assert [task.result() for task in reading] == [data[both.server], data[both.app]]
        assert await both.until_both_ended() == ["CLOSED", "CLOSED"]
        assert most <= 2 * KEPT_BYTES

    play(scenario)


def kept_bytes(end: ChannelEnd) -> int:
    return sum(map(len, end._kept))


def test_a_side_that_reads_nothing_stops_the_other_and_a_reset_gets_through_all_that_waits() -> None:
    async def scenario(both: Joined) -> None:
        sent = idle = 0
        while idle < 100:  # turns of the loop in which nobody takes anything
            try:
                sent += both.app.send(bytes(MiB))
                idle = 0
            except BlockingIOError:
                idle += 1
            await asyncio.sleep(0)
            assert sent < 64 * MiB, "somebody keeps it all"
        assert max(map(kept_bytes, both.ends)) <= 2 * KEPT_BYTES
        both.app.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        both.app.close()
        with pytest.raises(ConnectionResetError):
            await read_all(both.server)

    play(scenario)


async def read_all(sock: socket.socket) -> None:
    while await recv(sock, MiB):
        pass

"""ResumableTransport and ResumableServer, as their protocols and the far end see them; hours pass in virtual time."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator

import pytest

from bridge.adapters.resumable import ResumableServer, ResumableTransport
from bridge.adapters.resumable.server import MAX_STREAMS
from bridge.errors import LinkLost, RemoteProtocolError
from bridge.protocol.stream import StreamRefused
from bridge.protocol.stream_frames import HEADER, Kind, encode
from tests.unit.contracts.carriers import Made, Pair, Recorder, cut_all, noise, socket_pair, tcp
from tests.unit.virtual import run

MiB = 1 << 20


@pytest.fixture(autouse=True)
def _tidy() -> Iterator[None]:
    yield
    cut_all()


def test_A09_a_connection_idle_for_15_minutes_still_works() -> None:
    async def test() -> None:
        pair = Pair()
        await pair.carry(await socket_pair())
        assert pair.agent is not None
        await asyncio.sleep(900)
        pair.transport.write(b"still there?")
        assert await pair.agent.until(12) == b"still there?"
        assert pair.cuts == []

    run(test())


class Pump:
    """A carrier that can be stopped: both ends live on, and hear nothing any more."""

    def __init__(self) -> None:
        (client, self._near), (self._far, agent) = socket.socketpair(), socket.socketpair()
        for sock in (self._near, self._far):
            sock.setblocking(False)
        self.made = Made((client.detach(),), (agent.detach(),), self.close)
        self._copying = [asyncio.ensure_future(self._copy(*pair)) for pair in ((self._near, self._far), (self._far, self._near))]

    def stop(self) -> None:
        for task in self._copying:
            task.cancel()

    def close(self) -> None:
        self.stop()
        self._near.close()
        self._far.close()

    async def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(source, 65536):
            await loop.sock_sendall(sink, data)


@pytest.mark.parametrize("who", ["client", "agent"])
def test_A37_a_carrier_that_goes_silent_is_noticed_within_15_s(who: str) -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        pair, pump = Pair(), Pump()
        await pair.carry(pump.made)
        assert pair.agent is not None
        pair.transport.write(b"heard")
        await pair.agent.until(5)
        pump.stop()
        start = loop.time()
        if who == "client":
            pair.transport.write(b" later")
            await pair.until_cut()
        else:
            cut = asyncio.Event()
            pair.server.streams[0].on_carrier_lost(lambda _: cut.set())
            await cut.wait()
        assert 10 <= loop.time() - start <= 15
        pump.close()
        await pair.carry(await socket_pair())
        if who == "client":
            assert await pair.agent.until(11) == b"heard later"

    run(test())


def test_a_stream_that_nobody_resumes_ends_after_its_time_and_later_attempts_are_refused() -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        pair = Pair(linger_s=180)
        made = await socket_pair()
        await pair.carry(made)
        assert pair.agent is not None
        made.cut()
        await pair.until_cut()
        start = loop.time()
        lost = await pair.agent.lost
        assert isinstance(lost, LinkLost)
        assert "no carrier came for 180 s" in lost.message
        assert loop.time() - start == pytest.approx(180, abs=1)
        assert pair.server.streams == []
        late = await socket_pair()
        pair.server.accept(*late.agent)
        pair.transport.carry(*late.client)
        refused = await pair.client.lost
        assert isinstance(refused, StreamRefused)
        assert "the stream is not known here" in refused.message
        late.cut()

    run(test())


def test_A37_a_cut_of_60_s_is_invisible_to_both_protocols() -> None:
    async def test() -> None:
        pair = Pair(linger_s=180)
        made = await socket_pair()
        await pair.carry(made)
        assert pair.agent is not None
        made.cut()
        await pair.until_cut()
        pair.transport.write(b"asked meanwhile")
        pair.agent.transport.write(b"told meanwhile")  # type: ignore[union-attr]
        await asyncio.sleep(60)
        await pair.carry(await socket_pair())
        assert await pair.agent.until(15) == b"asked meanwhile"
        assert await pair.client.until(14) == b"told meanwhile"
        await asyncio.sleep(600)
        assert not pair.client.lost.done()
        assert not pair.agent.lost.done()

    run(test())


def test_a_cut_before_the_secret_ends_the_stream_on_both_sides() -> None:
    async def test() -> None:
        agent = Recorder()
        server = ResumableServer(lambda transport: transport.start(agent), 60)
        client, transport = Recorder(), ResumableTransport.client(asyncio.get_running_loop())
        transport.start(client)
        made = await socket_pair()
        server.accept(*made.agent)
        transport.carry(*made.client)
        transport.write(b"hello")
        await agent.until(5)
        made.cut()
        assert isinstance(await client.lost, LinkLost)
        assert isinstance(await agent.lost, LinkLost)
        assert server.streams == []

    run(test())


def test_a_writer_is_paused_and_what_is_held_stays_bounded() -> None:
    async def test() -> None:
        pair = Pair()
        await pair.carry(await socket_pair())
        assert pair.agent is not None
        pair.agent.transport.pause_reading()  # type: ignore[union-attr]
        size = 24 * MiB
        async with asyncio.TaskGroup() as group:
            writing = group.create_task(pair.client.write(bytes(size)), name="write")
            for _ in range(50):
                await asyncio.sleep(0)
            assert not writing.done()
            assert pair.client.pauses >= 1
            assert pair.transport.stream.unsent_bytes <= MiB
            assert pair.transport.stream.held_bytes <= 3 * MiB
            pair.agent.transport.resume_reading()  # type: ignore[union-attr]
        await pair.agent.until(size)
        assert pair.transport.stream.held_bytes <= MiB

    run(test())


def test_while_cut_a_writer_is_paused_too() -> None:
    async def test() -> None:
        pair = Pair()
        made = await socket_pair()
        await pair.carry(made)
        made.cut()
        await pair.until_cut()
        data = noise(7, 8 * MiB)
        async with asyncio.TaskGroup() as group:
            group.create_task(pair.client.write(data), name="write")
            await asyncio.sleep(30)
            assert pair.client.pauses == 1
            assert pair.transport.stream.held_bytes <= MiB
            await pair.carry(await socket_pair())
        assert pair.agent is not None
        assert await pair.agent.until(len(data)) == data

    run(test())


def test_a_new_carrier_takes_the_place_of_a_live_one() -> None:
    async def test() -> None:
        pair = Pair()
        first = await socket_pair()
        await pair.carry(first)
        assert pair.agent is not None
        data = noise(8, 4 * MiB)
        async with asyncio.TaskGroup() as group:
            group.create_task(pair.client.write(data), name="write")
            await pair.agent.until(MiB)
            await pair.carry(await socket_pair())
        assert await pair.agent.until(len(data)) == data

    run(test())


def test_an_end_over_unread_bytes_is_a_FIN_and_no_reset() -> None:
    """A reset would destroy what is still under way."""

    async def test() -> None:
        loop = asyncio.get_running_loop()
        client, transport = Recorder(), ResumableTransport.client(loop)
        transport.start(client)
        made = await tcp()
        with socket.socket(fileno=made.agent[0]) as far:
            far.setblocking(False)
            far.send((HEADER.pack(Kind.DATA, 1000) + bytes(1000)) * 50)
            transport.carry(*made.client)
            transport.write(b"bye")
            transport.close()
            assert await client.lost is None
            heard = b""
            while part := await loop.sock_recv(far, 4096):
                heard += part
            assert heard.endswith(HEADER.pack(Kind.DATA, 3) + b"bye" + encode(Kind.CLOSE))
        made.cut()

    run(test())


def test_a_far_end_that_says_its_last_words_and_dies_is_heard() -> None:
    """A bridge that stops in the middle of a download exits over unread bytes: the agent must not wait for it to come back."""

    async def test() -> None:
        agent = Recorder()
        server = ResumableServer(lambda transport: transport.start(agent), 60)
        made = await tcp()
        with socket.socket(fileno=made.client[0]) as dying:
            server.accept(*made.agent)
            dying.send(encode(Kind.OPEN, bytes(16)) + HEADER.pack(Kind.DATA, 2) + b"hi")
            await agent.until(2)
            (transport,) = server.streams
            transport.set_secret(bytes(32))
            transport.write(bytes(100_000))
            await asyncio.sleep(0.1)
            dying.send(HEADER.pack(Kind.DATA, 3) + b"bye" + encode(Kind.CLOSE))
        made.cut()
        transport.write(bytes(400_000))  # fails at once: the far end has reset the connection
        assert await agent.lost is None
        assert agent.got == b"hibye"
        assert server.streams == []

    run(test())


def test_an_abort_still_says_the_last_words() -> None:
    async def test() -> None:
        pair = Pair()
        await pair.carry(await socket_pair())
        assert pair.agent is not None
        pair.transport.write(b"disconnect: by request")
        pair.transport.abort()
        assert await pair.agent.lost is None
        assert pair.agent.got == b"disconnect: by request"

    run(test())


@pytest.mark.parametrize(
    "words",
    [
        b"GET / HTTP/1.1\r\nHost: agent\r\n\r\n",
        HEADER.pack(Kind.DATA, 5) + b"early",
        encode(Kind.CHALLENGE, bytes(56)),
        encode(Kind.RESUME, bytes(40)),
        HEADER.pack(Kind.OPEN, 0xFFFFFFFF),
    ],
)
def test_a_stranger_is_hung_up_on_and_others_go_on(words: bytes) -> None:
    async def test() -> None:
        pair = Pair()
        await pair.carry(await socket_pair())
        assert pair.agent is not None
        stranger, end = socket.socketpair()
        with stranger:
            pair.server.accept(end)
            stranger.setblocking(False)
            stranger.send(words)
            loop = asyncio.get_running_loop()
            while await loop.sock_recv(stranger, 4096):
                pass
        pair.transport.write(b"undisturbed")
        assert await pair.agent.until(11) == b"undisturbed"
        assert len(pair.server.streams) == 1

    run(test())


def test_a_carrier_that_says_nothing_is_closed_after_10_s() -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        server = ResumableServer(lambda transport: None, 60)
        silent, end = socket.socketpair()
        with silent:
            silent.setblocking(False)
            server.accept(end)
            start = loop.time()
            assert await loop.sock_recv(silent, 16) == b""
            assert loop.time() - start == pytest.approx(10)

    run(test())


def test_streams_are_limited() -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        agents = [Recorder() for _ in range(MAX_STREAMS)]
        unused = iter(agents)
        server = ResumableServer(lambda transport: transport.start(next(unused)), 60)
        clients = []
        for number in range(MAX_STREAMS + 1):
            made = await socket_pair()
            client, transport = Recorder(), ResumableTransport.client(loop)
            transport.start(client)
            server.accept(*made.agent)
            transport.carry(*made.client)
            transport.write(b"hi")
            clients.append(client)
            if number < MAX_STREAMS:
                await agents[number].until(2)
        refused = await clients[-1].lost
        assert isinstance(refused, StreamRefused)
        assert "too many streams are open" in refused.message
        assert len(server.streams) == MAX_STREAMS
        server.close()
        for client in clients:
            await client.lost

    run(test())


def test_a_far_end_that_breaks_the_protocol_ends_the_stream_by_name() -> None:
    async def test() -> None:
        client, transport = Recorder(), ResumableTransport.client(asyncio.get_running_loop())
        transport.start(client)
        near, far = socket.socketpair()
        transport.carry(near)
        with far:
            far.send(HEADER.pack(42, 0))
            lost = await client.lost
        assert isinstance(lost, RemoteProtocolError)
        assert "unknown type 42" in lost.message

    run(test())


def test_a_protocol_that_takes_views_gets_the_buffer_itself() -> None:
    class Viewer(Recorder):
        takes_views = True

        def data_received(self, data: bytes) -> None:
            assert isinstance(data, memoryview)
            super().data_received(data)

    async def test() -> None:
        client, transport = Viewer(), ResumableTransport.client(asyncio.get_running_loop())
        transport.start(client)
        near, far = socket.socketpair()
        transport.carry(near)
        with far:
            far.send(HEADER.pack(Kind.DATA, 3) + b"abc")
            assert await client.until(3) == b"abc"
            transport.abort()
            await client.lost

    run(test())


def test_no_descriptor_stays_behind() -> None:
    async def test() -> None:
        before = set(os.listdir("/proc/self/fd"))
        pair = Pair()
        for _ in range(3):
            made = await socket_pair()
            await pair.carry(made)
            made.cut()
            await pair.until_cut()
        last = await socket_pair()
        await pair.carry(last)
        pair.transport.close()
        assert pair.agent is not None
        await pair.agent.lost
        await pair.client.lost
        last.cut()
        await asyncio.sleep(5)
        assert set(os.listdir("/proc/self/fd")) <= before

    run(test())


def test_what_nobody_waits_for_goes_out_with_the_next_write_or_10_ms_later() -> None:
    async def test() -> None:
        pair = Pair()
        await pair.carry(await socket_pair())
        assert pair.agent is not None
        pair.transport.write_later(b"late")
        await asyncio.sleep(0.005)
        assert pair.transport.get_write_buffer_size() == 4
        pair.transport.write(b" and now")
        assert pair.transport.get_write_buffer_size() == 0
        assert await pair.agent.until(12) == b"late and now"
        pair.transport.write_later(b"alone")
        assert await pair.agent.until(17) == b"late and nowalone"

    run(test())

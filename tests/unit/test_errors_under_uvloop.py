"""What the loop in use stops watching after an error is watched again: uvloop calls back once, and then never more (libuv, uv__poll_io)."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop

from bridge.adapters.kube.pump import Pump
from bridge.adapters.nfqueue import SynQueue
from bridge.adapters.resumable.carrier import Carrier
from bridge.agent.datagrams import Associations
from bridge.protocol import udp
from bridge.protocol.channels import Channels
from bridge.sidecar import networks

Run = Callable[[Awaitable[None]], None]


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    def bounded(scenario: Awaitable[None]) -> None:
        async def main() -> None:
            faults: list[object] = []
            asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
            async with asyncio.timeout(10):
                await scenario
            assert faults == []

        request.param(main())

    return bounded


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_A11_answers_come_after_another_destination_was_unreachable(run: Run, host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        told: asyncio.Queue[udp.Message] = asyncio.Queue()
        associations = Associations(loop, told.put_nowait)
        with socket.socket(family, socket.SOCK_DGRAM) as server, socket.socket(family, socket.SOCK_DGRAM) as gone:
            for sock in (server, gone):
                sock.bind((host, 0))
            server.settimeout(5)
            port = gone.getsockname()[1]
            gone.close()
            for _ in range(3):
                associations.on_datagram(udp.Datagram(1, host, port, b"anybody?"))
                assert await told.get() == udp.Unreachable(1, host, port, "ECONNREFUSED")
                associations.on_datagram(udp.Datagram(1, host, server.getsockname()[1], b"question"))
                _, asker = server.recvfrom(100)
                server.sendto(b"answer", asker)
                assert await told.get() == udp.Datagram(1, host, server.getsockname()[1], b"answer")
        associations.close()

    run(scenario())


def test_an_association_that_ends_with_its_error_fails_nowhere(run: Run) -> None:
    async def scenario() -> None:
        loop, over = asyncio.get_running_loop(), asyncio.Event()

        def on_message(_: udp.Message) -> None:
            loop.call_soon(associations.close)
            loop.call_soon(over.set)

        associations = Associations(loop, on_message)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as gone:
            gone.bind(("127.0.0.1", 0))
            port = gone.getsockname()[1]
        associations.on_datagram(udp.Datagram(1, "127.0.0.1", port, b"anybody?"))
        await over.wait()
        await asyncio.sleep(0)

    run(scenario())


def flooded() -> socket.socket:
    """A netlink socket whose queue has overflowed: ENOBUFS is what it reads next."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    sock.bind((0, 0))
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    for _ in range(50):
        ask(sock)
    return sock


def ask(sock: socket.socket) -> None:
    """For the loopback device by its number: one message comes (rtnetlink(7), RTM_GETLINK)."""
    sock.send(struct.pack("=IHHII", 32, 18, 1, 1, 0) + struct.pack("=BxHiII", 0, 0, 1, 0, 0))


async def empty(sock: socket.socket) -> bool:
    """Whether somebody has read it, as the kernel sees it: a look takes nothing away."""
    for _ in range(100):
        await asyncio.sleep(0.001)
        try:
            sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
    return False


def test_syns_are_heard_after_the_packet_queue_has_overflowed(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        queue = SynQueue(1, lambda syn: None)
        with flooded() as sock:
            queue._socket, queue._loop = sock, asyncio.get_running_loop()  # as `open` does where the kernel has a queue
            queue._loop.add_reader(sock.fileno(), queue._read)
            assert await empty(sock)
            assert "overflowed" in caplog.text
            ask(sock)
            assert await empty(sock)
            queue.close()

    run(scenario())


def test_changes_of_the_networks_are_heard_after_too_many_came_at_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "SETTLED_S", 0.01)

    async def scenario() -> None:
        looks: asyncio.Queue[Any] = asyncio.Queue()

        async def look() -> None:
            looks.put_nowait(None)

        with flooded() as sock:
            following = asyncio.ensure_future(networks._follow(sock, look))
            await looks.get()
            assert await empty(sock)
            ask(sock)
            assert await empty(sock)
            following.cancel()
            await asyncio.wait([following])

    run(scenario())


def reset_with_bytes_before_it(sock: socket.socket, said: bytes) -> None:
    """A RST of TCP, or what a Unix socket makes of an end over unread bytes."""
    sock.send(said)
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def connected(family: int) -> tuple[socket.socket, socket.socket]:
    if family == socket.AF_UNIX:
        return socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
        return near, far


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_A37_a_carrier_that_is_reset_behind_its_last_bytes_is_lost_at_once(run: Run, family: int) -> None:
    """Its silence would be noticed after 15 s."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        near, far = connected(family)
        carrier, heard, lost = Carrier(loop, [near]), bytearray(), asyncio.Event()
        carrier.start(heard.extend, lambda why: lost.set(), lambda: None)
        carrier.write([b"unread"])
        carrier.read(True)
        await asyncio.sleep(0)
        reset_with_bytes_before_it(far, b"last words")
        await lost.wait()
        assert bytes(heard) == b"last words"

    run(scenario())


def test_a_stream_whose_caller_has_dropped_it_behind_its_last_bytes_ends(run: Run) -> None:
    async def scenario() -> None:
        near, far = socket.socketpair()
        for end in (near, far):
            end.setblocking(False)
        written = bytearray()
        transport = SimpleNamespace(write=written.extend, set_protocol=lambda protocol: None)
        protocol = SimpleNamespace(set_parser=lambda parser, payload: None, connection_lost=lambda exc: None)
        answer: Any = SimpleNamespace(connection=SimpleNamespace(transport=transport, protocol=protocol), close=lambda: None)
        pump = Pump(answer, far, Channels(0, frozenset({1}), 0))
        far.send(b"unread")
        await asyncio.sleep(0)
        reset_with_bytes_before_it(near, b"last words")
        await pump.ended
        assert b"last words" in written

    run(scenario())

"""TCP through the agent, against real sockets: what the responder sees, and what comes back."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bridge.agent import dialling
from bridge.protocol.control import FlowRefused
from tests.unit.adapters.ssh_pair import Recorder
from tests.unit.agent.running import Running, run

APP = ("172.18.0.9", 41512)


@asynccontextmanager
async def responder(family: int = socket.AF_INET) -> AsyncIterator[socket.socket]:
    """A listening socket on the loopback of one family."""
    with socket.socket(family) as sock:
        sock.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
        sock.listen(1024)
        sock.setblocking(False)
        yield sock


async def accepted(listener: socket.socket) -> socket.socket:
    sock, _ = await asyncio.get_running_loop().sock_accept(listener)
    return sock


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
def test_a_flow_reaches_the_responder_and_ends_in_order(tmp_path: Path, family: int) -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        async with Running(tmp_path) as running, responder(family) as listener:
            link = await running.link()
            channel = await link.open_flow(*listener.getsockname()[:2], APP)
            hears = Recorder()
            channel.attach(hears)
            with await accepted(listener) as sock:
                channel.write(b"SELECT 1")
                assert await loop.sock_recv(sock, 100) == b"SELECT 1"
                channel.write_eof()
                assert await loop.sock_recv(sock, 100) == b""
                await loop.sock_sendall(sock, b"1 row")  # half-closed: the responder goes on
            await hears.eof.wait()
            assert hears.data == b"1 row"
            channel.close()

    run(test())


def test_a_name_is_looked_up_from_inside_the_target(tmp_path: Path) -> None:
    async def test() -> None:
        async with Running(tmp_path) as running, responder() as listener:
            channel = await (await running.link()).open_flow("localhost", listener.getsockname()[1], APP)
            (await accepted(listener)).close()
            channel.abort()

    run(test())


def test_of_a_names_addresses_the_first_that_answers_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with Running(tmp_path) as running, responder() as listener:
            link = await running.link()
            places = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in ("127.0.0.2", "127.0.0.1")]
            monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **more: places)
            channel = await link.open_flow("two.places", listener.getsockname()[1], APP)
            (await accepted(listener)).close()
            channel.abort()

    run(test())


def test_look_ups_past_the_bound_are_put_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialling, "_LOOKUPS", 0)

    async def test() -> None:
        async with Running(tmp_path) as running:
            with pytest.raises(FlowRefused, match="EAGAIN"):
                await (await running.link()).open_flow("localhost", 80, APP)
            assert running.agent.dialler.flows == 0

    run(test())


@pytest.mark.parametrize("name", ["no\0name", "a..b", "x" * 64 + ".y", "xn--\x7f"])
def test_a_name_that_is_none_is_refused_and_counts_no_more(tmp_path: Path, name: str) -> None:
    async def test() -> None:
        async with Running(tmp_path) as running:
            link = await running.link()
            with pytest.raises(FlowRefused, match="EHOSTUNREACH"):
                await link.open_flow(name, 80, APP)
            assert running.agent.dialler.flows == 0
            assert not link.closed.done()

    run(test())


def test_a_refused_connection_is_econnrefused(tmp_path: Path) -> None:
    async def test() -> None:
        async with Running(tmp_path) as running:
            async with responder() as listener:
                free = listener.getsockname()[1]
            with pytest.raises(FlowRefused, match="ECONNREFUSED"):
                await (await running.link()).open_flow("127.0.0.1", free, APP)
            assert running.agent.dialler.flows == 0

    run(test())


@pytest.mark.parametrize(("address", "errno_name"), [("255.255.255.255", "ENETUNREACH"), ("no-such-name.invalid", "EHOSTUNREACH")])
def test_what_cannot_be_dialled_has_its_errno(tmp_path: Path, address: str, errno_name: str) -> None:
    async def test() -> None:
        async with Running(tmp_path) as running:
            with pytest.raises(FlowRefused) as caught:
                await (await running.link()).open_flow(address, 80, APP)
            assert caught.value.errno_name in (errno_name, "EACCES")  # a broadcast address is refused before it is routed

    run(test())


def test_a_reset_of_the_responder_becomes_a_reset(tmp_path: Path) -> None:
    async def test() -> None:
        async with Running(tmp_path) as running, responder() as listener:
            channel = await (await running.link()).open_flow(*listener.getsockname(), APP)
            hears = Recorder()
            channel.attach(hears)
            sock = await accepted(listener)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
            assert await hears.lost is True

    run(test())


def test_a_reset_of_the_app_reaches_the_responder_as_a_reset(tmp_path: Path) -> None:
    async def test() -> None:
        async with Running(tmp_path) as running, responder() as listener:
            channel = await (await running.link()).open_flow(*listener.getsockname(), APP)
            with await accepted(listener) as sock:
                channel.abort()
                with pytest.raises(ConnectionResetError):
                    await asyncio.get_running_loop().sock_recv(sock, 1)

    run(test())


def test_the_loss_of_the_link_resets_the_responders_connection(tmp_path: Path) -> None:
    async def test() -> None:
        async with Running(tmp_path) as running, responder() as listener:
            link = await running.link()
            await link.open_flow(*listener.getsockname(), APP)
            with await accepted(listener) as sock:
                link.close()
                with pytest.raises(ConnectionResetError):
                    await asyncio.get_running_loop().sock_recv(sock, 1)

    run(test())


def test_open_flows_survive_a_cut_of_the_carrier(tmp_path: Path) -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        async with Running(tmp_path) as running, responder() as listener:
            link = await running.link()
            running.transports[0].set_secret(await link.agree_secret())
            channel = await link.open_flow(*listener.getsockname(), APP)
            hears = Recorder()
            channel.attach(hears)
            with await accepted(listener) as sock:
                cut = asyncio.Event()
                running.transports[0].on_carrier_lost(lambda why: cut.set())
                server = running.agent._server.streams[0]
                server._carrier.close()  # the wire is cut: no side is told by the other
                await cut.wait()
                channel.write(b"written while the link was down")
                running.transports[0].carry(await running.carrier())
                assert await loop.sock_recv(sock, 100) == b"written while the link was down"
                await loop.sock_sendall(sock, b"and answered")
                assert await hears.until(12) == b"and answered"
            channel.abort()

    run(test())


def test_1000_flows_at_once_each_answered(tmp_path: Path) -> None:
    async def test() -> None:
        async with Running(tmp_path) as running:

            async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                with contextlib.suppress(ConnectionError):
                    writer.write(await reader.readexactly(4))
                    await reader.read()
                writer.close()

            server = await asyncio.start_server(echo, "127.0.0.1", 0, backlog=1024)
            link = await running.link()
            place = server.sockets[0].getsockname()
            channels = await asyncio.gather(*(link.open_flow(*place, APP) for _ in range(1000)))
            assert running.agent.dialler.flows == 1000
            hearing = []
            for number, channel in enumerate(channels):
                hearing.append(Recorder())
                channel.attach(hearing[-1])
                channel.write(number.to_bytes(4, "big"))
            for number, hears in enumerate(hearing):
                assert await hears.until(4) == number.to_bytes(4, "big")
            for channel in channels:
                channel.abort()
            server.close()

    run(test())


def test_flows_past_the_bound_are_refused_and_the_others_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialling, "MOST_FLOWS", 2)

    async def test() -> None:
        async with Running(tmp_path) as running, responder() as listener:
            link = await running.link()
            first = [await link.open_flow(*listener.getsockname(), APP) for _ in range(2)]
            with pytest.raises(FlowRefused, match="ENOBUFS"):
                await link.open_flow(*listener.getsockname(), APP)
            first[0].abort()
            with await accepted(listener) as sock, pytest.raises(ConnectionResetError):
                await asyncio.get_running_loop().sock_recv(sock, 1)
            await link.open_flow(*listener.getsockname(), APP)

    run(test())

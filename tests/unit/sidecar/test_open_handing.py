"""The bridge's socket for the agent: there where the folder is, open to who sees it, and never in the way of the bridge's start."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from bridge.protocol import handing as wire
from bridge.sidecar.handing import open_handing


def play(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(10):
            await scenario()

    asyncio.run(bounded())


async def knock(path: Path, packet: bytes) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.setblocking(False)
    sock.connect(str(path))
    sock.send(packet)
    return sock


def test_an_agent_that_was_invited_comes_in_and_is_asked_to_dial(tmp_path: Path) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        path = tmp_path / "bridge.sock"
        handing = open_handing(path)
        assert handing is not None
        assert stat.S_IMODE(path.stat().st_mode) == 0o666, "the agent is another user"
        live = asyncio.Event()
        handing.on_change = live.set
        with await knock(path, wire.encode(wire.Hello(bytes(32)))) as stranger:
            assert await loop.sock_recv(stranger, 100) == b""
        with await knock(path, wire.encode(wire.Hello(handing.invite()))) as agent:
            await live.wait()
            assert handing.begin("10.0.3.7", 80, lambda answer: True)
            assert wire.decode(await loop.sock_recv(agent, 100)) == wire.Dial(1, "10.0.3.7", 80)
            handing.drop("the test ends")

    play(scenario)


def test_without_the_folder_the_agent_is_elsewhere(tmp_path: Path) -> None:
    async def scenario() -> None:
        assert open_handing(tmp_path / "none/bridge.sock") is None

    play(scenario)


def test_a_socket_of_the_bridge_before_is_replaced(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "bridge.sock"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as old:
            old.bind(str(path))
        assert open_handing(path) is not None
        (await knock(path, b"?")).close()

    play(scenario)


def test_where_it_cannot_listen_flows_go_by_the_link_and_nothing_is_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        path = tmp_path / "bridge.sock"
        path.mkdir()
        before = len(os.listdir("/proc/self/fd"))
        assert open_handing(path) is None
        assert len(os.listdir("/proc/self/fd")) == before
        assert "flows go by the link" in caplog.text

    play(scenario)

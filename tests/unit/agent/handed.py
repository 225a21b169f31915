"""Both sides of handing in one loop, over their real socket, between a real app and a real server.

`play` sees to it that each scenario ends with no flow counted at the agent and no descriptor left in the process.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import uvloop

from bridge.adapters.unix_messages import UnixMessages
from bridge.agent.dialling import Dialler
from bridge.agent.handing import Hand, accept_invitation
from bridge.engine.accepting import Accepting
from bridge.engine.handing import HandedFlow, Handing
from bridge.engine.relay import prepare
from bridge.protocol import handing as wire

FDS = Path("/proc/self/fd")
RESET_AT_CLOSE = struct.pack("ii", 1, 0)


class Flow:
    """One connection of the app's: what the bridge was answered, and how it ended."""

    def __init__(self, changed: asyncio.Event) -> None:
        self.changed = changed
        self.answer: object = None
        self.ended: list[tuple[int, int, str]] = []
        self.reset: Callable[[str], None] = lambda why: None

    def answered(self, answer: object) -> bool:
        assert self.answer is None
        self.answer = answer
        self.changed.set()
        return True

    def on_ended(self, sent: int, received: int, how: str) -> None:
        self.ended.append((sent, received, how))
        self.changed.set()

    def take(self, sock: socket.socket) -> None:
        assert isinstance(self.answer, HandedFlow)
        self.reset = self.answer.take(sock, self.on_ended)


class Pair:
    """Both sides in one loop. `bare()` instead of the bridge's engine: a socket that says what the test likes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.loop = asyncio.get_running_loop()
        self.changed = asyncio.Event()
        self.dialler = Dialler(self.loop, self.changed.set)
        self.hand: Hand | None = None
        self.handing = Handing(UnixMessages)
        self.handing.on_change = self.changed.set
        self.open: list[socket.socket] = []
        self.bridge = self._listener()
        self.accepting = Accepting(self.bridge, lambda sock, _: self.handing.on_connection(sock))
        self.server = self.kept(socket.create_server(("127.0.0.1", 0)))
        self.server.setblocking(False)

    def kept(self, sock: socket.socket) -> socket.socket:
        self.open.append(sock)
        return sock

    def _listener(self) -> socket.socket:
        sock = self.kept(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK))
        sock.bind(str(self.path))
        sock.listen(4)
        return sock

    async def until(self, fact: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not fact():
                self.changed.clear()
                await self.changed.wait()

    async def live(self) -> Hand:
        self.accepting.start()
        self.hand = accept_invitation(self.dialler, self.handing.invite(), self.path)
        assert self.hand is not None
        await self.until(lambda: self.handing.live)
        return self.hand

    async def bare(self) -> socket.socket:
        """The agent's peer, which has heard its Hello."""
        self.hand = accept_invitation(self.dialler, bytes(32), self.path)
        sock, _ = await self.loop.sock_accept(self.bridge)
        self.kept(sock)
        assert wire.decode(await self.recv(sock)) == wire.Hello(bytes(32))
        return sock

    async def dialled(self, port: int | None = None) -> Flow:
        flow = Flow(self.changed)
        assert self.handing.begin("127.0.0.1", port or self.server.getsockname()[1], flow.answered)
        await self.until(lambda: flow.answer is not None)
        return flow

    async def accepted(self) -> socket.socket:
        async with asyncio.timeout(10):
            sock, _ = await self.loop.sock_accept(self.server)
        return self.kept(sock)

    def app(self) -> tuple[socket.socket, socket.socket]:
        """The app's own end, and what the bridge has accepted."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            app = self.kept(socket.create_connection(listener.getsockname(), 5))
            ours, _ = listener.accept()
        app.setblocking(False)
        ours.setblocking(False)
        prepare(ours)
        return app, self.kept(ours)

    async def joined(self) -> tuple[Flow, socket.socket, socket.socket]:
        """A flow that works, the app and the server."""
        flow, (app, ours) = await self.dialled(), self.app()
        server = await self.accepted()
        flow.take(ours)
        await self.loop.sock_sendall(app, b"ping")
        assert await self.recv(server) == b"ping"
        await self.loop.sock_sendall(server, b"pong")
        assert await self.recv(app) == b"pong"
        return flow, app, server

    async def recv(self, sock: socket.socket, size: int = 65536) -> bytes:
        async with asyncio.timeout(10):
            return await self.loop.sock_recv(sock, size)

    async def is_reset(self, *socks: socket.socket) -> None:
        for sock in socks:
            with pytest.raises(ConnectionResetError):
                await self.recv(sock)

    async def close(self) -> None:
        await self.until(lambda: self.dialler.flows == 0)
        if self.hand is not None:
            self.hand.close()
        self.handing.drop("the test ends")
        self.accepting.stop()
        for sock in self.open:
            sock.close()


def play(tmp_path: Path, scenario: Callable[[Pair], Awaitable[None]]) -> None:
    async def main() -> None:
        faults: list[object] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: faults.append(context))
        await loop.getaddrinfo("127.0.0.1", 0)  # what the loop itself opens is open
        before = len(os.listdir(FDS))
        async with asyncio.timeout(30):
            pair = Pair(tmp_path / "bridge.sock")
            await scenario(pair)
            await pair.close()
            assert pair.dialler.flows == 0
            await asyncio.sleep(0.02)  # a _Newcomer's socket goes in the turn after its end
        assert len(os.listdir(FDS)) == before
        assert faults == []

    uvloop.run(main())

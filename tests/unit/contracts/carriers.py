"""The contract of every carrier: a resumable stream runs over it, in both directions, until it is cut or closed.

How to use it: write a factory that makes one carrier, an async function that returns its two ends as descriptors (of one
socket, or a read end and a write end), the client's and the agent's, and call `check_carrier(factory)`. Levels with a real
engine or cluster bring factories of their own: the agent's end is a socket of the test's, listening as agent.sock in a folder
that is mounted where `python -m bridge.agent door` looks for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import socket
import subprocess
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from bridge.adapters.resumable import ResumableServer, ResumableTransport

Ends = tuple[int, ...]


@dataclass
class Made:
    """Both ends of one carrier, and how to cut it in the middle; `cut` comes at the end of every use, perhaps a second time."""

    client: Ends
    agent: Ends
    cut: Callable[[], None]


Factory = Callable[[], Awaitable[Made]]


class Recorder(asyncio.Protocol):
    """Keeps what it hears; `write` honours back-pressure."""

    def __init__(self) -> None:
        self.got = bytearray()
        self.transport: ResumableTransport | None = None
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.pauses = 0
        self._room = asyncio.Event()
        self._room.set()
        self._grown = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, ResumableTransport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        assert not self.lost.done()
        self.got += data
        self._grown.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)
        self._grown.set()

    def pause_writing(self) -> None:
        self.pauses += 1
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    async def write(self, data: bytes, piece: int = 65536) -> None:
        assert self.transport is not None
        for start in range(0, len(data), piece):
            await self._room.wait()
            self.transport.write(data[start : start + piece])

    async def until(self, size: int) -> bytes:
        while len(self.got) < size:
            assert not self.lost.done(), f"ended after {len(self.got)} of {size} bytes"
            self._grown.clear()
            await self._grown.wait()
        return bytes(self.got)


class Pair:
    """A client and an agent's server; `carry(made)` joins them by a carrier. The secret is agreed at once."""

    def __init__(self, linger_s: float = 60.0) -> None:
        self.server = ResumableServer(self._on_stream, linger_s)
        self.client = Recorder()
        self.agent: Recorder | None = None
        self.cuts: list[str] = []
        self.secret = os.urandom(32)
        self._arrived = asyncio.Event()
        self._changed = asyncio.Event()
        self.transport = ResumableTransport.client(asyncio.get_running_loop())
        self.transport.on_carrier_lost(self._on_cut)
        self.transport.on_carried(self._changed.set)
        self.transport.start(self.client)

    async def carry(self, made: Made) -> None:
        """Returns when bytes flow."""
        self.server.accept(*made.agent)
        self._changed.clear()
        self.transport.carry(*made.client)
        while not self.transport.attached:
            assert not self.client.lost.done(), self.client.lost.result()
            await self._changed.wait()
            self._changed.clear()
        await self._arrived.wait()

    async def until_cut(self) -> str:
        while not self.cuts:
            self._changed.clear()
            await self._changed.wait()
        return self.cuts.pop()

    def _on_cut(self, why: str) -> None:
        self.cuts.append(why)
        self._changed.set()

    def _on_stream(self, transport: ResumableTransport) -> None:
        self.agent = Recorder()
        transport.start(self.agent)
        self.transport.set_secret(self.secret)
        transport.set_secret(self.secret)
        self._arrived.set()


async def check_carrier(factory: Factory, size: int = 3 << 20) -> None:
    """Run the whole contract; raises AssertionError."""
    await bytes_pass_both_ways_at_once(factory, size)
    await a_cut_loses_and_repeats_nothing(factory, size)
    await an_end_in_order_delivers_everything(factory, size)


async def bytes_pass_both_ways_at_once(factory: Factory, size: int) -> None:
    pair, made = Pair(), await factory()
    await pair.carry(made)
    assert pair.agent is not None
    up, down = noise(1, size), noise(2, size)
    async with asyncio.TaskGroup() as group:
        group.create_task(pair.client.write(up), name="up")
        group.create_task(pair.agent.write(down), name="down")
        group.create_task(pair.agent.until(size), name="hear-up")
        group.create_task(pair.client.until(size), name="hear-down")
    assert digest(pair.agent.got) == digest(up)
    assert digest(pair.client.got) == digest(down)
    await _end(pair)
    made.cut()


async def a_cut_loses_and_repeats_nothing(factory: Factory, size: int) -> None:
    pair = Pair()
    up, down = noise(3, size), noise(4, size)
    made = await factory()
    await pair.carry(made)
    assert pair.agent is not None
    async with asyncio.TaskGroup() as group:
        group.create_task(pair.client.write(up), name="up")
        group.create_task(pair.agent.write(down), name="down")
        for quarter in (1, 2, 3):
            await pair.agent.until(size * quarter // 4)
            made.cut()
            await pair.until_cut()
            made = await factory()
            await pair.carry(made)
        await pair.agent.until(size)
        await pair.client.until(size)
    assert digest(pair.agent.got) == digest(up)
    assert digest(pair.client.got) == digest(down)
    await _end(pair)
    made.cut()


async def an_end_in_order_delivers_everything(factory: Factory, size: int) -> None:
    pair, made = Pair(), await factory()
    await pair.carry(made)
    assert pair.agent is not None
    last = noise(5, size)
    # unread bytes at the closing end: a socket closed over them would reset, and destroy what is still under way
    talking = asyncio.ensure_future(pair.agent.write(bytes(64 << 20)))
    await pair.client.until(1)
    pair.transport.write(last)
    pair.transport.close()
    assert await pair.agent.lost is None
    talking.cancel()
    assert digest(pair.agent.got) == digest(last)
    assert await pair.client.lost is None
    assert pair.server.streams == []
    made.cut()


async def _end(pair: Pair) -> None:
    assert pair.agent is not None
    pair.transport.close()
    assert await pair.client.lost is None
    assert await pair.agent.lost is None


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def digest(data: bytes | bytearray) -> str:
    return hashlib.sha256(data).hexdigest()


# Carriers that every machine has

_made: list[Callable[[], None]] = []


def cut_all() -> None:
    """What tests left open."""
    while _made:
        _made.pop()()


async def socket_pair() -> Made:
    client, agent = socket.socketpair()
    return _sockets(client, agent)


async def tcp() -> Made:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        agent, _ = listener.accept()
    return _sockets(client, agent)


async def pipe_pair() -> Made:
    """As under `exec`: one pipe each way, and processes in the middle that can be killed."""
    return _pipes()


def _pipes() -> Made:
    (up_in, up_write), (up_read, up_out) = os.pipe(), os.pipe()
    (down_in, down_write), (down_read, down_out) = os.pipe(), os.pipe()
    pumps = [subprocess.Popen(["cat"], stdin=source, stdout=sink) for source, sink in ((up_in, up_out), (down_in, down_out))]
    for fd in (up_in, up_out, down_in, down_out):
        os.close(fd)

    def cut() -> None:
        for pump in pumps:
            pump.kill()
            pump.wait()

    return Made((down_read, up_write), (up_read, down_write), cut)


def _sockets(client: socket.socket, agent: socket.socket) -> Made:
    middle = client.dup()

    def cut() -> None:
        with middle, contextlib.suppress(OSError):
            middle.shutdown(socket.SHUT_RDWR)

    _made.append(cut)
    return Made((client.detach(),), (agent.detach(),), cut)

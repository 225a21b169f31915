"""The host CLI's end of the bridge's door: messages in both directions, carriers handed in.

Theory of operation: on an engine that shares our files the door's socket appears in the session's run/ folder, and a carrier is a
descriptor that we pass by SCM_RIGHTS: not one byte of it goes through this process afterwards. Elsewhere (a remote engine, a
virtual machine) each connection to the door is an exec of `python -m bridge.sidecar door …` in the bridge's container, and
`join` pumps a carrier's bytes through it.

Limits: what the bridge says is a RemoteProtocolError where it is no message; a door that closes is LinkLost.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol

from bridge.errors import LinkLost
from bridge.protocol import door
from bridge.protocol.door import LineReader, ToBridge, ToHost

log = logging.getLogger(__name__)

_DOOR_COMMAND = ("/opt/mbridge/bin/python", "-m", "bridge.sidecar", "door")
_READ_BYTES = 256 << 10
_STDOUT = 1


class Writer(Protocol):
    def write(self, data: bytes | bytearray | memoryview) -> None: ...
    async def drain(self) -> None: ...


class Joined(Protocol):
    """A process in a container, joined to a stream (adapters/docker/wire.py: Hijacked)."""

    @property
    def writer(self) -> Writer: ...
    def chunks(self) -> AsyncIterator[tuple[int, bytes]]: ...
    def end_input(self) -> None: ...
    def close(self) -> None: ...


class HostDoor(Protocol):
    async def send(self, message: ToBridge) -> None:
        """Raises LinkLost when the bridge is gone."""

    def messages(self) -> AsyncIterator[ToHost]:
        """Until the bridge closes the door."""

    async def bring(self, dial_id: int, via: str, carrier: socket.socket) -> None:
        """Hand a carrier over; it is ours no more."""

    def close(self) -> None: ...


class SocketDoor:
    """The door as a Unix socket on this machine. Make it with `connect`."""

    def __init__(self, path: Path, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._path, self._reader, self._writer = path, reader, writer

    @classmethod
    async def connect(cls, path: Path) -> SocketDoor:
        """Raises OSError: not there (yet), or nobody listens."""
        sock = await _connect(path)
        try:
            await asyncio.get_running_loop().sock_sendall(sock, b'{"type": "control"}\n')
            return cls(path, *await asyncio.open_unix_connection(sock=sock))
        except BaseException:
            sock.close()
            raise

    async def send(self, message: ToBridge) -> None:
        await _send(self._writer, message)

    async def messages(self) -> AsyncIterator[ToHost]:
        lines = LineReader()
        with contextlib.suppress(ConnectionError):
            while data := await self._reader.read(_READ_BYTES):
                for message in _decoded(lines.feed(data)):
                    yield message

    async def bring(self, dial_id: int, via: str, carrier: socket.socket) -> None:
        line = json.dumps({"type": "carrier", "id": dial_id, "via": via}).encode() + b"\n"
        try:
            with carrier, await _connect(self._path) as sock:
                socket.send_fds(sock, [line], [carrier.fileno()])
        except OSError as exc:
            raise LinkLost(f"the bridge takes no carrier: {exc.strerror or exc}") from exc

    def close(self) -> None:
        self._writer.close()


class ExecDoor:
    """The door through exec; `run` starts a command in the bridge's container."""

    def __init__(self, run: Callable[[Sequence[str]], Awaitable[Joined]], control: Joined) -> None:
        self._run, self._control = run, control
        self._pumps: set[asyncio.Task[None]] = set()

    @classmethod
    async def connect(cls, run: Callable[[Sequence[str]], Awaitable[Joined]]) -> ExecDoor:
        return cls(run, await run((*_DOOR_COMMAND, "control")))

    async def send(self, message: ToBridge) -> None:
        await _send(self._control.writer, message)

    async def messages(self) -> AsyncIterator[ToHost]:
        lines = LineReader()
        async for kind, data in self._control.chunks():
            if kind != _STDOUT:
                log.info("< bridge's door: %s", data.decode(errors="replace").rstrip()[:256])
                continue
            for message in _decoded(lines.feed(data)):
                yield message

    async def bring(self, dial_id: int, via: str, carrier: socket.socket) -> None:
        joined = await self._run((*_DOOR_COMMAND, "carrier", str(dial_id), via))
        task = asyncio.get_running_loop().create_task(join(carrier, joined), name=f"carrier-{dial_id}")
        self._pumps.add(task)
        task.add_done_callback(self._pumps.discard)

    def close(self) -> None:
        self._control.close()
        for task in self._pumps:
            task.cancel()


async def join(sock: socket.socket, joined: Joined) -> None:
    """Pump between a socket and a joined process until either ends; both are closed then."""
    loop = asyncio.get_running_loop()
    sock.setblocking(False)

    async def inwards() -> None:
        while data := await loop.sock_recv(sock, _READ_BYTES):
            joined.writer.write(data)
            await joined.writer.drain()

    async def outwards() -> None:
        async for kind, data in joined.chunks():
            if kind == _STDOUT:
                await loop.sock_sendall(sock, data)
            else:
                log.info("< %s", data.decode(errors="replace").rstrip()[:256])

    tasks = [loop.create_task(inwards(), name="carrier-in"), loop.create_task(outwards(), name="carrier-out")]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if not task.cancelled() and task.exception() is not None:
                log.debug("x carrier: %s", task.exception())
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        joined.close()
        sock.close()


async def _send(writer: Writer, message: ToBridge) -> None:
    try:
        writer.write(door.encode(message))
        await writer.drain()
    except (ConnectionError, RuntimeError) as exc:
        raise LinkLost("the bridge is gone") from exc


def _decoded(lines: Sequence[bytes]) -> list[ToHost]:
    messages = [door.decode(line) for line in lines if line.strip()]
    return [message for message in messages if isinstance(message, ToHost)]


async def _connect(path: Path) -> socket.socket:
    """By way of the folder's descriptor where the path is longer than a Unix address may be (108 bytes, unix(7))."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    folder = -1
    try:
        address = str(path)
        if len(os.fsencode(address)) > 100:
            folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            address = f"/proc/self/fd/{folder}/{path.name}"
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    finally:
        if folder >= 0:
            os.close(folder)
    return sock

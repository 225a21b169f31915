"""Both ends of one SSH connection in one process, over a socket pair; the far end's channels are driven by the test."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import asyncssh

from bridge.adapters.ssh.channel import Channel
from bridge.adapters.ssh.client import SshConnection, connect_ssh
from bridge.adapters.ssh.server import serve_ssh
from bridge.adapters.ssh.windows import Windows

MiB = 1 << 20


def new_key() -> tuple[str, str]:
    """Private and public half, as texts."""
    key = asyncssh.generate_private_key("ssh-ed25519")
    return key.export_private_key().decode(), key.export_public_key().decode().strip()


class SocketTransport:
    """The narrow part of a ResumableTransport that SSH needs, over a plain socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.transport: asyncio.Transport | None = None

    def start(self, protocol: asyncio.Protocol) -> None:
        loop: Any = asyncio.get_running_loop()
        self._sock.setblocking(False)
        self.transport = loop._make_socket_transport(self._sock, protocol)


class Recorder:
    """A sink that keeps what it hears."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.eof = asyncio.Event()
        self.lost: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.writable = asyncio.Event()
        self.writable.set()
        self.full = asyncio.Event()
        self._grown = asyncio.Event()
        self.on_bytes: Callable[[bytes], None] | None = None

    def on_data(self, data: bytes | memoryview) -> None:
        assert not self.eof.is_set()
        assert not self.lost.done()
        if self.on_bytes is not None:
            self.on_bytes(bytes(data))
        else:
            self.data += data
        self._grown.set()

    def on_eof(self) -> None:
        assert not self.lost.done()
        self.eof.set()

    def on_lost(self, reset: bool) -> None:
        self.lost.set_result(reset)

    def on_writable(self, writable: bool) -> None:
        if writable:
            self.writable.set()
        else:
            self.full.set()
            self.writable.clear()

    async def until(self, size: int) -> bytes:
        while len(self.data) < size:
            self._grown.clear()
            await self._grown.wait()
        return bytes(self.data)


class FarSide:
    """The agent's services, by hand: `dialled` has each open request; what becomes of it is the test's word."""

    def __init__(self) -> None:
        self.dialled: asyncio.Queue[tuple[Channel, str, int]] = asyncio.Queue()
        self.subsystems: dict[str, Callable[[Channel], None]] = {}
        self.is_connected = False
        self.is_lost = asyncio.Event()
        self.refuse_all: str | None = None

    def dial(self, channel: Channel, address: str, port: int) -> None:
        if self.refuse_all is not None:
            channel.refuse(self.refuse_all)
        else:
            self.dialled.put_nowait((channel, address, port))

    def subsystem(self, channel: Channel, name: str) -> bool:
        serve = self.subsystems.get(name)
        if serve is not None:
            serve(channel)
        return serve is not None

    def connected(self) -> None:
        self.is_connected = True

    def lost(self) -> None:
        self.is_lost.set()


class Pair:
    """`async with Pair() as pair`: pair.ssh is the bridge's end, pair.far the agent's."""

    def __init__(
        self,
        *,
        client_key: tuple[str, str] | None = None,
        accepted_key: str | None = None,
        pinned_host_key: str | None = None,
        limit: int = 256 * MiB,
    ) -> None:
        self._client_key = client_key or new_key()
        self._accepted = accepted_key or self._client_key[1]
        self._pinned = pinned_host_key
        self._limit = limit
        self.far = FarSide()
        self.ssh: SshConnection

    async def __aenter__(self) -> Pair:
        near, far = socket.socketpair()
        host_key = asyncssh.generate_private_key("ssh-ed25519")
        self.near_windows, self.far_windows = Windows(self._limit), Windows(self._limit)
        self.server_transport = SocketTransport(far)
        self.client_transport = SocketTransport(near)
        self.server = serve_ssh(
            self.server_transport,
            host_key=host_key,
            client_key=asyncssh.import_public_key(self._accepted),
            services=self.far,
            windows=self.far_windows,
        )
        pinned = self._pinned or host_key.export_public_key().decode().strip()
        try:
            self.ssh = await connect_ssh(self.client_transport, private_key=self._client_key[0], host_key=pinned, windows=self.near_windows)
        except BaseException:
            self.server.abort()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.ssh.close()
        self.server.abort()
        await asyncio.wait_for(self.ssh.closed, 2)
        await asyncio.wait_for(self.far.is_lost.wait(), 2)

    async def open(self, address: str = "10.0.0.7", port: int = 5432) -> tuple[Channel, Channel, Recorder, Recorder]:
        """An open flow: bridge's end, agent's end, and what each hears."""
        opening = asyncio.ensure_future(self.ssh.open_flow(address, port, ("172.18.0.3", 41512)))
        far, _, _ = await self.far.dialled.get()
        far.accept()
        near = await opening
        near_hears, far_hears = Recorder(), Recorder()
        near.attach(near_hears)
        far.attach(far_hears)
        return near, far, near_hears, far_hears

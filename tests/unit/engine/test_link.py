"""Supervisor, resumable streams, SSH and agent together, in one process: the carriers alone are the test's to cut."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import socket
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import asyncssh

from bridge.adapters.resumable import ResumableTransport
from bridge.adapters.ssh import connect_ssh
from bridge.agent.serving import Agent
from bridge.engine.supervisor import Supervisor
from bridge.protocol import preamble
from bridge.protocol.door import LinkStatus

MiB = 1 << 20


class Sink:
    """The app's end of a flow."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()
        self.size = 0
        self.lost: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.writable = asyncio.Event()
        self.writable.set()
        self.grown = asyncio.Event()

    def on_data(self, data: bytes | memoryview) -> None:
        self.hash.update(data)
        self.size += len(data)
        self.grown.set()

    def on_eof(self) -> None:
        """Nobody ends a side here."""

    def on_lost(self, reset: bool) -> None:
        if not self.lost.done():
            self.lost.set_result(reset)

    def on_writable(self, writable: bool) -> None:
        if writable:
            self.writable.set()
        else:
            self.writable.clear()

    async def until(self, size: int) -> None:
        while self.size < size:
            self.grown.clear()
            await self.grown.wait()


class World:
    """The host beside the supervisor: it dials the agent that `agent` names now."""

    def __init__(self, agent: Agent, key: asyncssh.SSHKey) -> None:
        self.agent = agent
        self.statuses: list[LinkStatus] = []
        self.cuts: list[socket.socket] = []
        loop = asyncio.get_running_loop()
        self.link = Supervisor(
            private_key=key.export_private_key().decode(),
            host_key=agent.host_key,
            agent_id=agent.agent_id,
            dial=lambda number, avoid: self._dial(loop, number, avoid),
            on_status=self.statuses.append,
            make_transport=lambda: ResumableTransport.client(loop),
            connect_ssh=connect_ssh,
            now=loop.time,
            random=lambda: 0.9,
        )

    def cut(self) -> None:
        cuts, self.cuts = self.cuts, []
        for sock in cuts:
            with sock, contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _dial(self, loop: asyncio.AbstractEventLoop, number: int, avoid: Sequence[str]) -> None:
        async def bring() -> None:
            sock = socket.socket()
            sock.setblocking(False)
            await loop.sock_connect(sock, ("127.0.0.1", self.agent.port))
            first = await loop.sock_recv(sock, preamble.SIZE)
            preamble.check(first, self.agent.agent_id)
            self.cuts.append(sock.dup())
            self.link.carrier(number, "direct", (sock.detach(),))

        self.bringing = asyncio.ensure_future(bring())


@contextlib.asynccontextmanager
async def agent_for(key: asyncssh.SSHKey, folder: Path) -> AsyncIterator[Agent]:
    public = key.export_public_key().decode().strip()
    async with Agent(listen="loopback", client_key=public, ttl_s=60, socket_path=folder / "agent.sock", etc=folder) as agent:
        yield agent


def files_of_the_target(folder: Path) -> Path:
    folder.mkdir()
    (folder / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    (folder / "hosts").write_text("127.0.0.1 localhost\n")
    return folder


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


def test_A41_a_flow_goes_on_over_cuts_of_its_carrier_with_every_byte_in_its_place(tmp_path: Path) -> None:
    async def test() -> None:
        key = asyncssh.generate_private_key("ssh-ed25519")
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        data = random.Random(1).randbytes(6 * MiB)
        async with server, agent_for(key, files_of_the_target(tmp_path / "etc")) as agent, asyncio.TaskGroup() as group:
            world = World(agent, key)
            running = group.create_task(world.link.run(), name="run")
            channel, sink = await world.link.open_flow(*server.sockets[0].getsockname(), ("172.18.0.3", 40000)), Sink()
            channel.attach(sink)

            async def write() -> None:
                for start in range(0, len(data), 65536):
                    await sink.writable.wait()
                    channel.write(data[start : start + 65536])

            writing = group.create_task(write(), name="write")
            for third in (1, 2):
                await sink.until(third * len(data) // 3)
                world.cut()
            await writing
            await sink.until(len(data))
            assert sink.hash.hexdigest() == hashlib.sha256(data).hexdigest()
            assert [status.state for status in world.statuses].count("reconnecting") >= 2
            assert not sink.lost.done()
            await world.link.stop()
            await running
            world.cut()
            assert await sink.lost is True
            assert (await world.link.facts()).resolv_conf == "nameserver 127.0.0.1\n"

    asyncio.run(asyncio.wait_for(test(), 20))


def test_a_new_agent_resets_open_flows_and_serves_new_ones(tmp_path: Path) -> None:
    async def test() -> None:
        key = asyncssh.generate_private_key("ssh-ed25519")
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        target = server.sockets[0].getsockname()
        async with (
            server,
            agent_for(key, files_of_the_target(tmp_path / "1")) as first,
            agent_for(key, files_of_the_target(tmp_path / "2")) as second,
            asyncio.TaskGroup() as group,
        ):
            world = World(first, key)
            running = group.create_task(world.link.run(), name="run")
            channel, sink = await world.link.open_flow(*target, ("172.18.0.3", 40000)), Sink()
            channel.attach(sink)
            world.agent = second
            world.link.agent_changed(second.host_key, second.agent_id)
            assert await sink.lost is True
            channel, sink = await world.link.open_flow(*target, ("172.18.0.3", 40001)), Sink()
            channel.attach(sink)
            channel.write(b"again")
            await sink.until(5)
            await world.link.stop()
            await running
            world.cut()

    asyncio.run(asyncio.wait_for(test(), 20))

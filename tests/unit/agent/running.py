"""An agent in the test's own process, on real sockets of the loopback, and a bridge's link to it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import asyncssh

from bridge.adapters.resumable import ResumableTransport
from bridge.adapters.ssh import ControlChannel, SshConnection, UdpChannel, connect_ssh
from bridge.agent.serving import Agent
from bridge.protocol import control, preamble, udp


def run(test: Coroutine[Any, Any, None], seconds: float = 20) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(seconds):
            await test

    asyncio.run(bounded())


class Running:
    """`async with Running(tmp_path) as running`: running.agent, and running.link() for a bridge."""

    def __init__(self, tmp_path: Path, *, ttl_s: float = 60, nameservers: str = "nameserver 127.0.0.1\n", dns_port: int = 53) -> None:
        self._key = asyncssh.generate_private_key("ssh-ed25519")
        (tmp_path / "etc").mkdir()
        (tmp_path / "etc/hostname").write_text("shop-api\n")
        (tmp_path / "etc/hosts").write_text("127.0.0.1 localhost\n172.18.0.3 shop-api\n")
        (tmp_path / "etc/resolv.conf").write_text(nameservers)
        self._tmp_path = tmp_path
        self._ttl_s = ttl_s
        self._dns_port = dns_port
        self._links: list[SshConnection] = []
        self.transports: list[ResumableTransport] = []
        self.agent: Agent

    async def __aenter__(self) -> Running:
        self.agent = Agent(
            listen="loopback",
            client_key=self._key.export_public_key().decode(),
            ttl_s=self._ttl_s,
            socket_path=self._tmp_path / "run/agent.sock",
            etc=self._tmp_path / "etc",
            dns_port=self._dns_port,
            hand_path=self._tmp_path / "bridge.sock",
        )
        await self.agent.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        for link in self._links:
            link.close()
        await self.agent.__aexit__(*exc)
        for link in self._links:
            await asyncio.wait_for(link.closed, 2)

    async def carrier(self) -> socket.socket:
        """A dialled carrier whose preamble has been checked, as the host hands it on."""
        loop = asyncio.get_running_loop()
        sock = socket.socket()
        sock.setblocking(False)
        await loop.sock_connect(sock, ("127.0.0.1", self.agent.port))
        preamble.check(await loop.sock_recv(sock, preamble.SIZE), self.agent.agent_id)
        return sock

    async def link(self) -> SshConnection:
        transport = ResumableTransport.client(asyncio.get_running_loop())
        transport.carry(await self.carrier())
        link = await connect_ssh(transport, private_key=self._key.export_private_key().decode(), host_key=self.agent.host_key)
        self._links.append(link)
        self.transports.append(transport)
        return link

    async def control(self) -> tuple[ControlChannel, asyncio.Queue[control.Message]]:
        messages: asyncio.Queue[control.Message] = asyncio.Queue()
        return await (await self.link()).open_control(messages.put_nowait), messages

    async def udp(self) -> tuple[UdpChannel, asyncio.Queue[udp.Message]]:
        messages: asyncio.Queue[udp.Message] = asyncio.Queue()
        return await (await self.link()).open_udp(messages.put_nowait), messages

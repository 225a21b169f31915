"""The link kept up: what its user gets and what its status says while carriers come and go. SSH and carriers are fakes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from bridge.engine.handing import Handing
from bridge.engine.supervisor import Supervisor
from bridge.errors import BridgeError, LinkError, LinkLost
from bridge.model.facts import Facts
from bridge.protocol import control, udp
from bridge.protocol import handing as wire
from bridge.protocol.door import LinkStatus
from tests.unit.engine.handed import Peer
from tests.unit.virtual import run

FACTS = Facts("orders-0", ("10.0.3.7/24",), "nameserver 10.0.0.10\n", "")
APP = ("172.18.0.3", 40000)


class Transport:
    """A stream whose carrier the test cuts. `refuses`: the agent no longer knows it."""

    def __init__(self) -> None:
        self.expecting = self.attached = False
        self.carriers: list[tuple[int, ...]] = []
        self.secret = b""
        self.ssh: Ssh | None = None
        self.refuses = self.aborted = False
        self._lost: Callable[[str], None] = lambda why: None
        self._carried: Callable[[], None] = lambda: None

    @property
    def resumable(self) -> bool:
        return bool(self.secret)

    def carry(self, *fds: int) -> None:
        self.carriers.append(fds)
        if self.refuses:
            assert self.ssh is not None
            self.ssh.end("the agent refused the stream: the stream is not known here")
            return
        self.attached = True
        self._carried()

    def on_carrier_lost(self, callback: Callable[[str], None]) -> None:
        self._lost = callback

    def on_carried(self, callback: Callable[[], None]) -> None:
        self._carried = callback

    def set_secret(self, secret: bytes) -> None:
        self.secret = secret

    def abort(self) -> None:
        self.attached, self.aborted = False, True

    def cut(self, why: str = "the far end closed the carrier") -> None:
        self.attached = False
        self._lost(why)


class Ssh:
    def __init__(self, world: World, transport: Transport, host_key: str) -> None:
        self.world = world
        self.transport = transport
        self.host_key = host_key
        self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.on_message: Callable[[control.Message], None] | None = None
        self.on_udp: Callable[[udp.Message], None] | None = None
        self.asked: list[control.Ask] = []
        self.invitations: list[control.Hand] = []
        self.datagrams: list[udp.Message] = []
        self.flows: list[tuple[str, int]] = []
        transport.ssh = self

    async def open_flow(self, address: str, port: int, app: tuple[str, int]) -> str:
        if self.closed.done():
            raise LinkLost("the link is closed")
        self.flows.append((address, port))
        self.world.changed.set()
        if port == 1:
            raise control.FlowRefused("ECONNREFUSED")
        if port == 2:  # a dial without an answer
            await asyncio.wait((self.closed,))
            raise LinkLost("the link is closed")
        return f"flow to {address}:{port} by {self.host_key}"

    def begin_flow(self, address: str, port: int, app: tuple[str, int], answered: Callable[[Any], bool]) -> bool:
        self.flows.append((address, port))
        answered(f"flow to {address}:{port} by {self.host_key}")
        return True

    async def open_control(self, on_message: Callable[[control.Message], None]) -> Ssh:
        self.on_message = on_message
        on_message(control.FactsTold(FACTS))
        return self

    async def open_udp(self, on_message: Callable[[udp.Message], None]) -> Datagrams:
        self.on_udp = on_message
        return Datagrams(self.datagrams)

    async def agree_secret(self) -> bytes:
        if self.world.fails_at_secret:
            self.world.fails_at_secret -= 1
            raise LinkLost("the carrier broke during the handshake")
        return bytes(32)

    def send(self, message: control.Message) -> None:
        if isinstance(message, control.Hand):
            self.invitations.append(message)
        else:
            assert isinstance(message, control.Ask)
            self.asked.append(message)
        self.world.changed.set()

    def answer(self, answer: bytes = b"answer", error: str | None = None) -> None:
        assert self.on_message is not None
        self.on_message(control.Answer(self.asked[-1].number, answer, error))

    def close(self) -> None:
        self.end("closed")

    def end(self, why: str) -> None:
        self.transport.attached = False
        if not self.closed.done():
            self.closed.set_result(why)


class Datagrams:
    def __init__(self, sent: list[udp.Message]) -> None:
        self.sent = sent

    def send(self, message: udp.Message) -> None:
        self.sent.append(message)


class World:
    """The host beside the supervisor. While `brings` each dial gets a carrier at once."""

    def __init__(self, handed: bool) -> None:
        loop = asyncio.get_running_loop()
        self.peers: list[Peer] = []
        self.handing = Handing(self._make_messages) if handed else None
        self.brings = True
        self.why, self.final = "connection refused", False
        self.fails_at_secret = 0
        self.ssh_error: BridgeError | None = None
        self.dials: list[tuple[float, int, tuple[str, ...]]] = []
        self.statuses: list[LinkStatus] = []
        self.transports: list[Transport] = []
        self.connections: list[Ssh] = []
        self.changed = asyncio.Event()
        self.supervisor = Supervisor(
            private_key="private",
            host_key="key-1",
            agent_id="a" * 16,
            dial=self.dial,
            on_status=self.on_status,
            make_transport=self.make_transport,
            connect_ssh=self.connect_ssh,
            now=lambda: 1_000_000 + loop.time(),
            random=lambda: 0.0,
            handing=self.handing,
        )

    def _make_messages(self, sock: socket.socket, on_message: Any, on_lost: Any, **_: Any) -> Peer:
        sock.close()
        self.peers.append(Peer(on_message, on_lost))
        return self.peers[-1]

    def handed(self) -> Peer:
        """The agent has followed the last invitation."""
        assert self.handing is not None
        self.handing.on_connection(socket.socket())
        self.peers[-1].say(wire.Hello(self.control.invitations[-1].token))
        return self.peers[-1]

    def dial(self, number: int, avoid: Sequence[str]) -> None:
        loop = asyncio.get_running_loop()
        self.dials.append((loop.time(), number, tuple(avoid)))
        self.changed.set()
        if self.brings:
            via = "exec" if "direct" in avoid else "direct"
            loop.call_soon(self.supervisor.carrier, number, via, ())
        elif self.why:
            loop.call_soon(self.supervisor.carrier_failed, number, self.why, self.final)

    def on_status(self, status: LinkStatus) -> None:
        self.statuses.append(status)
        self.changed.set()

    def make_transport(self) -> Transport:
        self.transports.append(Transport())
        return self.transports[-1]

    async def connect_ssh(self, transport: Transport, *, private_key: str, host_key: str) -> Ssh:
        await asyncio.sleep(0)
        if self.ssh_error is not None:
            raise self.ssh_error
        ssh = Ssh(self, transport, host_key)
        self.connections.append(ssh)
        return ssh

    @property
    def control(self) -> Ssh:
        return next(ssh for ssh in reversed(self.connections) if ssh.on_message is not None)

    @property
    def flows(self) -> Ssh:
        return next(ssh for ssh in reversed(self.connections) if ssh.on_message is None)

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.changed.clear()
            await self.changed.wait()

    async def until_state(self, state: str) -> LinkStatus:
        await self.until(lambda: bool(self.statuses) and self.statuses[-1].state == state)
        return self.statuses[-1]


def with_link(
    test: Callable[[World, Supervisor], Coroutine[Any, Any, None]], *, fails: type[LinkError] | None = None, handed: bool = False
) -> None:
    """Run `test` beside a running supervisor, and stop that in order."""

    async def whole() -> None:
        world = World(handed)
        async with asyncio.TaskGroup() as group:
            running = group.create_task(_run(world.supervisor, fails), name="run")
            await test(world, world.supervisor)
            if fails is None:
                await world.supervisor.stop()
                assert all(ssh.closed.done() for ssh in world.connections)
            await running

    run(whole())


async def _run(supervisor: Supervisor, fails: type[LinkError] | None) -> None:
    if fails is None:
        await supervisor.run()
        return
    with pytest.raises(fails):
        await supervisor.run()

"""One SSH connection to the agent, kept up: its stream, its carriers one after another, and a new one when the old cannot go on.

    no stream ── dial ──> carrier ── SSH, secret, set-up ──> UP ── carrier lost ──> CUT ── dial, resume ──> UP
        ^                    └─ failed: wait, dial ─┐         │                      │
        └────────────────────────────────────────────┴─ closed, refused, other agent ┘

While CUT the SSH connection lives on and what is written to it waits. Waits between attempts grow (protocol/backoff.py); a
connection that was carried for 5 s has earned an attempt at once.

Limits: dials wait for their answer without a limit of their own: a host process that was killed may come back much later.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from bridge.errors import LinkError, LinkLost, RemoteProtocolError
from bridge.protocol.backoff import Backoff

log = logging.getLogger(__name__)

STEADY_S = 5.0
NEWS_S = 2.0  # carriers and news of the agent come on different paths: a new agent's carrier may be here before its key
FINAL_S = 30.0  # after a failure that the host calls final, unless it names another agent before


class Transport(Protocol):
    """What is asked of adapters.resumable.ResumableTransport."""

    expecting: bool

    @property
    def attached(self) -> bool: ...
    @property
    def resumable(self) -> bool: ...
    def carry(self, *fds: int) -> None: ...
    def on_carrier_lost(self, callback: Callable[[str], None]) -> None: ...
    def on_carried(self, callback: Callable[[], None]) -> None: ...
    def set_secret(self, secret: bytes) -> None: ...
    def abort(self) -> None: ...


class Ssh(Protocol):
    """What is asked of adapters.ssh.SshConnection. `closed` has the reason as its result."""

    @property
    def closed(self) -> asyncio.Future[str]: ...
    async def open_flow(self, address: str, port: int, app: tuple[str, int]) -> Any: ...
    def begin_flow(self, address: str, port: int, app: tuple[str, int], answered: Callable[[Any], bool]) -> bool: ...
    async def open_control(self, on_message: Callable[[Any], None]) -> Any: ...
    async def open_udp(self, on_message: Callable[[Any], None]) -> Any: ...
    async def agree_secret(self) -> bytes: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Agent:
    """The agent that we want; `number` counts them."""

    host_key: str
    agent_id: str
    number: int = 0


@dataclass(frozen=True, slots=True)
class Brought:
    """A carrier, and of which kind. Its descriptors belong to whoever holds this."""

    via: str
    fds: tuple[int, ...]


class CarrierFailed(Exception):
    """A dial failed; `final`: only another agent would help."""

    def __init__(self, why: str, final: bool) -> None:
        super().__init__(why)
        self.why = why
        self.final = final


class KeptConnection:
    """`keep_up` until cancelled. `bring(avoid)` dials; `connect(transport, agent)` makes SSH; `set_up(ssh)` opens its channels."""

    def __init__(
        self,
        name: str,
        agent: Agent,
        *,
        bring: Callable[[Sequence[str]], Awaitable[Brought]],
        make_transport: Callable[[], Transport],
        connect: Callable[[Transport, Agent], Awaitable[Ssh]],
        set_up: Callable[[Ssh], Awaitable[None]],
        changed: Callable[[], None],
        backoff: Backoff,
    ) -> None:
        self.name = name
        self.via: str | None = None
        self.why: str | None = None  # of the last failure, until bytes flow again
        self.ssh: Ssh | None = None
        self._agent = agent
        self._bring = bring
        self._make_transport = make_transport
        self._connect = connect
        self._set_up = set_up
        self._changed = changed
        self._backoff = backoff
        self._transport: Transport | None = None
        self._carried_at = 0.0
        self._avoid: set[str] = set()
        self._spare: Brought | None = None
        self._event = asyncio.Event()  # `_serve` is to look again
        self._up = asyncio.Event()
        self._new_agent = asyncio.Event()
        self._ended = False

    @property
    def carried(self) -> bool:
        """Bytes flow."""
        return self.ssh is not None and self._transport is not None and self._transport.attached

    async def up(self) -> Ssh:
        """The SSH connection, once there is one; it may be cut, and what it is given then waits. Raises LinkError at the end."""
        while self.ssh is None or self.ssh.closed.done():
            if self._ended:
                raise LinkError("the link to the agent has ended")
            self._up.clear()
            await self._up.wait()
        return self.ssh

    def agent_changed(self, agent: Agent) -> None:
        """Everything with the old one is over."""
        self._agent = agent
        self._avoid.clear()  # what failed led to another
        self._new_agent.set()
        self._event.set()
        if self.ssh is not None:
            self.ssh.close()
        elif self._transport is not None:
            self._transport.abort()

    async def keep_up(self) -> None:
        """Raises LinkError when no attempt can help (a host key that is not the pinned one, another version)."""
        try:
            while True:
                agent = self._agent
                try:
                    await self._serve(await self._connected(agent), agent)
                except LinkLost as exc:
                    self._failed(exc.message)
                    if agent is self._agent and not self._steady():
                        await self._pause(self._backoff.wait_s())
                except LinkError as exc:
                    self._failed(exc.message)
                    if agent is self._agent:
                        await self._pause(NEWS_S)
                    if agent is self._agent:
                        raise
        finally:
            self._ended = True
            self._drop()

    async def _connected(self, agent: Agent) -> Ssh:
        """A new stream with SSH in it."""
        carrier = await self._carrier()
        transport = self._transport = self._make_transport()
        self._carried_at = asyncio.get_running_loop().time()
        self._avoid.add(carrier.via)  # until it has proven itself
        transport.expecting = True  # from the first byte on: a carrier that swallows everything is found out within 15 s
        try:
            transport.carry(*carrier.fds)
            ssh = await self._connect(transport, agent)
            try:
                await self._set_up(ssh)
                transport.set_secret(await ssh.agree_secret())  # last: a cut before it ends the stream, and all begins anew
            except BaseException:
                ssh.close()
                raise
        except RemoteProtocolError as exc:  # whatever answered there; the next carrier may reach the agent
            transport.abort()
            raise LinkLost(exc.message) from exc
        except BaseException:
            transport.abort()
            raise
        self.via = carrier.via
        return ssh

    async def _serve(self, ssh: Ssh, agent: Agent) -> None:
        """Mend cuts until this SSH connection is over; raises LinkLost then."""
        transport = self._transport
        assert transport is not None
        lost: list[str] = [] if transport.attached else ["the carrier was lost"]

        def on_lost(why: str) -> None:
            lost.append(why)
            self._event.set()

        transport.on_carrier_lost(on_lost)
        transport.on_carried(self._event.set)
        ssh.closed.add_done_callback(lambda _: self._event.set())
        self.ssh = ssh
        self._up.set()
        try:
            while not ssh.closed.done() and agent is self._agent:
                self._event.clear()
                if lost:
                    why = lost.pop()
                    lost.clear()
                    self._failed(why)
                    await self._mend(transport, ssh, agent)
                    continue
                if transport.attached:
                    self.why = None
                    self._changed()
                await self._event.wait()
        finally:
            self.ssh = None
            ssh.close()
        raise LinkLost(ssh.closed.result() if ssh.closed.done() else "the agent was made anew")

    async def _mend(self, transport: Transport, ssh: Ssh, agent: Agent) -> None:
        """Give a cut stream another carrier, or keep the carrier for the next stream if this one ended meanwhile."""
        if not self._steady():
            await self._pause(self._backoff.wait_s())
        carrier = await self._carrier()
        if ssh.closed.done() or agent is not self._agent:
            self._spare = carrier
            return
        self.via, self._carried_at = carrier.via, asyncio.get_running_loop().time()
        self._avoid.add(carrier.via)
        transport.carry(*carrier.fds)

    async def _carrier(self) -> Brought:
        """Dial until it works."""
        if self._spare is not None:
            spare, self._spare = self._spare, None
            return spare
        while True:
            self._new_agent.clear()
            try:
                return await self._bring(sorted(self._avoid))
            except CarrierFailed as exc:
                self._avoid.clear()  # there was nothing else to be had
                self._failed(exc.why)
                await self._pause(FINAL_S if exc.final else self._backoff.wait_s())

    def _steady(self) -> bool:
        """Whether the last carrier did well: then the next attempt may come at once, and the same way."""
        steady = asyncio.get_running_loop().time() - self._carried_at >= STEADY_S
        if steady:
            self._backoff.reset()
            self._avoid.clear()
        return steady

    async def _pause(self, wait_s: float) -> None:
        """Wait, but not when another agent is named."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._new_agent.wait()

    def _failed(self, why: str) -> None:
        if why != self.why:
            log.info("! %s connection: %s", self.name, why)
        self.why = why
        self._changed()

    def _drop(self) -> None:
        self._up.set()
        if self._transport is not None and self.ssh is None:
            self._transport.abort()
        if self._spare is not None:
            for fd in self._spare.fds:
                os.close(fd)
            self._spare = None

"""The link to one agent, kept up: two SSH connections, and what the engine asks of them (needs.Link).

Theory of operation: `control` carries DNS, UDP and facts, `flows` carries TCP, so that bulk never delays a question. Each is kept
up by itself (engine/connection.py). The intent outlives every cut: `open_flow` and `ask` wait for a connection, and put
their question again when the one they asked is closed under them.

    status   connecting ──both carried──> connected <──> reconnecting        any ──no attempt can help──> failed

Limits: `ask` gives up after 5 s. A flow whose dial was under way when its connection closed is dialled a second time.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from bridge.engine.connection import Agent, Brought, CarrierFailed, KeptConnection, Ssh, Transport
from bridge.engine.handing import Handing
from bridge.engine.needs import Channel, Flow, FlowRefused
from bridge.errors import BridgeError, LinkError, LinkLost, first_of
from bridge.model.facts import Facts
from bridge.protocol import control, udp
from bridge.protocol.backoff import Backoff
from bridge.protocol.door import LinkState, LinkStatus

log = logging.getLogger(__name__)

ASK_S = 5.0
_CLOSE_S = 1.0
_UNSURE = frozenset({"ENETUNREACH", "EHOSTUNREACH", "ENETDOWN", "EADDRNOTAVAIL", "ENONET"})  # as in a netns whose target has stopped


class ConnectSsh(Protocol):
    """adapters.ssh.connect_ssh."""

    def __call__(self, transport: Any, *, private_key: str, host_key: str) -> Awaitable[Ssh]: ...


class Supervisor:
    """`run()` for as long as the session lives. `dial(id, avoid)` asks the host for a carrier: it comes back by `carrier`
    or `carrier_failed`. `now` is in seconds of the Unix epoch, `random` gives numbers in [0, 1)."""

    def __init__(
        self,
        *,
        private_key: str,
        host_key: str,
        agent_id: str,
        dial: Callable[[int, Sequence[str]], None],
        on_status: Callable[[LinkStatus], None],
        make_transport: Callable[[], Transport],
        connect_ssh: ConnectSsh,
        now: Callable[[], float],
        random: Callable[[], float],
        handing: Handing | None = None,
    ) -> None:
        self.on_datagram: Callable[[udp.Message], None] = lambda message: None
        self.on_facts: Callable[[Facts], None] = lambda facts: None  # each time that an agent tells them, the first time too
        self._private_key = private_key
        self._agent = Agent(host_key, agent_id)
        self._dial = dial
        self._on_status = on_status
        self._connect_ssh = connect_ssh
        self._now = now
        self._dials: dict[int, asyncio.Future[Brought]] = {}
        self._dial_ids = itertools.count(1)
        self._asks: dict[int, asyncio.Future[control.Answer]] = {}
        self._ask_ids = itertools.count(1)
        self._control_channel: Any = None
        self._udp_channel: Any = None
        self._facts: Facts | None = None
        self._facts_known = asyncio.Event()
        self._status = LinkStatus("connecting", now())
        self._over: BridgeError | None = None
        self._stopping = asyncio.Event()
        self._stopped = asyncio.Event()
        self._running = False
        self._handing = handing
        if handing is not None:
            handing.on_change = self._tell
        self._control, self._flows = (
            KeptConnection(
                name,
                self._agent,
                bring=self._bring,
                make_transport=make_transport,
                connect=self._connect,
                set_up=set_up,
                changed=self._tell,
                backoff=Backoff(random),
            )
            for name, set_up in (("control", self._set_up_control), ("flows", _nothing_to_set_up))
        )

    @property
    def status(self) -> LinkStatus:
        return self._status

    async def run(self) -> None:
        """Keep the link up until cancelled or stopped. Raises LinkError when no attempt can help."""
        self._running = True
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(kept.keep_up(), name=f"link-{kept.name}") for kept in (self._control, self._flows)]
                await self._stopping.wait()
                for task in tasks:
                    task.cancel()
        except* BridgeError as failed:
            self._over = first_of(failed)
        finally:
            self._over = self._over or LinkError("the session has ended")
            self._stopped.set()
            self._facts_known.set()
        if not self._stopping.is_set():
            self._set_status("failed", self._over.message)
            raise self._over

    async def stop(self) -> None:
        """Close in order: the agent learns that nobody comes back."""
        closing = [kept.ssh.closed for kept in (self._control, self._flows) if kept.ssh is not None]
        self._stopping.set()
        if self._running:
            await self._stopped.wait()
        if closing:
            await asyncio.wait(closing, timeout=_CLOSE_S)

    async def facts(self) -> Facts:
        """The target's facts as last told; waits for the first. Raises LinkError when the link ends before."""
        while self._facts is None:
            await self._facts_known.wait()
            if self._facts is None:
                raise self._over or LinkError("the link ended before the agent told about its target")
        return self._facts

    # What the host brings

    def carrier(self, dial_id: int, via: str, fds: Sequence[int]) -> None:
        """The carrier asked for as `dial_id`; its descriptors are ours from now on."""
        asked = self._dials.pop(dial_id, None)
        if asked is None or asked.done():
            for fd in fds:
                os.close(fd)
        else:
            asked.set_result(Brought(via, tuple(fds)))

    def carrier_failed(self, dial_id: int, why: str, final: bool) -> None:
        asked = self._dials.pop(dial_id, None)
        if asked is not None and not asked.done():
            asked.set_exception(CarrierFailed(why, final))

    def agent_changed(self, host_key: str, agent_id: str) -> None:
        """The agent was made anew: open flows are reset, and both connections begin again."""
        if (host_key, agent_id) == (self._agent.host_key, self._agent.agent_id):
            return
        self._agent = Agent(host_key, agent_id)
        for kept in (self._control, self._flows):
            kept.agent_changed(self._agent)
        if self._handing is not None:  # last: what it has not answered is not put to the old connection
            self._handing.drop("the agent was made anew")

    # What the engine asks

    async def open_flow(self, address: str, port: int, app: tuple[str, int]) -> Channel:
        while True:
            ssh = await self._flows.up()
            try:
                channel: Channel = await ssh.open_flow(address, port, app)
            except control.FlowRefused as exc:
                raise FlowRefused(exc.errno_name) from None
            except LinkLost:
                await _gone(ssh)
            else:
                return channel

    def begin_flow(self, address: str, port: int, app: tuple[str, int], answered: Callable[[Flow | FlowRefused | LinkError], bool]) -> bool:
        if self._handing is None or not self._flows.carried:
            return self._begin_by_link(address, port, app, answered)

        def handed(answer: Flow | FlowRefused | LinkError) -> bool:
            """The link is asked again where the agent may speak of a target that is no more: over it a flow waits for the next one."""
            if isinstance(answer, FlowRefused) and answer.errno_name in _UNSURE:
                answer = LinkLost(f"the target may be gone: {answer.errno_name}")
            unsure = isinstance(answer, LinkError)
            return (unsure and self._begin_by_link(address, port, app, answered)) or answered(answer)

        return self._handing.begin(address, port, handed) or self._begin_by_link(address, port, app, answered)

    def _begin_by_link(
        self, address: str, port: int, app: tuple[str, int], answered: Callable[[Flow | FlowRefused | LinkError], bool]
    ) -> bool:
        ssh = self._flows.ssh
        return ssh is not None and not ssh.closed.done() and ssh.begin_flow(address, port, app, answered)

    def send(self, message: udp.Message) -> None:
        if self._control.carried:
            self._udp_channel.send(message)

    async def ask(self, nameserver: str, query: bytes, over_tcp: bool) -> bytes:
        async with asyncio.timeout(ASK_S):
            while True:
                ssh = await self._control.up()
                number = next(self._ask_ids)
                answered: asyncio.Future[control.Answer] = asyncio.get_running_loop().create_future()
                self._asks[number] = answered
                try:
                    self._control_channel.send(control.Ask(number, nameserver, query, over_tcp))
                    await asyncio.wait((answered, ssh.closed), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    del self._asks[number]
                if answered.done():
                    return _answer(answered.result(), nameserver)

    # Below

    async def _bring(self, avoid: Sequence[str]) -> Brought:
        number = next(self._dial_ids)
        asked: asyncio.Future[Brought] = asyncio.get_running_loop().create_future()
        self._dials[number] = asked
        self._dial(number, avoid)
        try:
            return await asked
        finally:
            self._dials.pop(number, None)

    async def _connect(self, transport: Transport, agent: Agent) -> Ssh:
        return await self._connect_ssh(transport, private_key=self._private_key, host_key=agent.host_key)

    async def _set_up_control(self, ssh: Ssh) -> None:
        self._udp_channel = await ssh.open_udp(lambda message: self.on_datagram(message))
        self._control_channel = await ssh.open_control(self._on_message)
        if self._handing is not None and not self._handing.live:
            self._control_channel.send(control.Hand(self._handing.invite()))

    def _on_message(self, message: control.Message) -> None:
        match message:
            case control.Answer():
                asked = self._asks.get(message.number)
                if asked is not None and not asked.done():
                    asked.set_result(message)
            case control.FactsTold(facts):
                self._facts = facts
                self._facts_known.set()
                self.on_facts(facts)
            case _:
                log.debug("! the agent sent what only the bridge may send: %s", type(message).__name__)

    def _tell(self) -> None:
        if self._control.carried and self._flows.carried:
            self._set_status("connected", None)
        else:
            self._set_status("connecting" if self._status.state == "connecting" else "reconnecting", self._flows.why or self._control.why)

    def _set_status(self, state: LinkState, why: str | None) -> None:
        via = self._flows.via if state == "connected" else None
        since = self._status.since if state == self._status.state else self._now()
        status = LinkStatus(state, since, via, why, state == "connected" and self._handing is not None and self._handing.live)
        if status != self._status:
            self._status = status
            self._on_status(status)


async def _nothing_to_set_up(_: Ssh) -> None:
    pass


async def _gone(ssh: Ssh) -> None:
    """A dial failed because its connection is closing: the next one is asked for when this one is gone."""
    await asyncio.wait((ssh.closed,))


def _answer(answer: control.Answer, nameserver: str) -> bytes:
    if answer.error == "ETIMEDOUT":
        raise TimeoutError(f"{nameserver} did not answer")
    if answer.error is not None:
        raise LinkError(f"{nameserver} cannot be asked: {answer.error}")
    return answer.answer

"""The bridge, from its start to its stop: the door in front, the link behind, the wired netns between.

Theory of operation: the host CLI configures the bridge through a control connection. The link then asks for carriers, which
the host brings; the target's first facts wire the netns; `ready` tells the host to start the app.

    waiting ──configure──> linking ──facts──> wiring ──> ready ──stop──> (gone)
                              └──────────┴── error ──> failed: told to the host, which undoes

A control connection may end at any time (the host CLI was killed) and another may come: the bridge serves on meanwhile,
and what was asked of the old one (`dial`) is asked again of the new. Nothing here undoes the wiring: a netns that outlives
its bridge must stay closed (sidecar/wiring.py).

Limits: one session; a `configure` that names another is refused. Rules are those of the first `configure`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from bridge.engine.needs import Link
from bridge.errors import BridgeError, RemoteProtocolError
from bridge.model.facts import BridgeConfig, Facts
from bridge.protocol import door as wire
from bridge.sidecar.control import Control
from bridge.sidecar.door import PATH, Carrier, Door
from bridge.sidecar.wiring import Wired

log = logging.getLogger(__name__)

_STATUS_EVERY_S = 1.0  # of counts alone; a change of the link is told at once
_STOP_S = 2.0  # for the agent to hear of it


class Supervised(Link, Protocol):
    """The link and what keeps it up (engine/supervisor.py), as this file needs it."""

    on_facts: Callable[[Facts], None]

    async def run(self) -> None:
        """Keep the link up until cancelled or stopped; raises BridgeError when it can never be up again."""

    async def facts(self) -> Facts:
        """The target's first facts; waits for the first connection."""
        ...

    def carrier(self, dial_id: int, via: str, fds: Sequence[int]) -> None: ...
    def carrier_failed(self, dial_id: int, why: str, final: bool) -> None: ...
    def agent_changed(self, host_key: str, agent_id: str) -> None: ...
    async def stop(self) -> None:
        """Close in order: the agent learns that nobody comes back."""


Dial = Callable[[int, Sequence[str]], None]
MakeLink = Callable[[BridgeConfig, Dial, Callable[[wire.LinkStatus], None]], Supervised]
MakeWired = Callable[[BridgeConfig, Link, asyncio.TaskGroup], Wired]


class Bridge:
    """`run()` serves one session until `stop()` or the host's `stop` message."""

    def __init__(self, make_link: MakeLink, make_wired: MakeWired = Wired, path: Path = PATH) -> None:
        self._make_link = make_link
        self._make_wired = make_wired
        self._path = path
        self._config: BridgeConfig | None = None
        self._link: Supervised | None = None
        self._wired: Wired | None = None
        self._ready: wire.Ready | None = None
        self._failed: wire.Failed | None = None
        self._link_status = wire.LinkStatus("connecting", time.time())
        self._facts_warnings: tuple[str, ...] = ()
        self._told: wire.Status | None = None
        self._asked: dict[int, tuple[str, ...]] = {}  # dials that nobody has answered yet
        self._control: Control | None = None
        self._group: asyncio.TaskGroup | None = None
        self._stopping = asyncio.Event()
        self._told_facts = asyncio.Event()

    def stop(self) -> None:
        self._stopping.set()

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                group.create_task(Door(self._on_control, self._on_carrier, self._path).serve(), name="door")
                group.create_task(self._tell_counts(), name="status")
                await self._stopping.wait()
                log.info("stopping")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_STOP_S):
                        if self._link is not None:
                            await self._link.stop()
                raise _Stopped
        except* _Stopped:
            self._path.unlink(missing_ok=True)
            if self._control is not None:
                self._control.close()

    # The door

    def _on_control(self, sock: socket.socket) -> None:
        assert self._group is not None
        loop = asyncio.get_running_loop()
        control = Control(self._on_lines, self._on_control_lost)
        if self._control is not None:
            log.info("a new host process takes the session over")
            self._control.close()
        self._control = control
        self._group.create_task(_take(loop, control, sock), name="control")

    def _on_carrier(self, carrier: Carrier) -> None:
        if self._link is None or self._asked.pop(carrier.dial_id, None) is None:
            log.warning("! a carrier that nobody asked for: %d", carrier.dial_id)
            for fd in carrier.fds:
                os.close(fd)
            return
        self._link.carrier(carrier.dial_id, carrier.via, carrier.fds)

    def _on_lines(self, control: Control, lines: Sequence[bytes]) -> None:
        if control is not self._control:
            return
        try:
            for line in lines:
                message = wire.decode(line)
                if message is not None:
                    self._on_message(message)
        except RemoteProtocolError as exc:
            log.warning("! door: %s", exc)
            control.send(wire.Failed(type(exc).__name__, exc.message, exc.hint))
            control.close()

    def _on_control_lost(self, control: Control) -> None:
        if control is self._control:
            self._control = None
            log.info("the host process is gone; the session goes on without it")

    def _on_message(self, message: wire.Message) -> None:
        match message:
            case wire.Configure(config):
                self._configure(config)
            case wire.CarrierFailed(dial_id, why, final):
                if self._asked.pop(dial_id, None) is not None and self._link is not None:
                    self._link.carrier_failed(dial_id, why, final)
            case wire.Agent(host_key, agent_id):
                self._agent(host_key, agent_id)
            case wire.Names(names):
                self._names(names)
            case wire.Stop():
                self.stop()
            case _:
                raise RemoteProtocolError(f"the door does not take {type(message).__name__.lower()} from the host")

    def _configure(self, config: BridgeConfig) -> None:
        assert self._group is not None
        if self._config is None:
            self._config = config
            try:
                self._link = self._make_link(config, self._dial, self._on_link_status)
                self._wired = self._make_wired(config, self._link, self._group)
            except BridgeError as exc:
                self._fail(exc)
                return
            self._group.create_task(self._keep_up(self._link), name="link")
            self._group.create_task(self._wire(self._link, self._wired), name="wiring")
            return
        if (config.session, config.target) != (self._config.session, self._config.target):
            raise RemoteProtocolError(f"this bridge serves session {self._config.session}, not {config.session}")
        self._agent(config.host_key, config.agent_id)
        self._names(config.names)
        self._tell(self._failed or self._ready)
        self._tell_status(anyway=True)
        for dial_id, avoid in self._asked.items():
            self._tell(wire.Dial(dial_id, avoid))

    def _agent(self, host_key: str, agent_id: str) -> None:
        if self._config is None or self._link is None or (host_key, agent_id) == (self._config.host_key, self._config.agent_id):
            return
        self._config = replace(self._config, host_key=host_key, agent_id=agent_id)
        self._link.agent_changed(host_key, agent_id)
        if self._wired is not None:
            self._wired.agent_is_new()

    def _names(self, names: Sequence[str]) -> None:
        if self._wired is not None:
            self._wired.change_names(names)

    # The link and the netns

    async def _keep_up(self, link: Supervised) -> None:
        try:
            await link.run()
        except BridgeError as exc:
            self._fail(exc)

    async def _wire(self, link: Supervised, wired: Wired) -> None:
        try:
            facts = await link.facts()
            self._facts_warnings = facts.warnings if facts.ping is True else (*facts.warnings, f"no ping: {facts.ping}")
            started = time.monotonic()
            await wired.wire(facts)
        except (BridgeError, OSError) as exc:
            self._fail(exc)
            return
        log.info("wired in %.0f ms; SYNs held by %s", (time.monotonic() - started) * 1000, wired.holder or "nobody")
        self._ready = wire.Ready(facts, wired.engine_resolv_conf)
        self._tell(self._ready)
        self._tell_status()
        link.on_facts = lambda facts: self._told_facts.set()
        await self._follow(link, wired)

    async def _follow(self, link: Supervised, wired: Wired) -> None:
        """The target may be another one after a while (a new pod, a restarted container): wire what changed, under the app."""
        while True:
            facts = await link.facts()
            if wired.facts is not None and _network_of(facts) != _network_of(wired.facts):
                log.info("the target has moved to %s", ", ".join(facts.addresses))
                self._facts_warnings = facts.warnings if facts.ping is True else (*facts.warnings, f"no ping: {facts.ping}")
                try:
                    await wired.rewire(facts)
                except (BridgeError, OSError) as exc:
                    self._fail(exc)
                    return
                self._ready = wire.Ready(facts, wired.engine_resolv_conf)
                self._tell_status()
            await self._told_facts.wait()
            self._told_facts.clear()

    def _dial(self, dial_id: int, avoid: Sequence[str]) -> None:
        self._asked[dial_id] = tuple(avoid)
        self._tell(wire.Dial(dial_id, tuple(avoid)))

    def _on_link_status(self, status: wire.LinkStatus) -> None:
        self._link_status = status
        log.info("link %s%s%s", status.state, f" via {status.via}" if status.via else "", f": {status.why}" if status.why else "")
        self._tell_status()

    def _fail(self, exc: BridgeError | OSError) -> None:
        """Told once, and to every later host; the process stays, so that the netns stays closed until the host undoes it."""
        error = exc if isinstance(exc, BridgeError) else BridgeError(f"wiring the session's network failed: {exc}")
        log.error("! %s", error.message)
        self._failed = wire.Failed(type(error).__name__, error.message, error.hint)
        self._tell(self._failed)

    # What the host is told

    def _status(self) -> wire.Status:
        wired = self._wired
        if wired is None or self._ready is None or wired.outgoing is None or wired.datagrams is None:
            return wire.Status(self._link_status, self._facts_warnings)
        warnings = (*self._facts_warnings, *wired.warnings)
        flows = wired.outgoing
        return wire.Status(self._link_status, warnings, wired.holder, flows.flows, flows.opened_ever, wired.datagrams.open_associations)

    def _tell_status(self, *, anyway: bool = False) -> None:
        status = self._status()
        if anyway or status != self._told:
            self._told = status
            self._tell(status)

    async def _tell_counts(self) -> None:
        while True:
            await asyncio.sleep(_STATUS_EVERY_S)
            if self._config is not None:
                self._tell_status()

    def _tell(self, message: wire.Message | None) -> None:
        if message is not None and self._control is not None:
            self._control.send(message)


def _network_of(facts: Facts) -> tuple[object, ...]:
    """What the netns is wired after."""
    return facts.addresses, facts.resolv_conf, facts.hosts, facts.hostname


async def _take(loop: asyncio.AbstractEventLoop, control: Control, sock: socket.socket) -> None:
    await loop.connect_accepted_socket(lambda: control, sock)


class _Stopped(Exception):
    """Ends the task group, whose other tasks wait for ever."""

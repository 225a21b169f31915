"""What a session's bridge needs from its host while it lives: its door open, its dials answered, the agent alive, names fresh.

Theory of operation: four things may end alone, and each is answered here without touching the app.

    the bridge ends          started again (made again where it was removed), told all from the start; wiring is idempotent
    the agent, the target    see kept_agent.py; the bridge is told of a new agent, `status` of the target
    this process is killed   nothing here: the bridge serves on, asks the next host for what it needs (sidecar/serve.py)

Limits: pause cannot be replaced: with it the session's netns is gone, and the session ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bridge import errors
from bridge.adapters.docker.engine import Engine
from bridge.adapters.hostdoor import ExecDoor, HostDoor, Joined, SocketDoor
from bridge.cli.kept_agent import KeptAgent
from bridge.engine.needs import Place, TargetChange
from bridge.engine.up import World, untorn
from bridge.errors import BridgeError, HostError, LinkLost, ProtocolError
from bridge.model.facts import AgentIdentity, BridgeConfig
from bridge.model.plan import Container, Start
from bridge.protocol import door as wire

log = logging.getLogger(__name__)

_SOCKET_S = 2.0  # for the door's socket to appear; then by exec
_LOOK_EVERY_S = 0.01
_RESTART_S = (0.1, 5.0)
_ALWAYS = ("host.docker.internal", "gateway.docker.internal")


class Serving:
    """`run()` serves until cancelled, or raises what the session cannot live on with. `ready` is done when the app may start."""

    def __init__(
        self,
        config: BridgeConfig,
        agent: AgentIdentity,
        public_key: str,
        place: Place,
        engine: Engine,
        world: World,
        containers: dict[str, Container],
        run_folder: Path,
        on_status: Callable[[wire.Status | None, str | None], None],
    ) -> None:
        self.ready: asyncio.Future[wire.Ready] = asyncio.get_running_loop().create_future()
        self._agent = KeptAgent(place, agent, public_key, self._on_new_agent)
        self._config = config
        self._engine, self._world = engine, world
        self._pause, self._bridge = containers["pause"], containers["bridge"]
        self._pause_id = ""
        self._networks: list[str] = []  # of pause, where the engine resolves names; it may join more, and leave some
        self._socket = run_folder / "bridge.sock"
        self._on_status = on_status
        self._door: HostDoor | None = None

    @property
    def agent(self) -> AgentIdentity:
        return self._agent.identity

    async def run(self) -> None:
        self._config = replace(self._config, names=await self._names())
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_door(group), name="door")
            group.create_task(self._agent.follow(self._on_target), name="target")
            group.create_task(self._guard_pause(), name="pause")
            group.create_task(self._watch_names(), name="names")

    async def stop(self) -> None:
        """The link is closed in order: the agent learns that nobody comes back."""
        if self._door is not None:
            with contextlib.suppress(LinkLost):
                await self._door.send(wire.Stop())

    # the bridge

    async def _keep_door(self, group: asyncio.TaskGroup) -> None:
        pause_s = _RESTART_S[0]
        while True:
            door = await self._open_door()
            try:
                await door.send(wire.Configure(self._config))
                self._door = door
                async for message in door.messages():
                    pause_s = _RESTART_S[0]
                    self._on_message(message, group)
            except LinkLost:
                pass
            except ProtocolError as exc:
                raise HostError(f"the bridge cannot be understood: {exc.message}", hint=exc.hint) from exc
            finally:
                self._door = None
                door.close()
            if self.ready.done():
                self._on_status(None, "the bridge has ended; it is started again")
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _RESTART_S[1])

    async def _open_door(self) -> HostDoor:
        """Connected to a bridge that runs; one that ended is started, one that was removed is made again."""
        loop = asyncio.get_running_loop()
        found = await self._engine.inspect(self._bridge.name)
        if found is None:
            await untorn(self._world.do(self._bridge), "make bridge")
        if found is None or not found["State"]["Running"]:
            await untorn(self._world.do(Start(self._bridge.name)), "start bridge")
            found = await self._engine.inspect(self._bridge.name)
        shared = any(mount["Type"] == "bind" and mount["Destination"] == "/run/mbridge" for mount in (found or {}).get("Mounts", ()))
        give_up = loop.time() + _SOCKET_S
        while shared and loop.time() < give_up:
            try:
                return await SocketDoor.connect(self._socket)
            except OSError:
                await asyncio.sleep(_LOOK_EVERY_S)
        found = await self._engine.inspect(self._bridge.name)
        if found is None or not found["State"]["Running"]:
            last = await self._engine.last_lines(self._bridge.name, 5)
            raise HostError("the bridge does not stay up", hint="\n".join(last) or f"docker logs {self._bridge.name}")
        log.info("the door's socket is not to be reached from here: going by exec")
        return await ExecDoor.connect(self._exec)

    async def _exec(self, command: Sequence[str]) -> Joined:
        return await self._engine.exec(self._bridge.name, command)

    async def _guard_pause(self) -> None:
        """Until pause ends. The engine being away is no such end: its containers may live through that (live restore)."""
        while True:
            with contextlib.suppress(HostError):
                await self._engine.wait(self._pause.name, asyncio.Event(), condition="not-running")
                break
            found = await self._patiently_inspect(self._pause.name)
            if found is None or not found["State"]["Running"]:
                break
        raise HostError(f"the session's network is gone: container {self._pause.name} has ended", hint="start the session again")

    async def _patiently_inspect(self, name: str) -> dict[str, Any] | None:
        while True:
            try:
                return await self._engine.inspect(name)
            except HostError as exc:
                log.info("! engine: %s", exc.message)
                await asyncio.sleep(_RESTART_S[1])

    def _on_message(self, message: wire.ToHost, group: asyncio.TaskGroup) -> None:
        match message:
            case wire.Dial(dial_id, avoid):
                group.create_task(self._answer(dial_id, avoid), name=f"dial-{dial_id}")
            case wire.Ready(_, resolv_conf):
                self._config = replace(self._config, engine_resolv_conf=resolv_conf)
                if not self.ready.done():
                    self.ready.set_result(message)
            case wire.Status():
                self._on_status(message, self._agent.gone)
            case wire.Failed(error, text, hint):
                kind = getattr(errors, error, BridgeError)
                known = isinstance(kind, type) and issubclass(kind, BridgeError)
                raise (kind if known else BridgeError)(text, hint=hint)

    async def _tell(self, message: wire.ToBridge) -> None:
        if self._door is not None:
            with contextlib.suppress(LinkLost):
                await self._door.send(message)

    # carriers and the agent

    async def _answer(self, dial_id: int, avoid: Sequence[str]) -> None:
        door = self._door
        dialled = await self._agent.dial(avoid, first=not self.ready.done())
        if not isinstance(dialled, str):
            via, carrier = dialled
            if door is None:
                carrier.close()
                return
            try:
                await door.bring(dial_id, via, carrier)
                return
            except (BridgeError, OSError) as exc:
                carrier.close()
                dialled = str(exc)
        log.info("! dial %d: %s", dial_id, dialled)
        await self._tell(wire.CarrierFailed(dial_id, dialled))

    async def _on_new_agent(self, agent: AgentIdentity) -> None:
        self._config = replace(self._config, host_key=agent.host_key, agent_id=agent.agent_id)
        await self._tell(wire.Agent(agent.host_key, agent.agent_id))

    def _on_target(self, change: TargetChange) -> None:
        # `back` is no trouble by itself: where the link fell with the target, the bridge says so
        self._on_status(None, None if change.kind == "back" else change.why)

    # names on the app's own networks

    async def _watch_names(self) -> None:
        while True:
            with contextlib.suppress(HostError):
                async with self._engine.events(type=["network"], event=["connect", "disconnect"]) as events:
                    await self._tell_names()
                    async for event in events:
                        attributes = event["Actor"]["Attributes"]
                        if attributes.get("name") in self._networks or attributes.get("container") == self._pause_id:
                            await self._tell_names()
            await asyncio.sleep(1)

    async def _tell_names(self) -> None:
        names = await self._names()
        if names != self._config.names:
            self._config = replace(self._config, names=names)
            await self._tell(wire.Names(names))

    async def _names(self) -> tuple[str, ...]:
        names = set(_ALWAYS)
        pause = await self._engine.inspect(self._pause.name)
        if pause is not None:
            self._pause_id = pause["Id"]
            self._networks = [name for name in pause["NetworkSettings"]["Networks"] if _has_names(name)]
        for network in self._networks:
            for one in await self._engine.containers(network=[network]):
                found = await self._engine.inspect(one["Id"])
                if found is not None:
                    endpoint = found["NetworkSettings"]["Networks"].get(network) or {}
                    names |= {found["Name"].lstrip("/"), *(endpoint.get("Aliases") or ()), *(endpoint.get("DNSNames") or ())}
        return tuple(sorted(names))


def _has_names(network: str) -> bool:
    """On the default network the engine resolves no names."""
    return network not in ("default", "bridge")

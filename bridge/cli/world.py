"""The world that a session's plan changes: the developer's engine, the target's place, a folder of this machine.

`do` adopts what an earlier host process of the same session has made (`up` after a kill -9); `undo` takes absence for an answer and
never touches what does not bear the session's label: a container that had the user's `--name` before us stays.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from bridge.adapters.docker import bodies
from bridge.adapters.docker.endpoint import Endpoint
from bridge.adapters.docker.engine import Engine
from bridge.adapters.docker.wire import EngineRefused
from bridge.cli import places, sessions
from bridge.engine.needs import Place
from bridge.errors import HostError
from bridge.model.facts import AgentIdentity
from bridge.model.plan import Agent, Container, Folder, Op, Plan, Start, Volume

log = logging.getLogger(__name__)
Progress = Callable[[str], None]


class World:
    """Implements engine/up.py: World. `agent` is what the Agent step brought.

    `app_environ` is what the user gave by `-e` and `--env-file`: as under docker run the app's container has it too, so that
    `docker exec` finds it. Not the target's, which may hold secrets; and neither is ever part of a plan.
    """

    def __init__(
        self,
        session: str,
        engine: Engine | None,
        place: Place,
        public_key: str = "",
        progress: Progress = log.info,
        app_environ: Mapping[bytes, bytes] | None = None,
    ) -> None:
        self.agent: AgentIdentity | None = None
        self._session, self._own, self._place = session, engine, place
        self._public_key, self.progress = public_key, progress
        self._app_environ = app_environ or {}
        self._created: dict[str, Container] = {}

    @property
    def _engine(self) -> Engine:
        assert self._own is not None, "a plan with containers names their engine"
        return self._own

    async def do(self, op: Op) -> None:
        match op:
            case Folder(path, mode):
                _make_folder(Path(path), mode)
            case Agent():
                self.agent = await self._place.start_agent(self._public_key, self.progress)
            case Volume(name):
                await self._engine.create_volume(name, bodies.volume_labels(self._session, sessions.owner()))
            case Container():
                await self._create(op)
            case Start(name):
                await self._start(name)

    async def undo(self, op: Op) -> None:
        match op:
            case Folder(path):
                shutil.rmtree(path, ignore_errors=True)
            case Agent():
                await self._place.remove_agent()
            case Volume(name):
                await self._engine.connect()
                await self._engine.remove_volume(name)
            case Container(name=name):
                await self._engine.connect()
                found = await self._engine.inspect(name)
                if found is not None and found["Config"]["Labels"].get("mbridge.session") == self._session:
                    await self._engine.remove(found["Id"])

    async def _create(self, op: Container) -> None:
        found = await self._engine.inspect(op.name)
        if found is not None:
            if found["Config"]["Labels"].get("mbridge.session") == self._session:
                return
            raise HostError(f"the name {op.name} is in use by another container", hint=f"docker rm {op.name}, or choose another --name")
        self._created[op.name] = op
        body = op.body
        if op.role == "app":
            body = {**body, "Env": [*body.get("Env", ()), *_texts(self._app_environ)]}
        try:
            await self._engine.create(op.name, body, op.platform)
        except EngineRefused as exc:
            without = _without_bind(op)
            if "bind source path does not exist" not in exc.message or without is None:
                raise HostError(f"the {op.role} container cannot be made: {exc.message}", hint=_hint(exc.message)) from exc
            # The engine has other files than we (a virtual machine, docker's socket within a container): the door goes by exec
            await self._engine.create(op.name, without, op.platform)
        for network in op.networks:
            try:
                await self._engine.join_network(network, op.name, {"Aliases": list(op.aliases)})
            except EngineRefused as exc:
                raise HostError(f"--network {network}: {exc.message}", hint="docker network ls") from exc

    async def _start(self, name: str) -> None:
        try:
            await self._engine.start(name)
        except EngineRefused as exc:
            if name not in self._created or not bodies.lacks_ipv6(exc.message):
                raise EngineRefused(exc.status, exc.message, hint=_hint(exc.message)) from exc
            log.info("= this kernel has no IPv6: %s is made again without its settings", name)
            op = self._created[name]
            await self._engine.remove(name)
            await self._create(replace(op, body=bodies.without_ipv6(op.body)))
            await self._engine.start(name)


def _texts(environ: Mapping[bytes, bytes]) -> Iterator[str]:
    """As the engine's JSON can carry them; what is no UTF-8 has the launcher's file alone."""
    for name, value in environ.items():
        with contextlib.suppress(UnicodeDecodeError):
            yield f"{name.decode()}={value.decode()}"


def _make_folder(path: Path, mode: int) -> None:
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(mode)  # past the umask


def _without_bind(op: Container) -> dict[str, object] | None:
    """The bridge's body without the folder of this machine."""
    host = op.body.get("HostConfig", {})
    mounts = [mount for mount in host.get("Mounts", ()) if mount["Type"] != "bind"]
    if op.role != "bridge" or len(mounts) == len(host.get("Mounts", ())):
        return None
    return {**op.body, "HostConfig": {**host, "Mounts": mounts, "Tmpfs": {"/run/mbridge": "mode=0700,size=1m"}}}


def _hint(message: str) -> str | None:
    if "port is already allocated" in message or "address already in use" in message:
        return "docker ps shows who publishes it; choose another -p"
    if "network" in message and "not found" in message:
        return "docker network ls shows what --network can name"
    return None


def world_of(plan: Plan) -> World:
    """From a journal alone: for undo."""
    engine = Engine(Endpoint.from_json(plan.engine)) if plan.engine else None  # a visit has no containers of its own
    return World(plan.session, engine, places.place_again(plan.place, plan.session))


async def leftovers(engine: Engine, label: str) -> list[tuple[str, Callable[[], Awaitable[None]]]]:
    """What bears `label` on an engine, by session, each with what removes it."""
    await engine.connect()
    by_session: dict[str, list[str]] = {volume.removeprefix("mbridge-").partition("-")[0]: [] for volume in await engine.volumes(label)}
    for container in await engine.containers(label=[label]):
        by_session.setdefault(container["Labels"].get("mbridge.session", ""), []).append(container["Id"])

    def removal(session: str, ids: list[str]) -> Callable[[], Awaitable[None]]:
        async def remove() -> None:
            for container in ids:
                await engine.remove(container)
            for volume in await engine.volumes(f"mbridge.session={session}"):
                await engine.remove_volume(volume)

        return remove

    return [(session, removal(session, ids)) for session, ids in by_session.items()]

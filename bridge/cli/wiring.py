"""Where commands meet adapters and engine: everything heavy is imported here, inside the method that needs it.

`Wiring` is what commands ask of the outside world, one method per question; tests hand in another object with these methods.
Nothing happens in its constructor. Methods block; those that serve a session end with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

if TYPE_CHECKING:
    from docker import DockerClient

    from bridge.adapters.docker.endpoint import Endpoint
    from bridge.adapters.docker.engine import Engine
    from bridge.cli.cmd_doctor import Check
    from bridge.cli.cmd_forward import Forward
    from bridge.cli.looking import Listed, Where
    from bridge.cli.reading import Source
    from bridge.cli.sessions import SessionFolder
    from bridge.cli.ui import Ui
    from bridge.model.plan import Plan
    from bridge.model.session import SessionStatus
    from bridge.model.wish import SessionWish

T = TypeVar("T")
Which = Literal["bridge", "agent"]
_RECORD_BYTES = 2 << 20


@dataclass(frozen=True, slots=True)
class Image:
    which: str
    name: str
    present: bool
    size: int = 0


class Wiring:
    """The real outside world."""

    # -- serving --------------------------------------------------------------------------------------------------------

    def plan(self, wish: SessionWish) -> Plan:
        """What `run` would do."""
        from bridge.cli import hosting

        _read_options(wish)
        return asyncio.run(hosting.plan_of(wish))

    def run(self, wish: SessionWish, ui: Ui) -> int:
        """Serve one session until its app ends; the app's exit code."""
        from bridge.cli import hosting

        _read_options(wish)
        return _carrying(hosting.host(wish, ui))

    def up(self, wishes: Sequence[SessionWish], ui: Ui) -> int:
        """Serve sessions until their apps end or a signal comes."""
        from bridge.cli import several

        for wish in wishes:
            _read_options(wish)
        if len(wishes) == 1:
            return _carrying(several.up_one(wishes[0], ui))
        return _carrying(several.up_several(wishes, ui.prefixed))

    def up_detached(self, wishes: Sequence[SessionWish], ui: Ui) -> list[str]:
        """Leave a process that serves them; their ids once all are ready."""
        from bridge.cli import detached

        for wish in wishes:
            _read_options(wish)
        return detached.start(wishes, ui)

    def forward(self, wish: SessionWish, forwards: Sequence[Forward], ui: Ui) -> int:
        from bridge.cli.forward_session import forward

        return _carrying(forward(wish, forwards, ui))

    # -- sessions -------------------------------------------------------------------------------------------------------

    def sessions(self) -> list[SessionStatus]:
        from bridge.cli import sessions

        return [status for folder in sessions.all_sessions() if (status := sessions.current_status(folder)) is not None]

    def down(self, ids: Sequence[str], everything: bool, ui: Ui) -> list[str]:
        """End these, or all and what dead ones left; the ids of those that there were. Raises what failed after trying all."""
        from bridge.cli import sessions

        return asyncio.run(_down(sessions.all_sessions(), ids, everything, ui))

    def logs(self, session: str, parts: Sequence[str], follow: bool, tail: int | None, ui: Ui) -> int:
        from bridge.cli import reading, sessions

        folder = sessions.find(session)
        lines = reading.show_logs(folder, parts, follow, tail, ui, self._engine_of(folder.id), self._agent_log(folder))
        return asyncio.run(lines)

    def _agent_log(self, folder: SessionFolder) -> Source | None:
        """Where the session's agent logs, by its plan: the target's engine, or its cluster."""
        from bridge.errors import SpecError

        try:
            plan = folder.plan()
        except SpecError:  # damaged: as in _engine_of
            return None
        if plan is None or not plan.place:
            return None
        if endpoint := plan.place.get("endpoint"):
            from bridge.adapters.docker.endpoint import Endpoint
            from bridge.adapters.docker.engine import Engine
            from bridge.cli import reading

            return reading.EngineLog(Engine(Endpoint.from_json(endpoint)), folder.id, "agent")
        from bridge.cli import kube_logs

        def named() -> str | None:
            status = folder.status()
            return status.agent if status else None

        return kube_logs.PodLog(plan.place, folder.id, named)

    def _engine_of(self, session: str) -> Engine | None:
        """The engine that a session's containers are on, by its plan; None before it had one, or where it has none."""
        from bridge.adapters.docker.endpoint import Endpoint
        from bridge.adapters.docker.engine import Engine
        from bridge.cli import sessions
        from bridge.errors import SpecError

        try:
            plan = sessions.find(session).plan()
        except SpecError:  # damaged: its containers are most likely on the engine that is in use now
            return self._engine(None)
        # A forward has containers beside its target alone, so only its place is known.
        endpoint = (plan.engine or plan.place.get("endpoint")) if plan else None
        return Engine(Endpoint.from_json(endpoint)) if endpoint else None

    def records(self) -> dict[str, str]:
        """Plans, statuses and logs of all sessions, by file name, for `diagnose`; not redacted."""
        from bridge.cli import sessions

        found = {}
        for folder in [*(one.path for one in sessions.all_sessions()), sessions.root()]:
            for name in ("plan.json", "status.json", "log", "fault.log"):
                with contextlib.suppress(OSError):
                    text = (folder / name).read_bytes()[-_RECORD_BYTES:].decode(errors="replace")
                    found[f"sessions/{folder.name}/{name}"] = text
        return found

    # -- looking --------------------------------------------------------------------------------------------------------

    def targets(self, kind: str | None, where: Where, ui: Ui) -> list[Listed]:
        """Of one kind, or of all that can be looked at: then a missing engine or cluster is a warning, where the other is there."""
        return asyncio.run(_targets(kind, where, ui, self._engine(where.docker_context)))

    def checks(self, wish: SessionWish | None, where: Where, ui: Ui) -> Iterator[Check]:
        """Of this machine and its engine; of the wish's target, and of the cluster where it, or `where`, names one."""
        from bridge.cli import checks, places, sessions
        from bridge.model.target import ComposeTarget, DockerTarget

        async def look() -> AsyncIterator[Check]:
            for check in checks.host_checks(sessions.root()):
                yield check
            engine, reached = self._engine(where.docker_context), False
            async for check in checks.engine_checks(engine):
                reached = reached or (check.name == "engine" and check.good is True)
                yield check
            if not reached:
                return
            from bridge.adapters import images

            name = await asyncio.to_thread(images.tag, "bridge")
            async for check in checks.kernel(engine, name, await engine.image(name) is not None):
                yield check
            if wish is not None and isinstance(wish.target, DockerTarget | ComposeTarget):
                async for check in checks.target_checks(places.place_of(wish)):
                    yield check
            elif wish is not None or where.namespace or where.context or where.kubeconfig:
                from bridge.cli import kube_doctor

                async for check in kube_doctor.cluster_checks(where, wish):
                    yield check

        yield from _one_by_one(look())

    def namespace(self, where: Where) -> str:
        """The one that is meant where none is named: the kubeconfig's context has one."""
        from bridge.adapters.kube import kubeconfig
        from bridge.errors import ClusterError

        if where.namespace:
            return where.namespace
        try:
            return kubeconfig.load(where.kubeconfig, where.context, os.environ, Path.home()).namespace
        except ClusterError:
            if where.kubeconfig or where.context:
                raise
            return "default"

    def environ(self, wish: SessionWish, ui: Ui) -> bytes:
        """The target process's environment, as proc(5) has it."""
        from bridge.cli import places

        async def read() -> bytes:
            place = places.place_of(wish)
            await place.find()
            return (await place.environ()).raw

        with ui.passing_on_warnings():
            return asyncio.run(read())

    def _engine(self, docker_context: str | None) -> Engine:
        from bridge.adapters.docker.engine import Engine

        return Engine(self._endpoint(docker_context))

    def _endpoint(self, docker_context: str | None) -> Endpoint:
        from bridge.adapters.docker.endpoint import find_endpoint

        return find_endpoint(docker_context, os.environ)

    # -- images ---------------------------------------------------------------------------------------------------------

    def images(self, docker_context: str | None) -> list[Image]:
        from bridge.adapters import image_store, images

        names = [(which, images.tag(which)) for which in images.NAMES]
        with self._docker_py(docker_context) as client:
            sizes = [(which, name, image_store.size(client, name)) for which, name in names]
        return [Image(which, name, size is not None, size or 0) for which, name, size in sizes]

    def build_images(self, which: Sequence[str], force: bool, docker_context: str | None, ui: Ui) -> list[str]:
        from bridge.adapters import images

        names = []
        with self._docker_py(docker_context) as client:
            for one in cast(Sequence[Which], which):
                if not force and images.present(client, one):
                    names.append(images.tag(one))
                    continue
                with ui.step(one) as step:
                    names.append(images.build(client, one, step.now))
                    step.done(names[-1])
        return names

    def save_images(self, file: Path, which: Sequence[str], docker_context: str | None, ui: Ui) -> None:
        from bridge.adapters import image_store

        names = self.build_images(which, False, docker_context, ui)
        with ui.step("save") as step, self._docker_py(docker_context) as client:
            image_store.save(client, names, file)
            step.done(str(file))

    def load_images(self, file: Path, docker_context: str | None, ui: Ui) -> list[str]:
        from bridge.adapters import image_store

        with ui.step("load"), self._docker_py(docker_context) as client:
            return image_store.load(client, file)

    def load_into_cluster(self, to: str | None, command: str | None, where: Where, ui: Ui) -> str:
        """Bring the agent's image, built where it is absent, from the engine into a cluster; its name."""
        from bridge.cli import cluster_images

        engine = self._engine(where.docker_context)
        cluster = None if command else asyncio.run(cluster_images.find(to, where, engine))
        (name,) = self.build_images(("agent",), False, where.docker_context, ui)
        environ = cluster_images.environ_of(where.docker_context, os.environ)
        with ui.step("load") as step:
            if cluster is None:
                asyncio.run(cluster_images.load_by(command or "", name, engine, step.now, environ))
                step.done("the command has it")
            else:
                step.done(f"{cluster}: {asyncio.run(cluster_images.load(name, cluster, engine, step.now, environ))}")
        return name

    def prune_images(self, dry_run: bool, docker_context: str | None, ui: Ui) -> list[str]:
        """Remove our images of other versions; what they were."""
        from bridge.adapters import image_store, images

        with self._docker_py(docker_context) as client:
            old = image_store.superseded(client, [images.tag(which) for which in images.NAMES])
            if dry_run or not old:
                return [one.what for one in old]
            with ui.step("prune") as step:
                before, gone = image_store.disk_usage(client), []
                for number, one in enumerate(old):
                    step.now(f"{number + 1} of {len(old)}: {one.what}")
                    if image_store.remove(client, one):
                        gone.append(one.what)
                freed = max(0, before - image_store.disk_usage(client))
                step.done(f"{len(gone)} image{'' if len(gone) == 1 else 's'}, {freed / 1e6:.0f} MB")
        return gone

    def push_images(self, repository: str, which: Sequence[str], docker_context: str | None, ui: Ui) -> list[str]:
        from bridge.adapters import image_store

        pushed = []
        names = self.build_images(which, False, docker_context, ui)
        with self._docker_py(docker_context) as client:
            for one, name in zip(which, names, strict=True):
                with ui.step(one) as step:
                    pushed.append(image_store.push(client, name, f"{repository}-{one}", step.now))
                    step.done(pushed[-1])
        return pushed

    def _docker_py(self, docker_context: str | None) -> AbstractContextManager[DockerClient]:
        from bridge.cli import own_images

        asyncio.run(self._engine(docker_context).connect())  # says in the user's words why an engine cannot be used
        return own_images.docker_py(self._endpoint(docker_context))


async def _targets(kind: str | None, where: Where, ui: Ui, engine: Engine) -> list[Listed]:
    from bridge.cli import looking
    from bridge.errors import BridgeError

    listed: list[Listed] = []
    failures: list[BridgeError] = []
    if kind in (None, "docker", "compose"):
        try:
            found = await (await engine.connect()).containers()
        except BridgeError as error:
            failures.append(error)
        else:
            listed += looking.docker_targets(found) if kind in (None, "docker") else []
            listed += looking.compose_targets(found) if kind in (None, "compose") else []
    if kind not in (None, "docker", "compose") or (kind is None and _has_kubeconfig(where)):
        from bridge.cli import kube_doctor

        try:
            async with kube_doctor.open_api(where.kubeconfig, where.context) as api:
                listed += await kube_doctor.targets(api, where.namespace or api.access.namespace, kind, ui.note)
        except BridgeError as error:
            failures.append(error)
    if failures and not listed:
        raise failures[0]
    for failure in failures:
        ui.warn(failure.message)
    return listed


def _has_kubeconfig(where: Where) -> bool:
    """Whether this user has to do with a cluster at all: no reason to be told about one otherwise."""
    if where.kubeconfig or where.context or where.namespace or os.environ.get("KUBECONFIG"):
        return True
    return (Path.home() / ".kube" / "config").is_file()


def _read_options(wish: SessionWish) -> None:
    """Faults of the app's options are told before an engine is asked for anything. Raises SpecError."""
    from bridge.adapters.docker import bodies, options

    bodies.pause("", wish.app, None, {}, ())
    bodies.app(wish.app, None, "", "", {})
    options.environment(wish.app, os.environb)


async def _down(folders: Sequence[SessionFolder], ids: Sequence[str], everything: bool, ui: Ui) -> list[str]:
    from bridge.cli import sessions, undoing
    from bridge.errors import BridgeError

    ended: list[str] = []
    failures: list[BridgeError] = []

    async def end(folder: SessionFolder) -> None:
        with ui.step(folder.id) as step:
            try:
                damage = await sessions.down(folder, step.now)
            except BridgeError as error:
                failures.append(error)
                step.done("not undone")
            else:
                ended.append(folder.id)
                step.done(f"undone; {damage}" if damage else "undone")

    async with asyncio.TaskGroup() as group:  # side by side: an app that does not heed its signal takes its ten seconds
        for folder in folders:
            if everything or folder.id in ids:
                group.create_task(end(folder), name=f"down-{folder.id}")
    if everything:
        await undoing.sweep(ui.note)
    for failure in failures[:-1]:
        ui.fault(failure)
    if failures:
        raise failures[-1]
    return ended


def _one_by_one(source: AsyncIterator[T]) -> Iterator[T]:
    """An asynchronous iterator as a plain one: each item as soon as it is there."""
    ended = object()

    async def advance() -> object:
        return await anext(source, ended)

    with asyncio.Runner() as runner:
        while (item := runner.run(advance())) is not ended:
            yield cast(T, item)


def _carrying(main: Coroutine[Any, Any, T]) -> T:
    """Run what may carry a session's bytes: under uvloop, which costs a quarter less CPU a message there (docs/bench.md)."""
    import uvloop

    return uvloop.run(main)

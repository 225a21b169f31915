"""One session, from its wish to its undo, in the host process.

Theory of operation: nothing is changed before the target is found and the plan is on disk. Then two chains run side by side: the
agent beside the target, and on the developer's engine pause, bridge and the app's container, not started. The bridge is
configured with the agent's key and wires the netns; when it says `ready`, the app starts, in a namespace that is wired already.

    find ─ images ─ journal ─ volumes ─┬─ agent ──────────────────────┐
                                       ├─ folder, pause, bridge, app ─┼─ configure ─ ready ─ start app ─ serve ─ undo
                                       └─ environment of the target ──┘

A signal before the app runs cancels the start and undoes what was made; afterwards it is the app's (`run`), or ends the session
(`up`; and `down`, by a signal of its own). `up` takes over a session whose host process was killed: the same plan is applied
again, and adopts what is there.

Limits: one session per call; several run side by side in tasks of one loop only with `handle_signals=False`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bridge.adapters import terminal
from bridge.adapters.docker import bodies, options
from bridge.adapters.docker.engine import Engine
from bridge.cli import host_gateway, places, session_log, sessions
from bridge.cli.app_process import AppProcess
from bridge.cli.own_images import ensure
from bridge.cli.serving import Serving
from bridge.cli.sessions import SessionFolder
from bridge.cli.world import World
from bridge.engine import up
from bridge.engine.needs import Place
from bridge.errors import BridgeError, HostError, HostKeyMismatch, KeyRefused, SpecError
from bridge.model.environ import choose, envfile, parse_environ
from bridge.model.facts import BridgeConfig, TargetFound
from bridge.model.plan import Agent, Container, Folder, Op, Plan, Start, Volume, containers
from bridge.model.session import SessionStatus, State
from bridge.model.wish import SessionWish
from bridge.protocol import door as wire

log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, sessions.END)
_WARN_AFTER_S = 0.5  # a carrier that makes way for a better one is no news
_SLOW_START_S = 3.0  # a first link that takes longer is told, with its reason


class StepLine(Protocol):
    def now(self, text: str) -> None: ...
    def done(self, text: str) -> None: ...


class Teller(Protocol):
    """What a session says while it starts and lives (cli/ui.py: Ui)."""

    raw: bool

    def step(self, what: str) -> AbstractContextManager[StepLine]: ...
    def warn(self, message: str) -> None: ...
    def note(self, message: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Manner:
    """How a session is hosted. `run` passes signals to the app; `up` takes them as the end, and takes over what was orphaned."""

    attach: bool = True
    signals_end_it: bool = False
    take_over: bool = False
    handle_signals: bool = True
    on_ready: Callable[[str], None] = lambda session: None
    write: Callable[[int, bytes], Awaitable[bool]] = terminal.write_all  # the app's output: descriptor 1 or 2, bytes


async def host(wish: SessionWish, ui: Teller, manner: Manner = Manner()) -> int:
    """Run one session to its end; the app's exit code, or 128 + the signal that ended it before the app ran.

    Raises BridgeError when mbridge itself failed, CleanupError when something could not be undone.
    """
    engine = await places.own_engine()
    folder = await _folder(wish, ui, manner)
    if folder is None:
        return 0
    return await _Hosting(wish, ui, manner, engine, folder).run()


async def plan_of(wish: SessionWish) -> Plan:
    """What `host` would do; nothing is made."""
    engine = await places.own_engine()
    folder = sessions.new()
    found = await places.place_of(wish).find()  # for a look alone: it holds nothing open
    image = await engine.image(wish.app.image)
    return _plan(wish, folder, found, engine, _bridge_tag(), image)


class _Hosting:
    def __init__(self, wish: SessionWish, ui: Teller, manner: Manner, engine: Engine, folder: SessionFolder) -> None:
        self._wish, self._ui, self._manner, self._engine, self._folder = wish, ui, manner, engine, folder
        self._place: Place = places.place_of(wish, folder.id, _hand_volume(wish, folder.id))
        self._place.on_warnings = self._on_warnings
        self._bridge_warnings: tuple[str, ...] = ()
        self._made: list[Op] = []
        self._signal: int | None = None
        self._app: AppProcess | None = None
        self._serving: Serving | None = None
        self._main: asyncio.Task[int] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._warning: asyncio.TimerHandle | None = None
        self._waits: Callable[[str], None] | None = None  # for the first link: says why
        kept = folder.status()  # of a session that is taken over: its app runs on with the environment that was read then
        environ = kept.environ if kept is not None else None
        self._status = SessionStatus(
            folder.id,
            str(wish.target),
            State.STARTING,
            sessions.now(),
            ports=wish.app.ports,
            warnings=(environ,) if environ is not None else (),
            environ=environ,
            app=wish.app_name,
            container=_app_name(wish, folder.id),
        )

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        self._main = loop.create_task(self._session(), name=f"session-{self._folder.id}")
        async with self._signals():
            try:
                return await self._main
            except asyncio.CancelledError:
                if self._signal is None:
                    raise
                return 128 + self._signal
            finally:
                await self._place.close()

    async def _session(self) -> int:
        with self._ui.step("target") as step:
            found = await self._place.find()
            step.done(found.where)
        if found.host_network and not self._wish.yes_host_network:
            raise SpecError(
                f"{found.where} uses its host's own network: rules would reach the host", hint="--yes-host-network if that is meant"
            )
        private_key, public_key = sessions.key_pair()
        with self._folder.lock(), session_log.to_file(self._folder.log):
            failures: list[up.Failure] = []
            try:
                self._folder.write_status(self._status)  # images may take minutes: `status` and `down` know the session meanwhile
                plan, adopted = await self._planned(found)
                if adopted:
                    self._made = list(plan.steps)  # all of it is ours to undo, whatever of it we come to apply again
                self._folder.save(plan)
                said = options.environment(self._wish.app, os.environb)
                world = World(self._folder.id, self._engine, self._place, public_key, app_environ=said)
                return await self._made_and_served(plan, world, private_key, public_key, adopted)
            except (HostKeyMismatch, KeyRefused):
                self._place.distrust_agent()
                raise
            finally:
                self._tell_state(State.STOPPING)
                if self._made:
                    world = World(self._folder.id, self._engine, self._place)
                    failures = await up.undo(self._made, world)
                if not failures:
                    self._folder.forget()
                else:
                    self._tell_state(State.FAILED, failures[0][1].message)
                    raise up.what_is_left(self._folder.id, failures)

    async def _planned(self, found: TargetFound) -> tuple[Plan, bool]:
        kept = self._folder.plan()
        if kept is not None:
            return kept, True
        with self._ui.step("images") as step:
            image = await ensure(self._engine, "bridge", step.now)
            app_image = await self._app_image(step)
        return _plan(self._wish, self._folder, found, self._engine, image, app_image), False

    async def _app_image(self, step: StepLine) -> dict[str, Any]:
        app = self._wish.app
        image = None if app.pull == "always" else await self._engine.image(app.image)
        if image is None:
            if app.pull == "never":
                raise HostError(f"image {app.image} is not on the engine", hint=f"docker pull {app.image}, or leave --pull never away")
            step.now(f"pulling {app.image}")
            await self._engine.pull(app.image, app.platform, step.now)
            image = await self._engine.image(app.image)
        if image is None:
            raise HostError(f"image {app.image} is not on the engine although it was pulled", hint=f"docker pull {app.image}")
        return image

    async def _made_and_served(self, plan: Plan, world: World, private_key: str, public_key: str, adopted: bool) -> int:
        by_role = containers(plan.steps)
        volumes = [op for op in plan.steps if isinstance(op, Volume)]
        agent_steps = [op for op in plan.steps if isinstance(op, Agent)]
        own_steps = [op for op in plan.steps if not isinstance(op, Agent | Volume) and op != Start(by_role["app"].name)]
        environ: asyncio.Task[bytes] | None = None
        await up.apply(volumes, world, self._made)  # before either chain: the engine itself would make what a container mounts, unmarked
        async with _first_error() as group:
            group.create_task(self._apply("agent", agent_steps, world), name="agent")
            group.create_task(self._apply("network", own_steps, world), name="network")
            if not adopted:
                environ = group.create_task(self._environ(), name="environ")
        assert world.agent is not None  # the Agent step brought it
        self._status = dataclasses.replace(self._status, agent=world.agent.name)
        wish = self._wish
        rules = host_gateway.with_direct(wish.rules, wish.app.add_hosts, await self._hosts_file(by_role["pause"].name))
        config = BridgeConfig(
            plan.session, plan.target, private_key, world.agent.host_key, world.agent.agent_id, rules, wish.loopback
        )  # fmt: skip
        serving = self._serving = Serving(
            config, world.agent, public_key, self._place, self._engine, world, by_role, self._folder.run, self._on_status
        )  # fmt: skip
        async with _first_error() as group:
            serve = group.create_task(self._serve(serving), name="serving")
            with self._ui.step("link") as step:
                with self._waiting(step.now):
                    ready = await serving.ready
                step.done(f"{', '.join(ready.facts.addresses) or 'no address'} of {ready.facts.hostname}")
            if environ is not None:
                await self._engine.put_files(by_role["bridge"].name, bodies.VOLUME_IN_BRIDGE, {bodies.ENVIRON_FILE: environ.result()})
            app, attach = wish.app, self._manner.attach
            name = by_role["app"].name
            self._app = AppProcess(
                self._engine,
                name,
                interactive=app.interactive and attach,
                tty=app.tty,
                attach=attach,
                write=self._manner.write,
                on_started=self._on_started,
            )
            self._made.append(Start(name))
            self._ui.raw = app.tty and app.interactive and attach
            try:
                code = await self._app.run(started_already=adopted)
            finally:
                self._ui.raw = False
            await serving.stop()
            serve.cancel()
        return code

    async def _serve(self, serving: Serving) -> None:
        try:
            await serving.run()
        except BaseExceptionGroup as exc:
            if isinstance(error := _leaf(exc), BridgeError):
                self._tell_state(State.STOPPING, error.message)  # the app has ten seconds to end, and who asks meanwhile wants to know
            raise

    async def _hosts_file(self, pause: str) -> str:
        if not host_gateway.names(self._wish.app.add_hosts):
            return ""
        return (await self._engine.read_file(pause, "/etc/hosts")).decode(errors="replace")

    def _on_started(self) -> None:
        self._tell_state(State.READY)
        self._manner.on_ready(self._folder.id)

    async def _apply(self, what: str, steps: Sequence[Op], world: World) -> None:
        with self._ui.step(what) as step:

            def progress(text: str) -> None:  # the agent's image may have to be built or pulled first
                log.info("%s", text)
                step.now(text)

            world.progress = progress if what == "agent" else world.progress
            await up.apply(steps, world, self._made)
            if what == "agent" and world.agent is not None:
                step.done(world.agent.name)

    async def _environ(self) -> bytes:
        """The launcher's file: the target's own environment, less what is excluded, then what the user sets."""
        app = self._wish.app
        window = terminal.size() if app.tty and self._manner.attach else None
        environ = await self._place.environ()
        if environ.warning is not None:
            self._status = dataclasses.replace(self._status, environ=environ.warning)
            self._on_warnings()
        chosen = choose(parse_environ(environ.raw), self._wish.env)
        return envfile({**chosen, **options.environment(app, os.environb)}, window)

    # what is told

    def _on_status(self, status: wire.Status | None, trouble: str | None) -> None:
        """From the bridge, or None with what the host itself saw."""
        if status is not None:
            link = sessions.link_status(status.link)
            self._bridge_warnings = status.warnings
            self._status = dataclasses.replace(
                self._status, link=link, warnings=self._warnings(), holder=status.holder, handed=status.link.handed, flows=status.flows,
            )  # fmt: skip
        if self._serving is not None:  # one that was made anew has another name in a pod, and may be another session's
            self._status = dataclasses.replace(self._status, agent=self._serving.agent.name)
        up_now = self._status.link.state == "up" and trouble is None
        why = trouble or (status.link.why if status is not None else None)
        if self._status.state in (State.READY, State.RECONNECTING):
            self._tell_state(State.READY if up_now else State.RECONNECTING, None if up_now else why)
        else:
            self._folder.write_status(self._status)
            if self._waits is not None and why is not None:
                self._waits(f"{why}; trying again")
                if self._warning is None:
                    said = f"no link yet ({why}); trying again until you end it"
                    self._warning = asyncio.get_running_loop().call_later(_SLOW_START_S, self._ui.warn, said)

    def _warnings(self) -> tuple[str, ...]:
        environ = self._status.environ
        return (*self._place.warnings, *((environ,) if environ is not None else ()), *self._bridge_warnings)

    def _on_warnings(self) -> None:
        """What the place does with less is told as it comes; `status` shows it for as long as it holds, as it shows the bridge's."""
        self._status = sessions.with_warnings(self._status, self._warnings(), self._ui.warn)
        self._folder.write_status(self._status)

    @contextlib.contextmanager
    def _waiting(self, say: Callable[[str], None]) -> Iterator[None]:
        """For the first link: what keeps it from coming up is said by `say` at once, and in a line after a while."""
        self._waits = say
        try:
            yield
        finally:
            self._waits = None
            if self._warning is not None:
                self._warning.cancel()
                self._warning = None

    def _tell_state(self, state: State, why: str | None = None) -> None:
        before = self._status.state
        with contextlib.suppress(BridgeError):
            self._status = self._status.changed(state, sessions.now(), why)
        self._folder.write_status(self._status)
        if state != before and state is State.RECONNECTING:
            said = f"the link is down ({why or 'no reason given'}); it comes back by itself"
            self._warning = asyncio.get_running_loop().call_later(_WARN_AFTER_S, self._warn, said)
        elif state != before and before is State.RECONNECTING:
            if self._warning is not None:
                self._warning.cancel()
            elif state is State.READY:
                self._ui.note("the link is back")

    def _warn(self, text: str) -> None:
        self._warning = None
        self._ui.warn(text)

    # signals

    @contextlib.asynccontextmanager
    async def _signals(self) -> AsyncIterator[None]:
        if not self._manner.handle_signals:
            yield
            return
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            yield
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    def _on_signal(self, number: int) -> None:
        app = self._app
        if app is not None and app.running and not self._manner.signals_end_it and number != sessions.END and self._signal is None:
            self._spawn(app.on_signal(number))
        elif self._signal is None and self._main is not None:
            self._signal = number
            self._tell_state(State.STOPPING)
            self._main.cancel()
        elif app is not None and app.started:  # a second one: no more time for the app
            self._spawn(app.kill())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work, name="signal")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


@contextlib.asynccontextmanager
async def _first_error() -> AsyncIterator[asyncio.TaskGroup]:
    """A task group whose failure is its first task's BridgeError, as the user is to see it."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as exc:
        raise _leaf(exc) from exc


def _leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = next((one for one in error.exceptions if isinstance(one, BridgeError)), error.exceptions[0])
    return error


async def _folder(wish: SessionWish, ui: Teller, manner: Manner) -> SessionFolder | None:
    """A new session's folder, or an orphaned one's; None where `up` finds the same wish being served."""
    if not manner.take_over:
        return sessions.new()
    identity, _, fingerprint = _key(wish).partition(":")
    served = sessions.running(identity)
    if served is not None:
        ui.note(f"session {served.id} is up already")
        manner.on_ready(served.id)
        return None
    orphan = sessions.orphan(identity)
    if orphan is None:
        return sessions.new()
    plan = orphan.plan()
    if plan is not None and plan.key == f"{identity}:{fingerprint}" and await _alive(plan):
        ui.note(f"taking over session {orphan.id}, whose host process is gone")
        return orphan
    ui.note(f"removing what session {orphan.id} left")
    await sessions.down(orphan, ui.note)
    return sessions.new()


async def _alive(plan: Plan) -> bool:
    engine = await places.own_engine()
    for role in ("pause", "app"):
        found = await engine.inspect(containers(plan.steps)[role].name)
        if found is None or not found["State"]["Running"]:
            return False
    return True


def _key(wish: SessionWish) -> str:
    """IDENTITY:FINGERPRINT: the same app for the same target from the same folder; and exactly the same wish. Reveals nothing."""
    identity = json.dumps([str(wish.target), wish.app_name, str(Path.cwd()), wish.docker_context, wish.context, wish.namespace])
    return ":".join(hashlib.sha256(text.encode()).hexdigest()[:16] for text in (identity, repr(wish)))


def _plan(
    wish: SessionWish, folder: SessionFolder, found: TargetFound, engine: Engine, image: str, app_image: dict[str, Any] | None
) -> Plan:
    session, app = folder.id, wish.app
    pause_name, bridge_name, app_name, volume = (
        f"mbridge-{session}-pause",
        f"mbridge-{session}-bridge",
        _app_name(wish, session),
        f"mbridge-{session}",
    )
    hand = _hand_volume(wish, session)

    def marks(role: str) -> dict[str, str]:
        return bodies.labels(session, role, sessions.owner())

    aliases = (app_name,) if app.name else ()
    run = folder.run if engine.endpoint.is_unix else None  # elsewhere the engine has other files than we
    steps: list[Op] = [
        Folder(str(folder.run), 0o777),  # behind a 0700 folder: the engine's root may be another user than we
        Agent(str(wish.target)),
        Volume(volume),
        *([Volume(hand)] if hand else []),
        Container(
            "pause", pause_name, bodies.pause(image, app, found.hostname, marks("pause"), aliases), tuple(app.networks[1:]), aliases
        ),
        Start(pause_name),
        Container(
            "bridge", bridge_name, bodies.bridge(image, pause_name, volume, hand, run, marks("bridge"), os.environ.get("MBRIDGE_LOG"))
        ),
        Start(bridge_name),
        Container("app", app_name, bodies.app(app, app_image, pause_name, volume, marks("app")), platform=app.platform),
        Start(app_name),
    ]  # fmt: skip
    endpoint, where = engine.endpoint.to_json(), places.to_json(wish)
    return Plan(session, str(wish.target), wish.app_name, _key(wish), endpoint, where, tuple(steps))


def _app_name(wish: SessionWish, session: str) -> str:
    return wish.app.name or f"mbridge-{session}-app"


def _hand_volume(wish: SessionWish, session: str) -> str | None:
    return f"mbridge-{session}-hand" if places.shares_engine(wish) else None


def _bridge_tag() -> str:
    from bridge.adapters import images

    return images.tag("bridge")

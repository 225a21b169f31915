"""One session in the host process, against a fake engine, a fake bridge behind its real door, and a fake place."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from bridge.adapters.docker.engine import Engine
from bridge.cli import hosting, places, sessions
from bridge.cli.hosting import Manner
from bridge.cli.world import World as SessionWorld
from bridge.engine.needs import TargetChange
from bridge.errors import AgentFailed, BridgeError, HostError, HostKeyMismatch, KernelLacks, TargetNotFound
from bridge.model.environ import EnvWish
from bridge.model.facts import AgentIdentity, Facts, TargetFound
from bridge.model.session import State
from bridge.model.target import DockerTarget
from bridge.model.wish import AppWish, SessionWish
from bridge.protocol import door as wire
from tests.unit.fake_engine import Container, FakeEngine, forever

FACTS = Facts("orders-1", ("10.1.0.3/24",), "nameserver 10.1.0.1\n", "")
WISH = SessionWish(DockerTarget("orders"), AppWish("app:1", env=("B=mine",)), env=EnvWish(exclude=("SECRET",)))


class FakePlace:
    """A target that is found; each agent has a number."""

    def __init__(self) -> None:
        self.agents = 0
        self.present = False
        self.broken: BridgeError | None = None
        self.dials: list[BridgeError] = []  # what the next dials fail with
        self.changes: asyncio.Queue[TargetChange] = asyncio.Queue()
        self.hold: asyncio.Event | None = None

    async def find(self) -> TargetFound:
        return TargetFound("docker/orders", "container orders", "1", hostname="orders-1")

    async def start_agent(self, public_key: str, progress: Callable[[str], None]) -> AgentIdentity:
        if self.broken is not None:
            raise self.broken
        self.present = True
        if self.hold is not None:
            await self.hold.wait()
        self.agents += 1
        return AgentIdentity(f"{self.agents:016x}", f"ssh-ed25519 KEY{self.agents}", 1, "mbridge-x-agent")

    async def dial(self, agent: AgentIdentity, avoid: Sequence[str]) -> tuple[str, socket.socket]:
        if self.dials:
            raise self.dials.pop(0)
        ours, theirs = socket.socketpair()
        theirs.sendall(f"agent {agent.agent_id}".encode())
        theirs.close()
        return "direct", ours

    async def environ(self) -> bytes:
        return b"A=target's\0B=target's\0SECRET=no\0PATH=/target\0ODD=\xff\0"

    async def watch(self) -> AsyncIterator[TargetChange]:
        while True:
            yield await self.changes.get()

    async def remove_agent(self) -> None:
        self.present = False


class Bridge:
    """Programs of the bridge's image: pause, and a bridge that answers at its door."""

    def __init__(self) -> None:
        self.configs: list[wire.Configure] = []
        self.heard: asyncio.Queue[wire.Message | None] = asyncio.Queue()
        self.carriers: asyncio.Queue[bytes] = asyncio.Queue()
        self.may_be_ready = asyncio.Event()
        self.may_be_ready.set()
        self.fails: wire.Failed | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def program(self, container: Container) -> int:
        if not container.name.endswith("-bridge"):
            return await forever(container)
        path = Path(container.body["HostConfig"]["Mounts"][0]["Source"]) / "bridge.sock"
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.setblocking(False)
            listener.listen()
            async with asyncio.TaskGroup() as group:
                accepting = group.create_task(self._accept(listener, group), name="door")
                code = await forever(container)
                accepting.cancel()
                if self._writer is not None:
                    self._writer.close()
            return code

    async def _accept(self, listener: socket.socket, group: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(listener)
            sock.setblocking(True)
            line, fds, _, _ = await asyncio.to_thread(socket.recv_fds, sock, 4096, 2)
            if json.loads(line.splitlines()[0])["type"] == "carrier":
                with socket.socket(fileno=fds[0]) as carrier:
                    carrier.setblocking(True)
                    self.carriers.put_nowait(carrier.recv(100))
                sock.close()
                continue
            sock.setblocking(False)
            reader, self._writer = await asyncio.open_unix_connection(sock=sock)
            group.create_task(self._control(reader, self._writer, line.partition(b"\n")[2]), name="control")

    async def _control(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rest: bytes) -> None:
        lines = wire.LineReader()
        pending = lines.feed(rest) if rest else []
        while True:
            for message in map(wire.decode, pending):
                if isinstance(message, wire.Configure):
                    self.configs.append(message)
                    await self.may_be_ready.wait()
                    writer.write(wire.encode(self.fails or wire.Ready(FACTS, "nameserver 127.0.0.11\n")))
                self.heard.put_nowait(message)
            data = await reader.read(65536)
            if not data:
                return
            pending = lines.feed(data)

    def say(self, message: wire.Message) -> None:
        assert self._writer is not None
        self._writer.write(wire.encode(message))

    async def hears(self, kind: type[wire.Message]) -> Any:
        while not isinstance(message := await self.heard.get(), kind):
            pass
        return message


class Quiet:
    """A teller that keeps what it is told."""

    raw = False

    def __init__(self) -> None:
        self.told: list[str] = []

    @contextlib.contextmanager
    def step(self, what: str) -> Iterator[Quiet]:
        yield self

    def now(self, text: str) -> None:
        pass

    def done(self, text: str) -> None:
        self.told.append(text)

    def warn(self, message: str) -> None:
        self.told.append(message)

    note = warn


class World:
    """All that a test meets."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine, self.place, self.bridge, self.ui = engine, FakePlace(), Bridge(), Quiet()
        self.output = b""
        self.app_signals: asyncio.Queue[str] = asyncio.Queue()
        self.started = asyncio.Event()
        engine.images["bridge:1"] = {"Id": "2", "Config": {}}
        engine.programs["bridge:1"] = self.bridge.program
        engine.programs["app:1"] = self.app

    async def app(self, container: Container) -> int:
        self.started.set()
        container.output.append((1, b"hello\n"))
        return await forever(container)

    async def host(self, wish: SessionWish = WISH, **manner: Any) -> int:
        async def write(fd: int, data: bytes) -> bool:
            self.output += data
            return True

        return await hosting.host(wish, self.ui, Manner(write=write, **manner))

    def container(self, role: str) -> Container:
        return next(one for one in self.engine.containers.values() if one.body["Labels"]["mbridge.role"] == role)

    def status(self) -> Any:
        (folder,) = sessions.all_sessions()
        return folder.status()

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not true():  # noqa: ASYNC110  what is waited for is a status file, or a list that many append to
                await asyncio.sleep(0.002)

    def assert_nothing_is_left(self) -> None:
        assert not self.engine.containers
        assert not self.engine.volumes
        assert not self.place.present
        assert not sessions.all_sessions()


Scenario = Callable[[World], Coroutine[Any, Any, None]]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Scenario], None]]:
    """Runs a scenario; its world has been left as it was found when it returns."""
    folder = Path(tempfile.mkdtemp(prefix="mbt"))  # short: an address of a Unix socket has 107 bytes
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
    (folder / "mbridge").mkdir(mode=0o700)
    for name in ("id_ed25519", "id_ed25519.pub"):
        (folder / "mbridge" / name).write_text(name)

    def run(scenario: Scenario) -> None:
        async def all_of_it() -> None:
            async with asyncio.timeout(20), FakeEngine(folder) as engine:
                world = World(engine)

                async def own_engine() -> Engine:
                    return await Engine(engine.endpoint).connect()

                async def ensure(*_: object) -> str:
                    return "bridge:1"

                monkeypatch.setattr(places, "own_engine", own_engine)
                monkeypatch.setattr(places, "place_of", lambda wish, session="": world.place)
                monkeypatch.setattr(hosting, "ensure", ensure)
                await scenario(world)
                world.assert_nothing_is_left()

        asyncio.run(all_of_it())

    yield run
    shutil.rmtree(folder)


def test_the_apps_exit_code_and_output_are_the_users_and_nothing_is_left(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        async def app(container: Container) -> int:
            container.output += [(1, b"one\n"), (2, b"two\n")]
            return 7

        world.engine.programs["app:1"] = app
        assert await world.host() == 7
        assert world.output == b"one\ntwo\n"

    play(scenario)


def test_the_app_finds_the_targets_environment_less_what_is_excluded_and_the_users_beats_it(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        seen: list[bytes] = []

        async def app(container: Container) -> int:
            seen.append(world.container("bridge").files["/mbridge/app/environ"])
            return 0

        world.engine.programs["app:1"] = app
        await world.host()
        assert seen == [b"+\0A=target's\0B=mine\0ODD=\xff\0"]

    play(scenario)


def test_the_app_does_not_start_before_the_bridge_is_ready(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        world.bridge.may_be_ready.clear()
        ready: list[str] = []
        async with asyncio.TaskGroup() as group:
            hosted = group.create_task(world.host(on_ready=ready.append, signals_end_it=True))
            await world.until(lambda: bool(world.bridge.configs))
            assert world.container("app").state == "created"
            assert world.status().state is State.STARTING
            assert not ready
            world.bridge.may_be_ready.set()
            await world.started.wait()
            await world.until(lambda: bool(ready))
            os.kill(os.getpid(), signal.SIGTERM)
            assert await hosted == 128 + signal.SIGTERM
        assert world.bridge.configs[0].config.private_key == "id_ed25519"

    play(scenario)


@pytest.mark.parametrize("role", ["pause", "bridge", "app"])
def test_ctrl_c_while_a_container_is_being_made_undoes_that_one_too(play: Callable[[Scenario], None], role: str) -> None:
    async def scenario(world: World) -> None:
        hold = world.engine.hold[f"create {role}"] = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            hosted = group.create_task(world.host())
            await world.until(lambda: any(one.name.endswith(role) for one in world.engine.containers.values()))
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(0.01)
            assert not hosted.done()
            hold.set()
            assert await hosted == 130

    play(scenario)


def test_ctrl_c_while_the_agent_is_being_made_undoes_it(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        world.place.hold = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            hosted = group.create_task(world.host())
            await world.until(lambda: world.place.present and "POST /volumes/create" in world.engine.calls)
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(0.01)
            world.place.hold.set()
            assert await hosted == 130

    play(scenario)


def test_a_target_that_is_not_there_costs_nothing(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        async def find() -> TargetFound:
            raise TargetNotFound("no container is called 'orders'")

        world.place.find = find  # type: ignore[method-assign]
        with pytest.raises(TargetNotFound):
            await world.host()
        assert not [call for call in world.engine.calls if call.startswith("POST")]

    play(scenario)


def test_an_agent_that_fails_undoes_what_was_made_beside_it(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        world.place.broken = AgentFailed("the agent did not start")
        with pytest.raises(AgentFailed):
            await world.host()

    play(scenario)


def test_what_the_bridge_cannot_do_ends_the_start_in_its_words(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        world.bridge.fails = wire.Failed("KernelLacks", "the kernel lacks tun", "modprobe tun")
        with pytest.raises(KernelLacks, match="lacks tun") as told:
            await world.host()
        assert told.value.hint == "modprobe tun"
        assert not world.started.is_set()

    play(scenario)


def test_a_strangers_container_of_that_name_stays(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        world.engine.containers["stranger"] = stranger = Container("stranger", "web", {"Image": "app:1", "Labels": {}})
        with pytest.raises(HostError, match="name web is in use"):
            await world.host(SessionWish(DockerTarget("orders"), AppWish("app:1", name="web")))
        assert world.engine.containers.pop("stranger") is stranger

    play(scenario)


@contextlib.asynccontextmanager
async def _up(world: World) -> AsyncIterator[asyncio.Task[int]]:
    """A session whose app runs, ended at the end."""
    async with asyncio.TaskGroup() as group:
        hosted = group.create_task(world.host(signals_end_it=True))
        await world.until(lambda: world.started.is_set() and world.status().state is State.READY)
        yield hosted
        if not hosted.done():
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_bridge_that_ends_is_started_again_and_told_all_while_the_app_runs_on(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        async with _up(world):
            bridge = world.container("bridge")
            bridge.signals.append("KILL")
            bridge.killed.set()
            await world.until(lambda: len(world.bridge.configs) == 2)
            assert world.bridge.configs[1].config.engine_resolv_conf == "nameserver 127.0.0.11\n"
            assert world.container("app").starts == 1
            assert "the bridge has ended" in str(world.ui.told)

    play(scenario)


def test_a_bridge_that_was_removed_is_made_again(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        async with _up(world):
            await Engine(world.engine.endpoint).remove(world.container("bridge").id)
            await world.until(lambda: len(world.bridge.configs) == 2)

    play(scenario)


def test_a_dial_is_answered_with_a_descriptor_whose_far_end_is_the_agent(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        async with _up(world):
            world.bridge.say(wire.Dial(1))
            assert await world.bridge.carriers.get() == b"agent 0000000000000001"

    play(scenario)


def test_a_dial_that_finds_the_agent_ended_brings_a_new_one_once(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        async with _up(world):
            world.place.dials = [AgentFailed("the agent has ended"), AgentFailed("the agent has ended")]
            world.bridge.say(wire.Dial(1))
            world.bridge.say(wire.Dial(2))
            assert await world.bridge.hears(wire.Agent) == wire.Agent("ssh-ed25519 KEY2", f"{2:016x}")
            assert {(await world.bridge.hears(wire.CarrierFailed)).id for _ in range(2)} == {1, 2}
            assert world.place.agents == 2

    play(scenario)


def test_a_target_that_stops_is_waited_for_and_gets_a_new_agent_when_it_is_back(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        async with _up(world):
            world.place.changes.put_nowait(TargetChange("gone", "the target orders has stopped"))
            await world.until(lambda: world.status().state is State.RECONNECTING)
            assert world.status().why == "the target orders has stopped"
            world.bridge.say(wire.Dial(1))
            assert (await world.bridge.hears(wire.CarrierFailed)).why == "the target orders has stopped"
            world.place.changes.put_nowait(TargetChange("moved", "the target orders has started"))
            assert (await world.bridge.hears(wire.Agent)).agent_id == f"{2:016x}"
            world.bridge.say(wire.Status(wire.LinkStatus("connected", 0.0, "direct")))
            await world.until(lambda: world.status().state is State.READY)
            assert world.container("app").starts == 1

    play(scenario)


def test_the_session_ends_with_its_pause_container(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        async with asyncio.TaskGroup() as group:
            hosted = group.create_task(_error_of(world))
            await world.started.wait()
            pause = world.container("pause")
            pause.signals.append("KILL")
            pause.killed.set()
            assert "network is gone" in (await hosted).message

    play(scenario)


def test_a_second_host_key_ends_the_session(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        async with asyncio.TaskGroup() as group:
            hosted = group.create_task(_error_of(world))
            await world.started.wait()
            world.place.dials = [HostKeyMismatch("the log holds a second host key")]
            world.bridge.say(wire.Dial(1))
            assert "second host key" in (await hosted).message
            assert world.engine.containers == {}

    play(scenario)


async def _error_of(world: World) -> BridgeError:
    with pytest.raises(BridgeError) as told:
        await world.host()
    return told.value


def test_a_signal_is_the_apps_in_run_and_the_third_kills_it(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        async def deaf(container: Container) -> int:
            world.started.set()
            while await container.killed_by() != "KILL":
                container.killed.clear()
            return 137

        world.engine.programs["app:1"] = deaf
        async with asyncio.TaskGroup() as group:
            hosted = group.create_task(world.host())
            await world.started.wait()
            app = world.container("app")
            for count, sent in enumerate((signal.SIGINT, signal.SIGHUP, signal.SIGTERM), start=1):
                await world.until(lambda: world.status().state is State.READY)
                os.kill(os.getpid(), sent)
                await world.until(lambda count=count: len(app.signals) >= count)  # type: ignore[misc]
            assert await hosted == 137
        assert app.signals[:3] == ["INT", "HUP", "KILL"]

    play(scenario)


def test_what_cannot_be_removed_is_named_and_kept_for_down(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        async def app(container: Container) -> int:
            world.engine.refuse["DELETE /volumes"] = "volume is in use"
            return 0

        world.engine.programs["app:1"] = app
        with pytest.raises(BridgeError, match=r"left: mbridge-\w+ \(volume is in use\)") as told:
            await world.host()
        assert told.value.exit_code == 7
        (folder,) = sessions.all_sessions()
        world.engine.refuse.clear()
        plan = folder.plan()
        assert plan is not None
        assert plan.engine["url"] == world.engine.endpoint.url
        await sessions.down(folder, lambda line: None)

    play(scenario)


async def _orphaned(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a host process that was killed has left: a journal, and all that it names, running."""
    monkeypatch.setattr(hosting, "_bridge_tag", lambda: "bridge:1")
    plan = await hosting.plan_of(WISH)
    sessions.SessionFolder(sessions.root() / plan.session).save(plan)
    maker = SessionWorld(plan.session, await Engine(world.engine.endpoint).connect(), world.place)
    for op in plan.steps:
        await maker.do(op)
    await world.started.wait()


def test_up_takes_an_orphaned_session_over_without_a_restart_of_its_app(
    play: Callable[[Scenario], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(world: World) -> None:
        await _orphaned(world, monkeypatch)
        ready: list[str] = []
        async with asyncio.TaskGroup() as group:
            hosted = group.create_task(world.host(take_over=True, signals_end_it=True, on_ready=ready.append))
            await world.until(lambda: bool(ready))
            assert [folder.id for folder in sessions.all_sessions()] == ready
            assert (world.container("app").starts, world.container("pause").starts) == (1, 1)
            assert await world.host(take_over=True, signals_end_it=True, handle_signals=False) == 0, "it is up already"
            os.kill(os.getpid(), signal.SIGTERM)
            assert await hosted == 128 + signal.SIGTERM

    play(scenario)


def test_up_replaces_an_orphan_of_another_wish_for_the_same_app(play: Callable[[Scenario], None], monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        await _orphaned(world, monkeypatch)
        monkeypatch.setattr(places, "place_again", lambda where, session: world.place)
        (orphan,) = sessions.all_sessions()

        async def app(container: Container) -> int:
            assert orphan.id not in [folder.id for folder in sessions.all_sessions()]
            return 5

        world.engine.programs["app:1"] = app
        changed = SessionWish(DockerTarget("orders"), AppWish("app:1", env=("B=changed",)))
        assert await world.host(changed, take_over=True, signals_end_it=True) == 5

    play(scenario)


def test_a_takeover_that_fails_leaves_nothing_of_what_it_took_over(
    play: Callable[[Scenario], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(world: World) -> None:
        await _orphaned(world, monkeypatch)
        world.place.broken = AgentFailed("the agent did not start")
        with pytest.raises(AgentFailed):
            await world.host(take_over=True, signals_end_it=True)

    play(scenario)

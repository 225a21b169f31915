"""One session in the host process from its start to its end: what the user gets, and what is left."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from bridge.cli import sessions
from bridge.errors import AgentFailed, BridgeError, HostError, KernelLacks, TargetNotFound
from bridge.model.facts import TargetFound
from bridge.model.session import State
from bridge.model.target import DockerTarget
from bridge.model.wish import AppWish, SessionWish
from bridge.protocol import door as wire
from tests.unit.cli.hosted import Play, World
from tests.unit.fake_engine import Container


def test_the_apps_exit_code_and_output_are_the_users_and_nothing_is_left(play: Play) -> None:
    async def scenario(world: World) -> None:
        async def app(container: Container) -> int:
            container.output += [(1, b"one\n"), (2, b"two\n")]
            return 7

        world.engine.programs["app:1"] = app
        assert await world.host() == 7
        assert world.output == b"one\ntwo\n"

    play(scenario)


def test_the_app_finds_the_targets_environment_less_what_is_excluded_and_the_users_beats_it(play: Play) -> None:
    async def scenario(world: World) -> None:
        seen: list[bytes] = []

        async def app(container: Container) -> int:
            seen.append(world.container("bridge").files["/mbridge/app/environ"])
            return 0

        world.engine.programs["app:1"] = app
        await world.host()
        assert seen == [b"+\0A=target's\0B=mine\0ODD=\xff\0"]

    play(scenario)


def test_docker_exec_in_the_apps_container_finds_what_e_gave_and_no_plan_holds_it(play: Play) -> None:
    async def scenario(world: World) -> None:
        plans: list[str] = []

        async def app(container: Container) -> int:
            (folder,) = sessions.all_sessions()
            plans.append((folder.path / "plan.json").read_text())
            assert container.body["Env"] == ["B=mine"], "nothing of the target's"
            return 0

        world.engine.programs["app:1"] = app
        assert await world.host() == 0
        assert "B=mine" not in plans[0]

    play(scenario)


def test_the_app_does_not_start_before_the_bridge_is_ready(play: Play) -> None:
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


@pytest.mark.parametrize("level", [None, "debug"])
def test_the_bridge_tells_of_flows_where_the_user_asks_for_it(play: Play, monkeypatch: pytest.MonkeyPatch, level: str | None) -> None:
    if level:
        monkeypatch.setenv("MBRIDGE_LOG", level)
    else:
        monkeypatch.delenv("MBRIDGE_LOG", raising=False)

    async def scenario(world: World) -> None:
        environs: list[list[str]] = []

        async def app(container: Container) -> int:
            environs.append(world.container("bridge").body["Env"])
            return 0

        world.engine.programs["app:1"] = app
        await world.host()
        assert environs == [[f"MBRIDGE_LOG={level}"] if level else []]

    play(scenario)


@pytest.mark.parametrize("role", ["pause", "bridge", "app"])
def test_ctrl_c_while_a_container_is_being_made_undoes_that_one_too(play: Play, role: str) -> None:
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


def test_ctrl_c_while_the_agent_is_being_made_undoes_it(play: Play) -> None:
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


def test_a_target_that_is_not_there_costs_nothing(play: Play) -> None:
    async def scenario(world: World) -> None:
        async def find() -> TargetFound:
            raise TargetNotFound("no container is called 'orders'")

        world.place.find = find  # type: ignore[method-assign]
        with pytest.raises(TargetNotFound):
            await world.host()
        assert not [call for call in world.engine.calls if call.startswith("POST")]

    play(scenario)


def test_an_agent_that_fails_undoes_what_was_made_beside_it(play: Play) -> None:
    async def scenario(world: World) -> None:
        world.place.broken = AgentFailed("the agent did not start")
        with pytest.raises(AgentFailed):
            await world.host()

    play(scenario)


def test_what_the_bridge_cannot_do_ends_the_start_in_its_words(play: Play) -> None:
    async def scenario(world: World) -> None:
        world.bridge.fails = wire.Failed("KernelLacks", "the kernel lacks tun", "modprobe tun")
        with pytest.raises(KernelLacks, match="lacks tun") as told:
            await world.host()
        assert told.value.hint == "modprobe tun"
        assert not world.started.is_set()

    play(scenario)


def test_a_strangers_container_of_that_name_stays(play: Play) -> None:
    async def scenario(world: World) -> None:
        world.engine.containers["stranger"] = stranger = Container("stranger", "web", {"Image": "app:1", "Labels": {}})
        with pytest.raises(HostError, match="name web is in use"):
            await world.host(SessionWish(DockerTarget("orders"), AppWish("app:1", name="web")))
        assert world.engine.containers.pop("stranger") is stranger

    play(scenario)


def test_a_signal_is_the_apps_in_run_and_the_third_kills_it(play: Play) -> None:
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


def test_what_cannot_be_removed_is_named_and_kept_for_down(play: Play) -> None:
    async def scenario(world: World) -> None:
        async def app(container: Container) -> int:
            world.engine.refuse["DELETE /volumes"] = "volume is in use"
            return 0

        world.engine.programs["app:1"] = app
        with pytest.raises(BridgeError, match=r"left: mbridge-\w+-hand, mbridge-\w+ \(volume is in use\)") as told:
            await world.host()
        assert told.value.exit_code == 7
        (folder,) = sessions.all_sessions()
        world.engine.refuse.clear()
        plan = folder.plan()
        assert plan is not None
        assert plan.engine["url"] == world.engine.endpoint.url
        await sessions.down(folder, lambda line: None)

    play(scenario)


def test_the_status_file_says_whether_connections_are_handed_over(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with asyncio.TaskGroup() as group:
            hosted = group.create_task(world.host(signals_end_it=True))
            await world.started.wait()
            assert not world.status().handed
            world.bridge.say(wire.Status(wire.LinkStatus("connected", 0.0, "direct", handed=True)))
            await world.until(lambda: world.status().handed)
            os.kill(os.getpid(), signal.SIGTERM)
            await hosted

    play(scenario)

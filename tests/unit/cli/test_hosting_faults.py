"""A session whose parts come and go while its app runs: what is made again, and what ends it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator

import pytest

from bridge.adapters.docker.engine import Engine
from bridge.cli import hosting
from bridge.engine.needs import TargetChange
from bridge.errors import AgentFailed, BridgeError, Forbidden, HostError, HostKeyMismatch, KeyRefused, VersionMismatch
from bridge.model.session import State
from bridge.protocol import door as wire
from tests.unit.cli.hosted import Play, World
from tests.unit.fake_engine import Container


@contextlib.asynccontextmanager
async def _up(world: World) -> AsyncIterator[asyncio.Task[int]]:
    """A session whose app runs, ended at the end."""
    async with asyncio.TaskGroup() as group:
        hosted = group.create_task(world.host(signals_end_it=True))
        await world.until(lambda: world.started.is_set() and world.status().state is State.READY)
        yield hosted
        if not hosted.done():
            os.kill(os.getpid(), signal.SIGTERM)


async def _error_of(world: World) -> BridgeError:
    with pytest.raises(BridgeError) as told:
        await world.host()
    return told.value


def test_a_bridge_that_ends_is_started_again_and_told_all_while_the_app_runs_on(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with _up(world):
            bridge = world.container("bridge")
            bridge.signals.append("KILL")
            bridge.killed.set()
            await world.until(lambda: len(world.bridge.configs) == 2)
            assert world.bridge.configs[1].config.engine_resolv_conf == "nameserver 127.0.0.11\n"
            assert world.container("app").starts == 1
            await world.until(lambda: "the bridge has ended" in str(world.ui.told))

    play(scenario)


def test_a_bridge_that_was_removed_is_made_again(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with _up(world):
            await Engine(world.engine.endpoint).remove(world.container("bridge").id)
            await world.until(lambda: len(world.bridge.configs) == 2)

    play(scenario)


def test_what_the_target_gives_less_of_is_told_once_and_stands_in_status_while_it_holds(play: Play) -> None:
    little, spec, helper = "70 of its 200 MiB of memory are free", "the environment is the spec's", "its own address"

    async def scenario(world: World) -> None:
        def warn(*texts: str) -> None:
            world.place.warnings = texts
            world.place.on_warnings()

        world.place.warnings, world.place.spec = (little,), spec
        world.place.hold = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            hosted = group.create_task(world.host(signals_end_it=True))
            await world.until(lambda: world.place.present)
            warn(little)
            assert world.ui.told.count(little) == 1, "while the start is under way"
            world.place.hold.set()
            await world.until(lambda: world.started.is_set() and world.status().state is State.READY)
            assert world.status().warnings == (little, spec)
            world.bridge.say(wire.Status(wire.LinkStatus("connected", 0, "direct"), ("no ping",)))
            await world.until(lambda: world.status().warnings == (little, spec, "no ping"))
            warn(little, helper)
            assert world.status().warnings == (little, helper, spec, "no ping")
            warn(helper)
            assert world.status().warnings == (helper, spec, "no ping")
            assert [world.ui.told.count(one) for one in (little, spec, helper)] == [1, 1, 1]
            os.kill(os.getpid(), signal.SIGTERM)
        assert hosted.result() == 143
        warn("late")
        world.assert_nothing_is_left()

    play(scenario)


def test_a_dial_is_answered_with_a_descriptor_whose_far_end_is_the_agent(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with _up(world):
            world.bridge.say(wire.Dial(1))
            assert await world.bridge.carriers.get() == b"agent 0000000000000001"

    play(scenario)


def test_a_dial_that_finds_the_agent_ended_brings_a_new_one_once(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with _up(world):
            world.place.dials = [AgentFailed("the agent has ended"), AgentFailed("the agent has ended")]
            world.bridge.say(wire.Dial(1))
            world.bridge.say(wire.Dial(2))
            assert await world.bridge.hears(wire.Agent) == wire.Agent("ssh-ed25519 KEY2", f"{2:016x}")
            assert {(await world.bridge.hears(wire.CarrierFailed)).id for _ in range(2)} == {1, 2}
            assert world.place.agents == 2

    play(scenario)


def test_a_target_that_stops_is_waited_for_and_gets_a_new_agent_when_it_is_back(play: Play) -> None:
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


@pytest.mark.parametrize("error", [Forbidden("create", "pods/portforward", "shop"), VersionMismatch("the agent speaks 2, this side 1")])
def test_a_start_ends_with_what_no_other_attempt_can_help_and_a_session_lives_on(play: Play, error: BridgeError) -> None:
    async def scenario(world: World) -> None:
        world.bridge.may_be_ready.clear()
        world.place.dials = [error]
        async with asyncio.TaskGroup() as group:
            failing = group.create_task(_error_of(world))
            await world.until(lambda: bool(world.bridge.configs))
            world.bridge.say(wire.Dial(1))
            assert await failing is error
        world.assert_nothing_is_left()
        world.bridge.may_be_ready.set()
        async with _up(world):
            world.place.dials = [error]
            world.bridge.say(wire.Dial(2))
            assert await world.bridge.hears(wire.CarrierFailed) == wire.CarrierFailed(2, error.message)

    play(scenario)


def test_a_first_link_that_takes_its_time_is_told_with_the_reason(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosting, "_SLOW_START_S", 0.01)

    async def scenario(world: World) -> None:
        world.bridge.may_be_ready.clear()
        async with asyncio.TaskGroup() as group:
            hosted = group.create_task(world.host(signals_end_it=True))
            await world.until(lambda: bool(world.bridge.configs))
            world.bridge.say(wire.Status(wire.LinkStatus("connecting", 0.0, None, "port-forward: a proxy is in the way")))
            await world.until(lambda: "no link yet (port-forward: a proxy is in the way); trying again until you end it" in world.ui.told)
            assert "port-forward: a proxy is in the way; trying again" in world.ui.under_way
            world.bridge.may_be_ready.set()
            await world.started.wait()
            os.kill(os.getpid(), signal.SIGTERM)
            await hosted

    play(scenario)


def test_the_session_ends_with_its_pause_container(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with asyncio.TaskGroup() as group:
            hosted = group.create_task(_error_of(world))
            await world.started.wait()
            pause = world.container("pause")
            pause.signals.append("KILL")
            pause.killed.set()
            assert "network is gone" in (await hosted).message

    play(scenario)


def test_a_second_host_key_ends_the_session(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with asyncio.TaskGroup() as group:
            hosted = group.create_task(_error_of(world))
            await world.started.wait()
            world.place.dials = [HostKeyMismatch("the log holds a second host key")]
            world.bridge.say(wire.Dial(1))
            assert "second host key" in (await hosted).message
            assert world.engine.containers == {}
            assert world.place.distrusted

    play(scenario)


def test_an_agent_that_refuses_the_users_key_is_not_used_again(play: Play) -> None:
    async def scenario(world: World) -> None:
        world.bridge.fails = wire.Failed("KeyRefused", "the agent did not accept this user's key", "start the session again")
        with pytest.raises(KeyRefused, match="did not accept"):
            await world.host()
        assert world.place.distrusted

    play(scenario)


def test_on_a_kernel_without_ipv6_the_network_is_made_without_its_settings(play: Play) -> None:
    async def scenario(world: World) -> None:
        world.engine.lacks = ["net.ipv6.conf.all.disable_ipv6", "net.ipv6.fwmark_reflect"]
        async with _up(world):
            pause = world.container("pause")
            assert pause.state == "running"
            assert pause.body["HostConfig"]["Sysctls"]["net.ipv4.conf.all.arp_ignore"] == "1"

    play(scenario)


def test_another_setting_that_the_kernel_lacks_ends_the_start_in_the_engines_words(play: Play) -> None:
    async def scenario(world: World) -> None:
        world.engine.lacks = ["net.ipv4.fwmark_reflect"]
        with pytest.raises(HostError, match="net/ipv4/fwmark_reflect: no such file"):
            await world.host()

    play(scenario)


def test_while_an_app_takes_its_time_to_end_status_tells_that_the_session_is_over_and_why(play: Play) -> None:
    async def scenario(world: World) -> None:
        may_end = asyncio.Event()

        async def deaf(container: Container) -> int:
            world.started.set()
            await may_end.wait()
            return 0

        world.engine.programs["app:1"] = deaf
        async with asyncio.TaskGroup() as group:
            failing = group.create_task(_error_of(world))
            await world.until(lambda: world.started.is_set() and world.status().state is State.READY)
            pause = world.container("pause")
            pause.signals.append("KILL")
            pause.killed.set()
            await world.until(lambda: world.status().state is State.STOPPING)
            assert "network is gone" in world.status().why
            may_end.set()
            assert "network is gone" in (await failing).message

    play(scenario)


def test_containers_of_a_network_that_is_joined_later_are_known_by_name(play: Play) -> None:
    async def scenario(world: World) -> None:
        engine = world.engine
        engine.networks |= {"back": {}, "far": {}}
        client = await Engine(engine.endpoint).connect()
        for name, network in (("db", "back"), ("stranger", "far")):
            await client.create(name, {"Image": "app:1", "Labels": {"mbridge.role": ""}, "HostConfig": {"NetworkMode": network}})
        async with _up(world):
            await engine.listened.wait()
            engine.join("back", world.container("pause"))
            assert "db" in (await world.bridge.hears(wire.Names)).names
            late = engine.containers[await client.create("cache", {"Image": "app:1", "Labels": {"mbridge.role": ""}})]
            engine.join("back", late, Aliases=["cached"])
            told = (await world.bridge.hears(wire.Names)).names
            assert {"db", "cache", "cached"} <= set(told)
            assert "stranger" not in told
        for name in ("db", "stranger", "cache"):
            await client.remove(name)

    play(scenario)

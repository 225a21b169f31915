"""`mbridge up` finds what a host process that was killed has left."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from bridge.adapters.docker.engine import Engine
from bridge.cli import hosting, places, sessions
from bridge.cli.world import World as SessionWorld
from bridge.errors import AgentFailed
from bridge.model.session import SessionStatus, State
from bridge.model.target import DockerTarget
from bridge.model.wish import AppWish, SessionWish
from bridge.protocol import door as wire
from tests.unit.cli.hosted import WISH, Play, World
from tests.unit.fake_engine import Container


async def _orphaned(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a host process that was killed has left: a journal, and all that it names, running."""
    monkeypatch.setattr(hosting, "_bridge_tag", lambda: "bridge:1")
    plan = await hosting.plan_of(WISH)
    sessions.SessionFolder(sessions.root() / plan.session).save(plan)
    maker = SessionWorld(plan.session, await Engine(world.engine.endpoint).connect(), world.place)
    for op in plan.steps:
        await maker.do(op)
    await world.started.wait()


def test_up_takes_an_orphaned_session_over_without_a_restart_of_its_app(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_what_the_first_start_read_of_the_environment_holds_past_a_takeover(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """The app goes on with it, and it is not read again."""
    spec, little = "the environment is the spec's", "70 of its 200 MiB of memory are free"

    async def scenario(world: World) -> None:
        await _orphaned(world, monkeypatch)
        (orphan,) = sessions.all_sessions()
        told = (spec, little, "no ping")
        orphan.write_status(SessionStatus(orphan.id, "docker/orders", State.READY, sessions.now(), warnings=told, environ=spec))
        async with asyncio.TaskGroup() as group:
            hosted = group.create_task(world.host(take_over=True, signals_end_it=True))
            await world.until(lambda: world.status().state is State.READY and orphan.served() is not None)
            assert world.status().warnings == (spec,), "what else there was to warn of is seen anew"
            world.bridge.say(wire.Status(wire.LinkStatus("connected", 0, "direct"), ("no ping",)))
            await world.until(lambda: world.status().warnings == (spec, "no ping"))
            os.kill(os.getpid(), signal.SIGTERM)
        assert hosted.result() == 128 + signal.SIGTERM

    play(scenario)


def test_up_replaces_an_orphan_of_another_wish_for_the_same_app(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_takeover_that_fails_leaves_nothing_of_what_it_took_over(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        await _orphaned(world, monkeypatch)
        world.place.broken = AgentFailed("the agent did not start")
        with pytest.raises(AgentFailed):
            await world.host(take_over=True, signals_end_it=True)

    play(scenario)

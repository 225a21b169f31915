"""Steps are undone just as far as they were made, whatever happens half way."""

from __future__ import annotations

import asyncio

import pytest

from bridge.engine import up
from bridge.errors import HostError
from bridge.model.plan import Agent, Container, Folder, Op, Start, Volume

STEPS: list[Op] = [Folder("/run"), Volume("v"), Container("pause", "p"), Start("p"), Container("app", "a"), Agent("docker/x")]


class FakeWorld:
    """There is what was done and not undone; `slow` holds one step back, `broken` fails."""

    def __init__(self, broken: str = "", stuck: str = "") -> None:
        self.there: list[str] = []
        self.undone: list[str] = []
        self.reached = asyncio.Event()
        self.go_on = asyncio.Event()
        self.slow = ""
        self._broken, self._stuck = broken, stuck

    async def do(self, op: Op) -> None:
        if str(op) == self.slow:
            self.reached.set()
            await self.go_on.wait()
        if str(op) == self._broken:
            raise HostError("it broke")
        self.there.append(str(op))

    async def undo(self, op: Op) -> None:
        if str(op) == self._stuck:
            raise HostError("device busy")
        self.undone.append(str(op))
        if str(op) in self.there:
            self.there.remove(str(op))


def test_a_step_that_fails_is_undone_with_those_before_it_and_no_later_one_is_made() -> None:
    async def check() -> None:
        world, made = FakeWorld(broken=str(STEPS[2])), []
        with pytest.raises(HostError, match="it broke"):
            await up.apply(STEPS, world, made)
        assert made == STEPS[:3]
        assert await up.undo(made, world) == []
        assert world.there == []
        assert str(STEPS[2]) in world.undone, "it may have been half made"

    asyncio.run(check())


def test_a_cancelled_step_is_finished_before_the_undo_begins() -> None:
    async def check() -> None:
        world, made = FakeWorld(), []
        world.slow = str(STEPS[2])
        task = asyncio.ensure_future(up.apply(STEPS, world, made))
        await world.reached.wait()
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done(), "the engine was asked already"
        world.go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert str(STEPS[2]) in world.there
        assert made == STEPS[:3]

    asyncio.run(check())


def test_the_undo_ends_what_runs_before_volumes_before_folders() -> None:
    async def check() -> None:
        world = FakeWorld()
        await up.undo(STEPS, world)
        waves = [set(world.undone[:3]), set(world.undone[3:4]), set(world.undone[4:])]
        assert waves == [{str(STEPS[2]), str(STEPS[4]), str(STEPS[5])}, {str(STEPS[1])}, {str(STEPS[0])}]

    asyncio.run(check())


def test_the_undo_cannot_be_cancelled() -> None:
    async def check() -> None:
        world = FakeWorld()
        task = asyncio.ensure_future(up.undo(STEPS, world))
        await asyncio.sleep(0)
        task.cancel()
        assert await task == []
        assert len(world.undone) == 5

    asyncio.run(check())


def test_what_cannot_be_undone_does_not_keep_the_rest_and_is_told_by_name() -> None:
    async def check() -> None:
        world = FakeWorld(stuck=str(STEPS[1]))
        failures = await up.undo(STEPS, world)
        assert [op for op, _ in failures] == [STEPS[1]]
        assert str(STEPS[0]) in world.undone
        error = up.what_is_left("abcdef", failures)
        assert error.message == "not all could be undone; left: v (device busy)"
        assert error.hint == "mbridge down abcdef"
        assert error.exit_code == 7

    asyncio.run(check())


def test_a_failure_that_a_cancellation_overtakes_is_still_a_cancellation() -> None:
    async def check() -> None:
        go = asyncio.Event()

        async def fail() -> None:
            await go.wait()
            raise HostError("late")

        task = asyncio.ensure_future(up.untorn(fail(), "fail"))
        await asyncio.sleep(0)
        task.cancel()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(check())

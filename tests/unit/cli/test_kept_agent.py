from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

import pytest

from bridge.cli.kept_agent import KeptAgent
from bridge.engine.needs import TargetChange
from bridge.errors import AgentFailed, BridgeError, Forbidden, HostKeyMismatch, LinkLost, TargetNotFound, VersionMismatch
from bridge.model.facts import AgentIdentity
from tests.unit.cli.hosted import FakePlace

FORBIDDEN = Forbidden("create", "pods/portforward", "shop")


class Kept:
    """A place with its first agent, and the agents that were told of since."""

    def __init__(self, agent: AgentIdentity, place: FakePlace) -> None:
        self.place = place
        self.new: list[str] = []
        self.told = asyncio.Event()
        self.agent = KeptAgent(place, agent, "key", self._on_new)  # type: ignore[arg-type]  # a fake

    async def _on_new(self, agent: AgentIdentity) -> None:
        self.new.append(agent.agent_id)
        self.told.set()

    async def dial(self, *, first: bool = False) -> str:
        """The agent that was reached, or why none was."""
        dialled = await self.agent.dial((), first=first)
        if isinstance(dialled, str):
            return dialled
        with dialled[1] as carrier:
            return carrier.recv(100).decode()


def play(scenario: Callable[[Kept], Coroutine[None, None, None]]) -> None:
    async def all_of_it() -> None:
        async with asyncio.timeout(5):
            place = FakePlace()
            await scenario(Kept(await place.start_agent("key", lambda _: None), place))

    asyncio.run(all_of_it())


def _agent(number: int) -> str:
    return f"agent {number:016x}"


async def _change(kept: Kept, group: asyncio.TaskGroup, kind: str) -> None:
    """The target changes; until that has been seen."""
    seen = asyncio.Event()
    following = group.create_task(kept.agent.follow(lambda change: seen.set()), name="target")
    kept.place.changes.put_nowait(TargetChange(kind, f"the target is {kind}"))  # type: ignore[arg-type]  # one of its words
    await seen.wait()
    if kind == "moved":
        await kept.told.wait()
    following.cancel()


def test_an_agent_that_has_ended_is_made_anew_once_for_all_dials_that_found_it_so() -> None:
    async def scenario(kept: Kept) -> None:
        kept.place.dials = [AgentFailed("it has ended"), AgentFailed("it has ended")]
        assert await asyncio.gather(kept.dial(), kept.dial()) == ["it has ended", "it has ended"]
        assert kept.place.agents == 2
        assert kept.new == [f"{2:016x}"]
        assert await kept.dial() == _agent(2)

    play(scenario)


def test_an_agent_that_cannot_be_made_anew_is_tried_again_by_the_next_dial() -> None:
    async def scenario(kept: Kept) -> None:
        kept.place.dials = [AgentFailed("it has ended")] * 2
        kept.place.broken = TargetNotFound("the target is stopped")
        assert await kept.dial() == "it has ended; the target is stopped"
        kept.place.broken = None
        assert await kept.dial() == "it has ended"
        assert await kept.dial() == _agent(2)

    play(scenario)


def test_while_the_target_is_away_dials_say_so_and_nobody_is_dialled() -> None:
    async def scenario(kept: Kept) -> None:
        async with asyncio.TaskGroup() as group:
            await _change(kept, group, "gone")
            kept.place.dials = [AgentFailed("asked all the same")]
            assert await kept.dial() == "the target is gone"
            kept.place.dials = []
            await _change(kept, group, "back")
            assert await kept.dial() == _agent(1)

    play(scenario)


def test_beside_a_target_that_has_moved_an_agent_is_made_before_anyone_dials() -> None:
    async def scenario(kept: Kept) -> None:
        async with asyncio.TaskGroup() as group:
            await _change(kept, group, "moved")
        assert kept.new == [f"{2:016x}"]
        assert await kept.dial() == _agent(2)

    play(scenario)


@pytest.mark.parametrize("error", [FORBIDDEN, VersionMismatch("3, not 1"), LinkLost("no answer")], ids=lambda one: type(one).__name__)
def test_what_a_session_that_has_begun_may_see_mended_ends_a_start_alone(error: BridgeError) -> None:
    async def scenario(kept: Kept) -> None:
        kept.place.dials = [error, error]
        assert await kept.dial() == error.message
        if isinstance(error, LinkLost):
            assert await kept.dial(first=True) == error.message
        else:
            with pytest.raises(type(error)):
                await kept.dial(first=True)

    play(scenario)


@pytest.mark.parametrize("where", ["dial", "agent made anew", "moved"])
def test_a_second_host_key_is_raised_wherever_it_is_seen(where: str) -> None:
    async def scenario(kept: Kept) -> None:
        strange = HostKeyMismatch("a second host key")
        kept.place.dials = [strange if where == "dial" else AgentFailed("it has ended")]
        kept.place.broken = strange
        kept.place.changes.put_nowait(TargetChange("moved", "it was restarted"))
        with pytest.raises(HostKeyMismatch):
            await (kept.agent.follow() if where == "moved" else kept.dial())

    play(scenario)

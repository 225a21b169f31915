"""The way back from carriers that stand in to the better kind, in virtual time: when it is tried, and what becomes of both."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine
from typing import Any

from bridge.engine.connection import STEADY_S
from bridge.engine.way_back import WayBack
from bridge.errors import BridgeError, Forbidden, LinkLost
from bridge.model.facts import AgentIdentity
from tests.unit import virtual

AGENT, OTHER = (AgentIdentity(digit * 16, "ssh-ed25519 KEY", 1, "mbridge-abcdef") for digit in "12")
FORBIDDEN = Forbidden("create", "pods/portforward", "shop")


class World:
    """The better kind of carrier: it fails with `fault`, or works; `tries` are the moments of both. Its far ends are the test's."""

    def __init__(self, fault: BridgeError | None = None) -> None:
        self.fault = fault
        self.takes_s = 0.0
        self.tries: list[float] = []
        self.far: list[socket.socket] = []
        self.way_back = WayBack(self.dial, random=lambda: 0.0)
        self.began = asyncio.get_running_loop().time()

    async def dial(self, agent: AgentIdentity) -> tuple[Any, socket.socket]:
        self.tries.append(asyncio.get_running_loop().time() - self.began)
        await asyncio.sleep(self.takes_s)
        if self.fault is not None:
            raise self.fault
        near, far = socket.socketpair()
        self.far.append(far)
        return "port-forward", near

    def stands_in(self, why: BridgeError | None = None) -> asyncio.Future[None]:
        """A stand-in; the future is done when it has ended."""
        ended = asyncio.get_running_loop().create_future()
        self.way_back.stands_in(AGENT, ended, lambda: ended.done() or ended.set_result(None), why)
        return ended

    def taken(self, agent: AgentIdentity = AGENT, avoid: tuple[str, ...] = ()) -> str | None:
        found = self.way_back.take(agent, avoid)
        if found is None:
            return None
        found[1].close()
        return found[0]

    def closed(self) -> list[bool]:
        """Which of the carriers that were made have been given up by this side."""
        answers = []
        for far in self.far:
            far.setblocking(False)
            try:
                answers.append(far.recv(1) == b"")
            except BlockingIOError:
                answers.append(False)
        return answers


def play(test: Coroutine[Any, Any, None]) -> None:
    virtual.run(test)


def test_one_try_serves_both_stand_ins_and_their_successors_are_there_before_they_end() -> None:
    async def test() -> None:
        world = World(LinkLost("no answer"))
        both = [world.stands_in(), world.stands_in()]
        await asyncio.sleep(25)
        assert len(world.tries) == 1, "one that fails is not repeated for the other"
        world.fault = None
        there: list[bool] = []
        both[0].add_done_callback(lambda _: there.append(world.closed() == [False, False]))
        await asyncio.wait(both)
        assert there == [True]
        assert [world.taken(), world.taken(), world.taken()] == ["port-forward", "port-forward", None]

    play(test())


def test_the_tries_are_few_and_grow_rarer() -> None:
    async def test() -> None:
        world = World(LinkLost("no answer"))
        world.stands_in()
        await asyncio.sleep(3600)
        assert sum(moment < 60 for moment in world.tries) <= 2
        assert max(b - a for a, b in zip(world.tries, world.tries[1:], strict=False)) <= 300
        assert len(world.tries) < 20
        world.way_back.close()
        await asyncio.sleep(3600)
        assert len(world.tries) < 20, "none once the place is closed"

    play(test())


def test_what_is_forbidden_is_tried_every_ten_minutes_and_taken_when_the_right_is_given() -> None:
    async def test() -> None:
        world = World(FORBIDDEN)
        stand_in = world.stands_in(FORBIDDEN)
        await asyncio.sleep(3600)
        assert 4 <= len(world.tries) <= 6
        world.fault = None
        async with asyncio.timeout(601):
            await stand_in

    play(test())


def test_a_right_that_is_taken_away_is_noticed_by_the_next_try() -> None:
    async def test() -> None:
        world = World(FORBIDDEN)
        world.stands_in(LinkLost("no answer"))
        await asyncio.sleep(600)
        assert len(world.tries) == 1

    play(test())


def test_no_stand_in_is_ended_before_the_bridge_counts_it_as_proven() -> None:
    """Else the bridge would avoid its kind, and wait before it asks for another."""

    async def test() -> None:
        world = World()
        now = asyncio.get_running_loop().time
        first = world.stands_in()
        await asyncio.sleep(19)
        second, since = world.stands_in(), now()
        await asyncio.sleep(6)
        third = world.stands_in()
        await asyncio.wait([first, second])
        assert now() - since > STEADY_S
        assert not third.done()
        since = now()
        await third
        assert now() - since > STEADY_S

    play(test())


def test_where_the_better_kind_breaks_again_and_again_it_is_gone_back_to_ever_more_rarely() -> None:
    async def test() -> None:
        world = World()
        for _ in range(8):
            await world.stands_in()
            assert world.taken() == "port-forward"
        gaps = [b - a for a, b in zip(world.tries, world.tries[1:], strict=False)]
        assert gaps[-1] == 300
        await asyncio.sleep(1200)  # this time it has held
        began = asyncio.get_running_loop().time()
        await world.stands_in()
        assert asyncio.get_running_loop().time() - began == 20

    play(test())


def test_after_the_last_stand_in_has_ended_nothing_is_tried_and_the_next_one_is_seen() -> None:
    async def test() -> None:
        world = World()
        world.stands_in().set_result(None)
        await asyncio.sleep(3600)
        assert world.tries == []
        one = world.stands_in()
        await asyncio.sleep(5)
        two = world.stands_in()
        one.set_result(None)
        await two
        assert len(world.tries) == 1

    play(test())


def test_a_stand_in_that_ends_during_the_try_leaves_no_carrier_that_nobody_asks_for() -> None:
    async def test() -> None:
        world = World()
        world.takes_s = 1
        first, second = world.stands_in(), world.stands_in()
        await asyncio.sleep(20.5)
        assert len(world.tries) == 1
        first.set_result(None)
        await second
        assert world.closed() == [True, False]
        assert (world.taken(), world.taken()) == ("port-forward", None)

        third = world.stands_in()
        await asyncio.sleep(40.5)
        assert len(world.tries) == 3
        third.set_result(None)
        await asyncio.sleep(5)
        assert all(world.closed()), "the try itself was given up"

    play(test())


def test_what_is_ready_serves_its_own_agent_while_it_is_open_and_not_avoided() -> None:
    async def test() -> None:
        world = World()
        for _ in range(4):
            world.way_back.keep(AGENT, *await world.dial(AGENT))
        assert world.taken(OTHER) is None
        assert all(world.closed()), "of an agent that was replaced nothing is kept"
        world.way_back.keep(AGENT, *await world.dial(AGENT))
        assert world.taken(avoid=("port-forward",)) is None
        world.way_back.keep(AGENT, *await world.dial(AGENT))
        world.far.pop().close()
        assert world.taken() is None, "the agent waits for nobody for ever"
        world.way_back.keep(AGENT, *await world.dial(AGENT))
        assert world.taken() == "port-forward"

    play(test())

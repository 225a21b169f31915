"""The bridge's side of handing: who passes for the agent, what becomes of flows, and what ends an agent that says something else.

The agent's connection is a fake; the app's is a real one, for what it sees counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from bridge.engine.handing import HandedFlow, Handing
from bridge.engine.relay import prepare
from bridge.errors import LinkLost
from bridge.protocol import handing as wire
from bridge.protocol.control import FlowRefused
from tests.unit.engine.handed import Peer
from tests.unit.virtual import run


class Flow:
    """One `begin`, and what came of it."""

    def __init__(self) -> None:
        self.answers: list[object] = []
        self.wanted = True
        self.ended: list[tuple[int, int, str]] = []

    def answered(self, answer: object) -> bool:
        self.answers.append(answer)
        return self.wanted

    def on_ended(self, sent: int, received: int, how: str) -> None:
        self.ended.append((sent, received, how))

    @property
    def handed(self) -> HandedFlow:
        (answer,) = self.answers
        assert isinstance(answer, HandedFlow)
        return answer


class World:
    def __init__(self) -> None:
        self.peers: list[Peer] = []
        self.handing = Handing(self._make)
        self.changes: list[bool] = []
        self.handing.on_change = lambda: self.changes.append(self.handing.live)
        self._apps: list[socket.socket] = []

    def _make(self, sock: socket.socket, on_message: Any, on_lost: Any, *, most_bytes: int, takes_fds: bool = False) -> Peer:
        assert (most_bytes, takes_fds) == (wire.MAX_PACKET, False), "nothing of the target's namespace comes into the bridge"
        sock.close()
        self.peers.append(Peer(on_message, on_lost))
        return self.peers[-1]

    def newcomer(self) -> Peer:
        self.handing.on_connection(socket.socket())
        return self.peers[-1]

    def agent(self) -> Peer:
        peer = self.newcomer()
        peer.say(wire.Hello(self.handing.invite()))
        assert self.handing.live
        return peer

    def begin(self, peer: Peer, *, port: int = 80) -> tuple[Flow, int]:
        """And the flow's number."""
        flow = Flow()
        assert self.handing.begin("10.0.3.7", port, flow.answered)
        dial = peer.heard[-1]
        assert isinstance(dial, wire.Dial)
        assert (dial.address, dial.port) == ("10.0.3.7", port)
        return flow, dial.number

    def opened(self, peer: Peer) -> tuple[Flow, int]:
        flow, number = self.begin(peer)
        peer.say(wire.Opened(number))
        assert isinstance(flow.handed, HandedFlow)
        return flow, number

    def app(self) -> tuple[socket.socket, socket.socket]:
        """The app's own end, and the one that the bridge has accepted."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            app = socket.create_connection(listener.getsockname(), 5)
            ours, _ = listener.accept()
        prepare(ours)
        self._apps += [app, ours]
        return app, ours

    def taken(self, peer: Peer) -> tuple[Flow, int, Callable[[str], None], socket.socket]:
        flow, number = self.opened(peer)
        app, ours = self.app()
        reset = flow.handed.take(ours, flow.on_ended)
        assert peer.heard[-1] == wire.Take(number)
        return flow, number, reset, app

    def close(self) -> None:
        for sock in self._apps:
            sock.close()
        for peer in self.peers:
            for fd in peer.fds:
                os.close(fd)


def play(scenario: Callable[[World], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        world = World()
        with contextlib.closing(world):
            await scenario(world)

    run(whole())


# who passes for the agent


def test_who_says_the_token_is_the_agent_and_the_token_is_good_once() -> None:
    async def scenario(world: World) -> None:
        assert not world.handing.begin("10.0.3.7", 80, Flow().answered)
        token = world.handing.invite()
        agent = world.newcomer()
        assert not world.handing.live
        agent.say(wire.Hello(token))
        assert world.changes == [True]
        agent.end()
        assert world.changes == [True, False]
        again = world.newcomer()
        again.say(wire.Hello(token))
        assert again.closed
        assert not world.handing.live

    play(scenario)


def test_an_older_token_and_a_wrong_one_are_worth_nothing() -> None:
    async def scenario(world: World) -> None:
        before = world.newcomer()
        before.say(wire.Hello(bytes(32)))  # nobody is invited yet
        older = world.handing.invite()
        newer = world.handing.invite()

        def refused(token: bytes) -> bool:
            peer = world.newcomer()
            peer.say(wire.Hello(token))
            return peer.closed

        assert refused(older)
        assert refused(bytes(32))
        world.handing.drop("the agent was made anew")
        assert refused(newer)
        newer = world.handing.invite()
        assert refused(bytes(32))
        assert before.closed
        assert world.changes == []
        peer = world.newcomer()
        peer.say(wire.Hello(newer))  # who guessed wrong has spoilt nothing
        assert world.changes == [True]

    play(scenario)


def test_while_one_agent_lives_no_other_comes_in_and_the_first_goes_on() -> None:
    async def scenario(world: World) -> None:
        agent = world.agent()
        second = world.newcomer()
        second.say(wire.Hello(world.handing.invite()))
        assert second.closed
        assert not agent.closed
        flow, _ = world.opened(agent)
        assert flow.answers
        assert world.changes == [True]

    play(scenario)


FIRST = [wire.Opened(1), wire.Dial(1, "10.0.3.7", 80), wire.Ended(1, 0, 0, "x"), b"", b"\xff", b"H" + bytes(31)]


@pytest.mark.parametrize("first", FIRST, ids=str)
def test_a_newcomer_that_begins_otherwise_is_shown_out(first: wire.Message | bytes) -> None:
    async def scenario(world: World) -> None:
        world.handing.invite()
        peer = world.newcomer()
        peer.say(first)
        assert peer.closed
        assert world.changes == []

    play(scenario)


def test_a_newcomer_that_proves_nothing_within_5_s_is_shown_out_and_an_agent_that_is_silent_is_not() -> None:
    async def scenario(world: World) -> None:
        idle, agent = world.newcomer(), world.agent()
        await asyncio.sleep(4.9)
        assert not idle.closed
        await asyncio.sleep(0.2)
        assert idle.closed
        gone = world.newcomer()
        gone.end()
        await asyncio.sleep(3600)
        assert not agent.closed
        assert world.handing.live

    play(scenario)


# flows


def test_a_flow_is_dialled_handed_over_and_ended_with_what_the_agent_counted() -> None:
    async def scenario(world: World) -> None:
        agent = world.agent()
        flow, number, _, app = world.taken(agent)
        with socket.socket(fileno=agent.fds.pop()) as given:
            given.sendall(b"of the agent")
            assert app.recv(100) == b"of the agent"
        flow.handed.abort()  # is the agent's by now
        assert agent.heard[-1] == wire.Take(number)
        agent.say(wire.Ended(number, 5, 12, "CLOSED"))
        assert flow.ended == [(5, 12, "CLOSED")]

    play(scenario)


def test_A03_a_refusal_is_the_agents_errno_and_numbers_are_used_once() -> None:
    async def scenario(world: World) -> None:
        agent = world.agent()
        flow, number = world.begin(agent)
        agent.say(wire.Refused(number, "ECONNREFUSED"))
        (refused,) = flow.answers
        assert isinstance(refused, FlowRefused)
        assert refused.errno_name == "ECONNREFUSED"
        _, another = world.begin(agent)
        assert another != number

    play(scenario)


def test_an_app_that_no_longer_waits_and_one_that_never_comes_cost_an_abort() -> None:
    async def scenario(world: World) -> None:
        agent = world.agent()
        flow, number = world.begin(agent)
        flow.wanted = False
        agent.say(wire.Opened(number))
        assert agent.heard[-1] == wire.Abort(number)
        flow, number = world.opened(agent)
        flow.handed.abort()
        flow.handed.abort()
        assert agent.heard.count(wire.Abort(number)) == 1

    play(scenario)


def test_A07_a_reset_ends_a_flow_when_the_agent_has_carried_it_out_once_and_with_its_reason() -> None:
    async def scenario(world: World) -> None:
        agent = world.agent()
        flow, number, reset, _ = world.taken(agent)
        reset("as the target has another address")
        reset("twice")
        assert agent.heard.count(wire.Abort(number)) == 1
        assert flow.ended == [], "the app may not have its RST yet"
        agent.say(wire.Ended(number, 3, 4, "RESET by the bridge"))
        assert flow.ended == [(3, 4, "RESET as the target has another address")]
        reset("late")
        assert agent.heard.count(wire.Abort(number)) == 1

    play(scenario)


# the agent's end


@pytest.mark.parametrize("by", ["its socket", "another agent", "nonsense"])
def test_with_the_agent_ends_all_that_it_had_each_once(by: str) -> None:
    async def scenario(world: World) -> None:
        agent = world.agent()
        dialled, _ = world.begin(agent)
        opened, _ = world.opened(agent)
        taken, _, reset, _ = world.taken(agent)
        if by == "its socket":
            agent.end()
        elif by == "another agent":
            world.handing.drop("the agent was made anew")
        else:
            agent.say(b"nonsense")
        assert agent.closed
        assert world.changes == [True, False]
        (lost,) = dialled.answers
        assert isinstance(lost, LinkLost)
        assert [how.partition(":")[0] for _, _, how in taken.ended] == ["RESET"]
        reset("late")
        assert len(taken.ended) == 1
        app, ours = world.app()
        opened.handed.take(ours, opened.on_ended)("late")
        with pytest.raises(ConnectionResetError):
            app.recv(1)
        assert opened.ended == [(0, 0, "RESET: the agent is gone")]
        opened.handed.abort()
        world.handing.drop("again")
        assert world.changes == [True, False]
        assert not world.handing.begin("10.0.3.7", 80, Flow().answered)

    play(scenario)


def test_a_flow_of_the_agent_before_touches_none_of_the_next_ones() -> None:
    async def scenario(world: World) -> None:
        old, _ = world.opened(world.agent())
        world.handing.drop("the agent was made anew")
        agent = world.agent()
        new, number = world.opened(agent)
        old.handed.abort()
        app, ours = world.app()
        old.handed.take(ours, old.on_ended)
        with pytest.raises(ConnectionResetError):
            app.recv(1)
        assert agent.heard == [wire.Dial(number, "10.0.3.7", 80)], "of the old flow it hears nothing"
        assert agent.fds == []
        assert new.ended == []

    play(scenario)


def test_an_agent_that_goes_while_it_is_told_something_ends_that_flow_too() -> None:
    async def scenario(world: World) -> None:
        agent = world.agent()
        opened, _ = world.opened(agent)
        agent.breaks = True
        app, ours = world.app()
        opened.handed.take(ours, opened.on_ended)
        assert len(opened.ended) == 1
        with pytest.raises(ConnectionResetError):
            app.recv(1)
        agent = world.agent()
        agent.breaks = True
        flow = Flow()
        assert world.handing.begin("10.0.3.7", 80, flow.answered)
        assert [type(answer) for answer in flow.answers] == [LinkLost]

    play(scenario)


def test_a_flow_that_is_begun_while_the_agent_goes_is_told_that_there_is_none() -> None:
    async def scenario(world: World) -> None:
        agent = world.agent()
        began: list[bool] = []

        def once_more(_: object) -> bool:
            began.append(world.handing.begin("10.0.3.7", 81, Flow().answered))
            return True

        assert world.handing.begin("10.0.3.7", 80, once_more)
        agent.end()
        assert began == [False]

    play(scenario)


STRAYS: dict[str, Callable[[int, int, int], wire.Message | bytes]] = {
    "opened: no such flow": lambda dialled, opened, taken: wire.Opened(99),
    "opened twice": lambda dialled, opened, taken: wire.Opened(opened),
    "opened after it was taken": lambda dialled, opened, taken: wire.Opened(taken),
    "refused: no such flow": lambda dialled, opened, taken: wire.Refused(99, "EPERM"),
    "refused after it was opened": lambda dialled, opened, taken: wire.Refused(opened, "EPERM"),
    "ended: no such flow": lambda dialled, opened, taken: wire.Ended(99, 0, 0, "CLOSED"),
    "ended while it is dialled": lambda dialled, opened, taken: wire.Ended(dialled, 0, 0, "CLOSED"),
    "ended before it was taken": lambda dialled, opened, taken: wire.Ended(opened, 0, 0, "CLOSED"),
    "a bridge's own message": lambda dialled, opened, taken: wire.Take(opened),
    "a second hello": lambda dialled, opened, taken: wire.Hello(bytes(32)),
    "no message": lambda dialled, opened, taken: b"?",
}


@pytest.mark.parametrize("stray", STRAYS.values(), ids=STRAYS.keys())
def test_an_agent_that_says_what_none_of_ours_does_is_one_no_more(stray: Callable[[int, int, int], wire.Message | bytes]) -> None:
    async def scenario(world: World) -> None:
        agent = world.agent()
        (dialled, one), (_, two), (taken, three, *_) = world.begin(agent), world.opened(agent), world.taken(agent)
        agent.say(stray(one, two, three))
        assert agent.closed
        assert world.changes == [True, False]
        assert [type(answer) for answer in dialled.answers] == [LinkLost]
        assert len(taken.ended) == 1

    play(scenario)


def test_an_end_that_is_told_twice_ends_the_agent_and_the_flow_once() -> None:
    async def scenario(world: World) -> None:
        agent = world.agent()
        flow, number, _, _ = world.taken(agent)
        agent.say(wire.Ended(number, 1, 2, "CLOSED"))
        agent.say(wire.Ended(number, 1, 2, "CLOSED"))
        assert agent.closed
        assert flow.ended == [(1, 2, "CLOSED")]

    play(scenario)

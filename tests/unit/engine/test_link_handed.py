"""The link where its agent is on the same engine: which flows are handed over, which go by the link, and what the status says."""

from __future__ import annotations

import pytest

from bridge.engine.handing import HandedFlow
from bridge.engine.needs import FlowRefused
from bridge.engine.supervisor import Supervisor
from bridge.errors import LinkLost
from bridge.protocol import handing as wire
from tests.unit.engine.handed import Peer
from tests.unit.engine.supervised import APP, World, with_link

BY_LINK = "flow to 10.0.3.7:80 by key-1"


class Asked:
    """One flow that was begun."""

    def __init__(self, link: Supervisor) -> None:
        self.answers: list[object] = []
        self.begun = link.begin_flow("10.0.3.7", 80, APP, self.answered)

    def answered(self, answer: object) -> bool:
        self.answers.append(answer)
        return True


def dialled(agent: Peer) -> int:
    message = agent.heard[-1]
    assert isinstance(message, wire.Dial)
    assert (message.address, message.port) == ("10.0.3.7", 80)
    return message.number


def test_a_flow_is_handed_over_once_the_agent_has_come_and_goes_by_the_link_before() -> None:
    async def test(world: World, link: Supervisor) -> None:
        await world.until_state("connected")
        assert Asked(link).answers == [BY_LINK]
        agent = world.handed()
        asked = Asked(link)
        assert asked.begun
        agent.say(wire.Opened(dialled(agent)))
        (answer,) = asked.answers
        assert isinstance(answer, HandedFlow)
        assert world.flows.flows == [("10.0.3.7", 80)], "the first alone"

    with_link(test, handed=True)


def test_while_the_carrier_is_cut_a_flow_waits_for_the_link_as_without_handing() -> None:
    async def test(world: World, link: Supervisor) -> None:
        await world.until_state("connected")
        agent = world.handed()
        world.brings = False
        world.flows.transport.cut()
        assert Asked(link).answers == [BY_LINK]
        assert agent.heard == []

    with_link(test, handed=True)


@pytest.mark.parametrize("name", ["ENETUNREACH", "EHOSTUNREACH", "ENETDOWN", "EADDRNOTAVAIL"])
def test_an_errno_of_a_netns_whose_target_may_have_stopped_is_asked_again_over_the_link(name: str) -> None:
    async def test(world: World, link: Supervisor) -> None:
        await world.until_state("connected")
        agent, asked = world.handed(), Asked(link)
        agent.say(wire.Refused(dialled(agent), name))
        assert asked.answers == [BY_LINK]

    with_link(test, handed=True)


def test_A03_a_refusal_of_the_server_is_told_at_once() -> None:
    async def test(world: World, link: Supervisor) -> None:
        await world.until_state("connected")
        agent, asked = world.handed(), Asked(link)
        agent.say(wire.Refused(dialled(agent), "ECONNREFUSED"))
        (refused,) = asked.answers
        assert isinstance(refused, FlowRefused)
        assert refused.errno_name == "ECONNREFUSED"
        assert world.flows.flows == []

    with_link(test, handed=True)


def test_a_dial_under_way_when_the_agents_socket_ends_is_put_to_the_link() -> None:
    async def test(world: World, link: Supervisor) -> None:
        await world.until_state("connected")
        agent, asked = world.handed(), Asked(link)
        agent.end()
        assert asked.answers == [BY_LINK]

    with_link(test, handed=True)


@pytest.mark.parametrize("unsure", [True, False], ids=["ENETUNREACH", "the agent's end"])
def test_where_the_link_is_down_too_a_flow_is_to_wait_for_it_and_never_refused(unsure: bool) -> None:
    async def test(world: World, link: Supervisor) -> None:
        await world.until_state("connected")
        agent, asked = world.handed(), Asked(link)
        number = dialled(agent)
        world.brings, world.why = False, ""
        world.flows.end("the agent died")
        if unsure:
            agent.say(wire.Refused(number, "ENETUNREACH"))
        else:
            agent.end()
        assert [type(answer) for answer in asked.answers] == [LinkLost]

    with_link(test, handed=True)


def test_the_status_says_whether_connections_are_handed() -> None:
    async def test(world: World, link: Supervisor) -> None:
        status = await world.until_state("connected")
        assert not status.handed
        agent = world.handed()
        assert world.statuses[-1].handed
        world.brings = False
        world.flows.transport.cut()
        status = await world.until_state("reconnecting")
        assert not status.handed, "new ones wait for the link"
        world.brings = True
        assert (await world.until_state("connected")).handed
        agent.end()
        assert world.statuses[-1].state == "connected"
        assert not world.statuses[-1].handed

    with_link(test, handed=True)


def test_an_agent_is_invited_by_each_new_control_connection_until_it_has_come() -> None:
    async def test(world: World, link: Supervisor) -> None:
        await world.until_state("connected")
        first = world.control
        assert len(first.invitations) == 1
        first.end("lost")
        await world.until(lambda: world.control is not first)
        second = world.control
        await world.until(lambda: second.transport.secret != b"")
        assert len(second.invitations) == 1
        assert second.invitations != first.invitations
        agent = world.handed()
        second.end("lost")
        await world.until(lambda: world.control is not second)
        third = world.control
        await world.until(lambda: third.transport.secret != b"")
        assert third.invitations == [], "it is here: another invitation would end what it holds"
        assert not agent.closed

    with_link(test, handed=True)


def test_another_agent_ends_the_one_before_and_is_invited_itself() -> None:
    async def test(world: World, link: Supervisor) -> None:
        await world.until_state("connected")
        old, asked = world.handed(), Asked(link)
        link.agent_changed("key-1", "a" * 16)
        assert not old.closed, "it is the same"
        link.agent_changed("key-2", "b" * 16)
        assert old.closed
        assert [type(answer) for answer in asked.answers] == [LinkLost]
        await world.until(lambda: not world.statuses[-1].handed)
        await world.until(lambda: world.control.host_key == "key-2" and bool(world.control.invitations))
        new = world.handed()
        await world.until(lambda: world.statuses[-1].handed)
        asked = Asked(link)
        new.say(wire.Opened(dialled(new)))
        assert isinstance(asked.answers[0], HandedFlow)

    with_link(test, handed=True)


def test_without_a_shared_engine_nobody_is_invited() -> None:
    async def test(world: World, link: Supervisor) -> None:
        await world.until_state("connected")
        assert world.control.invitations == []
        assert Asked(link).answers == [BY_LINK]
        assert not world.statuses[-1].handed

    with_link(test)

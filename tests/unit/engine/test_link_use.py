"""What the link's users get of it, flows, questions and datagrams, while its connections come and go."""

from __future__ import annotations

import asyncio

import pytest

from bridge.engine.needs import FlowRefused
from bridge.engine.supervisor import Supervisor
from bridge.errors import LinkError
from bridge.protocol import udp
from tests.unit.engine.supervised import APP, World, with_link


def test_A03_a_refused_dial_is_the_targets_own_errno() -> None:
    async def test(world: World, link: Supervisor) -> None:
        with pytest.raises(FlowRefused) as refused:
            await link.open_flow("10.0.3.7", 1, APP)
        assert refused.value.errno_name == "ECONNREFUSED"

    with_link(test)


def test_a_dial_that_was_under_way_is_put_again_to_the_next_connection() -> None:
    async def test(world: World, link: Supervisor) -> None:
        await world.until_state("connected")
        old = world.flows
        opening = asyncio.ensure_future(link.open_flow("10.0.3.7", 2, APP))
        await world.until(lambda: old.flows == [("10.0.3.7", 2)])
        old.end("the agent died")
        await world.until(lambda: world.flows is not old and world.flows.flows == [("10.0.3.7", 2)])
        opening.cancel()

    with_link(test)


def test_A26_a_question_is_answered_or_given_up_after_5_s() -> None:
    async def test(world: World, link: Supervisor) -> None:
        loop = asyncio.get_running_loop()
        await world.until_state("connected")
        asking = asyncio.ensure_future(link.ask("10.0.0.10", b"query", False))
        await world.until(lambda: len(world.control.asked) == 1)
        assert world.control.asked[0].query == b"query"
        world.control.answer()
        assert await asking == b"answer"
        start = loop.time()
        with pytest.raises(TimeoutError):
            await link.ask("10.0.0.10", b"query", True)
        assert loop.time() - start == pytest.approx(5)

    with_link(test)


@pytest.mark.parametrize(("name", "error"), [("ETIMEDOUT", TimeoutError), ("ECONNREFUSED", LinkError)])
def test_a_nameserver_that_cannot_be_asked_is_an_error(name: str, error: type[Exception]) -> None:
    async def test(world: World, link: Supervisor) -> None:
        await world.until_state("connected")
        asking = asyncio.ensure_future(link.ask("10.0.0.10", b"query", False))
        await world.until(lambda: len(world.control.asked) == 1)
        world.control.answer(b"", name)
        with pytest.raises(error):
            await asking

    with_link(test)


def test_a_question_waits_for_the_link_and_is_put_again_when_its_connection_ends() -> None:
    async def test(world: World, link: Supervisor) -> None:
        await world.until_state("connected")
        old = world.control
        asking = asyncio.ensure_future(link.ask("10.0.0.10", b"query", False))
        await world.until(lambda: len(old.asked) == 1)
        old.end("the agent died")
        await world.until(lambda: world.control is not old and len(world.control.asked) == 1)
        world.control.answer(b"second")
        assert await asking == b"second"

    with_link(test)


def test_datagrams_pass_while_the_link_is_up_and_are_dropped_while_it_is_down() -> None:
    async def test(world: World, link: Supervisor) -> None:
        datagram = udp.Datagram(1, "10.0.0.9", 53, b"x")
        link.send(datagram)
        await world.until_state("connected")
        heard: list[udp.Message] = []
        link.on_datagram = heard.append
        link.send(datagram)
        assert world.control.datagrams == [datagram]
        assert world.control.on_udp is not None
        world.control.on_udp(datagram)
        assert heard == [datagram]
        world.brings = False
        world.control.transport.cut()
        link.send(datagram)
        assert world.control.datagrams == [datagram]

    with_link(test)

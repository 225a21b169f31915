"""Outgoing flows whose app is handed to the agent: joined once, counted once, and left only when the agent has carried the reset out."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine
from typing import Any

from bridge.engine.handing import Handing
from bridge.engine.outgoing import LEFT_S, Outgoing
from bridge.errors import LinkLost
from bridge.protocol import handing as wire
from bridge.protocol.nfqueue import HeldSyn
from tests.unit.engine.handed import Peer
from tests.unit.engine.test_outgoing import APP, SERVER, Arrival, Holder
from tests.unit.virtual import run


class Link:
    """Hands each flow over."""

    def __init__(self) -> None:
        self.handing = Handing(self._make)
        self.on_datagram = lambda message: None
        self.peers: list[Peer] = []

    def _make(self, sock: socket.socket, on_message: Any, on_lost: Any, **_: Any) -> Peer:
        sock.close()
        self.peers.append(Peer(on_message, on_lost))
        return self.peers[-1]

    def agent(self) -> Peer:
        self.handing.on_connection(socket.socket())
        self.peers[-1].say(wire.Hello(self.handing.invite()))
        return self.peers[-1]

    def begin_flow(self, address: str, port: int, app: tuple[str, int], answered: Callable[[Any], bool]) -> bool:
        return self.handing.begin(address, port, answered)

    async def open_flow(self, address: str, port: int, app: tuple[str, int]) -> Any:
        raise LinkLost("not asked here")

    def send(self, message: object) -> None: ...

    async def ask(self, nameserver: str, query: bytes, over_tcp: bool) -> bytes:
        raise LinkLost("not asked here")


class World:
    def __init__(self, group: asyncio.TaskGroup) -> None:
        self.link, self.holder = Link(), Holder()
        self.agent = self.link.agent()
        self.outgoing = Outgoing(self.link, group, self.holder, lambda arrival: arrival.sock.close())

    def joined(self, app_port: int = 40001, app_addr: str = APP) -> int:
        """The number of a flow that works."""
        self.outgoing.on_syn(HeldSyn(app_port, app_addr, app_port, *SERVER))
        dial = self.agent.heard[-1]
        assert isinstance(dial, wire.Dial)
        self.agent.say(wire.Opened(dial.number))
        assert self.holder.verdicts[-1] == ("accept", app_port)
        self.outgoing.on_arrival(Arrival(app_port, app_addr=app_addr))
        assert self.agent.heard[-1] == wire.Take(dial.number)
        return dial.number


def play(scenario: Callable[[World], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            world = World(group)
            await scenario(world)
            for fd in world.agent.fds:
                os.close(fd)

    run(main())


def test_a_flow_is_counted_from_its_hand_over_to_what_the_agent_calls_its_end() -> None:
    async def scenario(world: World) -> None:
        number = world.joined()
        assert (world.outgoing.flows, world.outgoing.opened_ever) == (1, 1)
        world.agent.say(wire.Ended(number, 1, 2, "CLOSED"))
        assert (world.outgoing.flows, world.outgoing.opened_ever) == (0, 1)
        assert world.joined(40002) != number

    play(scenario)


def test_with_the_agent_its_flows_are_counted_no_more() -> None:
    async def scenario(world: World) -> None:
        world.joined(40001)
        world.joined(40002)
        world.agent.end()
        assert (world.outgoing.flows, world.outgoing.opened_ever) == (0, 2)

    play(scenario)


def test_an_app_that_arrives_after_its_agent_has_gone_is_counted_no_more_and_holds_nothing_up() -> None:
    async def scenario(world: World) -> None:
        world.outgoing.on_syn(HeldSyn(1, APP, 40001, *SERVER))
        dial = world.agent.heard[-1]
        assert isinstance(dial, wire.Dial)
        world.agent.say(wire.Opened(dial.number))
        world.agent.end()
        world.outgoing.on_arrival(Arrival(40001))
        assert (world.outgoing.flows, world.outgoing.opened_ever) == (0, 1)
        start = asyncio.get_running_loop().time()
        await world.outgoing.until_left({APP})
        assert asyncio.get_running_loop().time() == start

    play(scenario)


def test_an_app_that_does_not_arrive_within_2_s_has_its_flow_aborted() -> None:
    async def scenario(world: World) -> None:
        world.outgoing.on_syn(HeldSyn(1, APP, 40001, *SERVER))
        dial = world.agent.heard[-1]
        assert isinstance(dial, wire.Dial)
        world.agent.say(wire.Opened(dial.number))
        await asyncio.sleep(2.1)
        assert world.agent.heard[-1] == wire.Abort(dial.number)

    play(scenario)


def test_A38_an_address_is_left_when_the_agent_has_reset_what_came_from_it_and_others_go_on() -> None:
    async def scenario(world: World) -> None:
        number, another = world.joined(), world.joined(app_addr="172.18.0.99")
        world.outgoing.leave({APP})
        assert world.agent.heard[-1] == wire.Abort(number)
        left = asyncio.ensure_future(world.outgoing.until_left({APP}))
        await asyncio.sleep(LEFT_S / 2)
        assert not left.done()
        assert world.outgoing.flows == 2
        world.agent.say(wire.Ended(number, 0, 0, "RESET by the bridge"))
        said = asyncio.get_running_loop().time()
        await left
        assert asyncio.get_running_loop().time() == said
        assert world.outgoing.flows == 1
        assert wire.Abort(another) not in world.agent.heard

    play(scenario)


def test_A38_an_agent_that_does_not_answer_holds_nothing_up_for_long() -> None:
    async def scenario(world: World) -> None:
        world.joined()
        world.outgoing.leave({APP})
        start = asyncio.get_running_loop().time()
        await world.outgoing.until_left({APP})
        assert asyncio.get_running_loop().time() - start <= LEFT_S + 0.01
        await world.outgoing.until_left({"172.18.0.99"})  # nothing comes from there

    play(scenario)

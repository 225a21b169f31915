"""Outgoing flows: which verdict a held SYN gets, and which channel an arrival is joined to. The link and the queue record."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from bridge.engine import outgoing as module
from bridge.engine.needs import Arrived, FlowRefused, Sink
from bridge.engine.outgoing import Outgoing
from bridge.errors import LinkLost
from bridge.protocol.nfqueue import HeldSyn

APP = "172.18.0.3"
SERVER = ("10.0.3.7", 5432)


@dataclass
class Channel:
    number: int
    told: list[str] = field(default_factory=list)
    sink: Sink | None = None

    def attach(self, sink: Sink) -> None:
        self.sink = sink

    def write(self, data: bytes | memoryview) -> None: ...
    def write_eof(self) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def close(self) -> None:
        self.told.append("close")

    def abort(self) -> None:
        self.told.append("abort")


class Link:
    """Answers each dial with what `answer` says: a Channel's number is its place in the order of dials."""

    def __init__(self) -> None:
        self.answer: Exception | None = None
        self.gate: asyncio.Event | None = None
        self.dialled: list[tuple[str, int, tuple[str, int]]] = []
        self.channels: list[Channel] = []
        self.on_datagram = lambda message: None
        self.at_once = False
        self.begun: list[Callable[[object], bool]] = []

    async def open_flow(self, address: str, port: int, app: tuple[str, int]) -> Channel:
        self.dialled.append((address, port, app))
        if self.gate is not None:
            await self.gate.wait()
        if self.answer is not None:
            raise self.answer
        self.channels.append(Channel(len(self.channels)))
        return self.channels[-1]

    def begin_flow(self, address: str, port: int, app: tuple[str, int], answered: Callable[[object], bool]) -> bool:
        if not self.at_once:
            return False
        self.begun.append(answered)
        return True

    def send(self, message: object) -> None: ...

    async def ask(self, nameserver: str, query: bytes, over_tcp: bool) -> bytes:
        raise LinkLost("not asked here")


class Holder:
    def __init__(self) -> None:
        self.verdicts: list[tuple[object, ...]] = []
        self.changed = asyncio.Event()

    def accept(self, packet_id: int) -> None:
        self._note("accept", packet_id)

    def refuse(self, packet_id: int, errno_name: str) -> None:
        self._note("refuse", packet_id, errno_name)

    def drop(self, packet_id: int) -> None:
        self._note("drop", packet_id)

    def _note(self, *verdict: object) -> None:
        self.verdicts.append(verdict)
        self.changed.set()


@dataclass
class Arrival:
    app_port: int
    address: str = SERVER[0]
    port: int = SERVER[1]
    app_addr: str = APP
    sock: socket.socket = field(default_factory=lambda: socket.socketpair()[0])


class World:
    def __init__(self, group: asyncio.TaskGroup, held: bool) -> None:
        self.link = Link()
        self.holder = Holder()
        self.reset: list[Arrived] = []
        self.outgoing = Outgoing(self.link, group, self.holder if held else None, self.reset.append, frozenset({("10.0.0.2", 53)}))

    def syn(self, packet_id: int, app_port: int, address: str = SERVER[0], port: int = SERVER[1]) -> None:
        self.outgoing.on_syn(HeldSyn(packet_id, APP, app_port, address, port))

    async def verdicts(self, count: int) -> list[tuple[object, ...]]:
        while len(self.holder.verdicts) < count:
            self.holder.changed.clear()
            await self.holder.changed.wait()
        return self.holder.verdicts

    def joined(self) -> list[int]:
        return [channel.number for channel in self.link.channels if channel.sink is not None]


async def until(fact: Callable[[], bool]) -> None:
    while not fact():  # noqa: ASYNC110  # the fakes are plain lists; the scenario's own timeout ends this
        await asyncio.sleep(0.001)


def run(scenario: Callable[[World], Awaitable[None]], held: bool = True) -> None:
    async def main() -> None:
        async with asyncio.timeout(5), asyncio.TaskGroup() as group:
            await scenario(World(group, held))

    asyncio.run(main())


def test_an_accepted_syn_finds_its_own_channel() -> None:
    async def scenario(world: World) -> None:
        world.syn(1, 40001)
        world.syn(2, 40002)
        assert await world.verdicts(2) == [("accept", 1), ("accept", 2)]
        assert world.link.dialled == [(*SERVER, (APP, 40001)), (*SERVER, (APP, 40002))]
        world.outgoing.on_arrival(Arrival(40002))
        assert world.joined() == [1]
        assert world.outgoing.flows == 1

    run(scenario)


@pytest.mark.parametrize("errno_name", ["ECONNREFUSED", "EHOSTUNREACH", "ENETUNREACH"])
def test_A03_the_dials_error_becomes_the_verdict(errno_name: str) -> None:
    async def scenario(world: World) -> None:
        world.link.answer = FlowRefused(errno_name)
        world.syn(1, 40001)
        assert await world.verdicts(1) == [("refuse", 1, errno_name)]

    run(scenario)


def test_a_link_that_ends_drops_the_syn() -> None:
    async def scenario(world: World) -> None:
        world.link.answer = LinkLost("gone")
        world.syn(1, 40001)
        assert await world.verdicts(1) == [("drop", 1)]

    run(scenario)


def test_A05_a_silent_address_is_held_until_our_own_limit_and_then_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HOLD_S", 0.02)

    async def scenario(world: World) -> None:
        world.link.gate = asyncio.Event()
        world.syn(1, 40001)
        world.syn(2, 40001)  # sent again meanwhile
        assert await world.verdicts(2) == [("drop", 2), ("drop", 1)]
        assert len(world.link.dialled) == 1

    run(scenario)


def test_an_accepted_syn_that_does_not_arrive_closes_its_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ARRIVE_S", 0.01)

    async def scenario(world: World) -> None:
        world.syn(1, 40001)
        await world.verdicts(1)
        await until(lambda: bool(world.link.channels[0].told))
        assert world.link.channels[0].told == ["abort"]
        late = Arrival(40001)
        world.outgoing.on_arrival(late)
        assert world.reset == [late]

    run(scenario)


def test_a_flow_whose_source_port_the_kernel_changed_takes_an_unclaimed_channel_to_the_same_destination() -> None:
    async def scenario(world: World) -> None:
        world.syn(1, 40001)
        world.syn(2, 40002)
        await world.verdicts(2)
        world.outgoing.on_arrival(Arrival(61999))
        assert world.joined() == [0]
        world.outgoing.on_arrival(Arrival(40001))  # its own is taken: any of the two is as good
        assert world.joined() == [0, 1]
        assert world.reset == []

    run(scenario)


@pytest.mark.parametrize("other", [Arrival(61999, port=80), Arrival(61999, address="10.0.3.8"), Arrival(61999, app_addr="127.0.0.1")])
def test_nobody_gets_a_channel_to_another_destination(other: Arrival) -> None:
    async def scenario(world: World) -> None:
        world.syn(1, 40001)
        await world.verdicts(1)
        world.outgoing.on_arrival(other)
        assert world.reset == [other]
        assert world.joined() == []

    run(scenario)


def test_a_claimed_channel_is_not_claimed_twice() -> None:
    async def scenario(world: World) -> None:
        world.syn(1, 40001)
        await world.verdicts(1)
        world.outgoing.on_arrival(Arrival(61998))
        second = Arrival(61999)
        world.outgoing.on_arrival(second)
        assert world.reset == [second]

    run(scenario)


def test_dns_over_tcp_is_let_through_to_its_own_redirect() -> None:
    async def scenario(world: World) -> None:
        world.syn(1, 40001, "10.0.0.2", 53)
        assert await world.verdicts(1) == [("accept", 1)]
        assert world.link.dialled == []

    run(scenario)


def test_where_nothing_holds_syns_an_arrival_is_dialled_and_reset_on_failure() -> None:
    async def scenario(world: World) -> None:
        world.outgoing.on_arrival(Arrival(40001))
        await until(lambda: bool(world.joined()))
        world.link.answer = FlowRefused("ECONNREFUSED")
        failing = Arrival(40002)
        world.outgoing.on_arrival(failing)
        await until(lambda: bool(world.reset))
        assert world.reset == [failing]
        assert world.outgoing.flows == 1

    run(scenario, held=False)


def test_a_dial_without_a_wait_ends_its_hold_within_the_answer() -> None:
    async def scenario(world: World) -> None:
        world.link.at_once = True
        world.syn(1, 41512)
        world.syn(2, 41512)  # sent again while it is held
        world.syn(3, 41513)
        opened, refused = world.link.begun
        world.link.channels.append(Channel(0))
        assert opened(world.link.channels[0])
        assert refused(FlowRefused("ECONNREFUSED"))
        assert world.holder.verdicts == [("drop", 2), ("accept", 1), ("refuse", 3, "ECONNREFUSED")]
        world.outgoing.on_arrival(Arrival(41512))
        assert world.joined() == [0]

    run(scenario)


def test_a_dial_whose_connection_is_lost_goes_on_over_the_next() -> None:
    async def scenario(world: World) -> None:
        world.link.at_once = True
        world.syn(1, 41512)
        assert world.link.begun[0](LinkLost("cut"))
        assert await world.verdicts(1) == [("accept", 1)]
        assert world.link.dialled == [(*SERVER, (APP, 41512))]

    run(scenario)


def test_an_answer_that_comes_after_the_app_gave_up_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HOLD_S", 0.01)

    async def scenario(world: World) -> None:
        world.link.at_once = True
        world.syn(1, 41512)
        assert await world.verdicts(1) == [("drop", 1)]
        assert not world.link.begun[0](Channel(0))
        assert len(world.holder.verdicts) == 1

    run(scenario)


def test_A38_a_syn_from_an_address_that_is_left_is_refused_and_its_answer_is_not_wanted() -> None:
    async def scenario(world: World) -> None:
        world.link.at_once = True
        world.syn(1, 40001)
        world.outgoing.leave({"172.18.0.99"})  # another one
        assert world.holder.verdicts == []
        world.outgoing.leave({APP})
        assert world.holder.verdicts == [("refuse", 1, "EHOSTUNREACH")]
        assert not world.link.begun[0](Channel(0))
        world.syn(2, 40001)  # the port may be used again
        assert len(world.link.begun) == 2

    run(scenario)


def test_A38_a_syn_that_waits_for_the_link_is_refused_as_well() -> None:
    async def scenario(world: World) -> None:
        world.link.gate = asyncio.Event()
        world.syn(1, 40001)
        await until(lambda: len(world.link.dialled) == 1)
        world.outgoing.leave({APP})
        assert world.holder.verdicts == [("refuse", 1, "EHOSTUNREACH")]
        world.link.gate.set()
        await until(lambda: bool(world.link.channels) and world.link.channels[0].told == ["abort"])
        assert len(world.holder.verdicts) == 1

    run(scenario)


def test_A38_open_flows_from_an_address_that_is_left_are_reset_and_others_go_on() -> None:
    async def scenario(world: World) -> None:
        for number, app_addr in enumerate((APP, "172.18.0.99")):
            world.outgoing.on_syn(HeldSyn(number, app_addr, 40001, *SERVER))
        await world.verdicts(2)
        ours, apps = socket.socketpair()
        ours.setblocking(False)
        world.outgoing.on_arrival(Arrival(40001, sock=ours))
        world.outgoing.on_arrival(Arrival(40001, app_addr="172.18.0.99"))
        world.outgoing.leave({APP})
        assert [channel.told for channel in world.link.channels] == [["abort"], []]
        assert apps.recv(1) == b""
        apps.close()
        assert [channel.sink is not None for channel in world.link.channels] == [True, True]

    run(scenario)


def test_A38_an_accepted_syn_from_an_address_that_is_left_gives_its_channel_back() -> None:
    async def scenario(world: World) -> None:
        world.syn(1, 40001)
        await world.verdicts(1)
        world.outgoing.leave({APP})
        assert world.link.channels[0].told == ["abort"]
        world.outgoing.on_arrival(Arrival(40001))
        assert len(world.reset) == 1

    run(scenario)


def test_A38_a_syn_that_has_just_begun_to_wait_is_refused_as_well() -> None:
    async def scenario(world: World) -> None:
        world.syn(1, 40001)
        world.outgoing.leave({APP})  # before the loop has had a turn
        assert world.holder.verdicts == [("refuse", 1, "EHOSTUNREACH")]
        await until(lambda: bool(world.link.channels) and world.link.channels[0].told == ["abort"])
        assert len(world.holder.verdicts) == 1

    run(scenario)

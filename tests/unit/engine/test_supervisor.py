"""The link kept up: what its user gets and what its status says while carriers come and go. SSH and carriers are fakes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from bridge.engine.needs import FlowRefused
from bridge.engine.supervisor import Supervisor
from bridge.errors import BridgeError, HostKeyMismatch, LinkError, LinkLost, RemoteProtocolError, VersionMismatch
from bridge.model.facts import Facts
from bridge.protocol import control, udp
from bridge.protocol.door import LinkStatus
from tests.unit.virtual import run

FACTS = Facts("orders-0", ("10.0.3.7/24",), "nameserver 10.0.0.10\n", "")
APP = ("172.18.0.3", 40000)


class Transport:
    """A stream whose carrier the test cuts. `refuses`: the agent no longer knows it."""

    def __init__(self) -> None:
        self.expecting = self.attached = False
        self.carriers: list[tuple[int, ...]] = []
        self.secret = b""
        self.ssh: Ssh | None = None
        self.refuses = self.aborted = False
        self._lost: Callable[[str], None] = lambda why: None
        self._carried: Callable[[], None] = lambda: None

    @property
    def resumable(self) -> bool:
        return bool(self.secret)

    def carry(self, *fds: int) -> None:
        self.carriers.append(fds)
        if self.refuses:
            assert self.ssh is not None
            self.ssh.end("the agent refused the stream: the stream is not known here")
            return
        self.attached = True
        self._carried()

    def on_carrier_lost(self, callback: Callable[[str], None]) -> None:
        self._lost = callback

    def on_carried(self, callback: Callable[[], None]) -> None:
        self._carried = callback

    def set_secret(self, secret: bytes) -> None:
        self.secret = secret

    def abort(self) -> None:
        self.attached, self.aborted = False, True

    def cut(self, why: str = "the far end closed the carrier") -> None:
        self.attached = False
        self._lost(why)


class Ssh:
    def __init__(self, world: World, transport: Transport, host_key: str) -> None:
        self.world = world
        self.transport = transport
        self.host_key = host_key
        self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.on_message: Callable[[control.Message], None] | None = None
        self.on_udp: Callable[[udp.Message], None] | None = None
        self.asked: list[control.Ask] = []
        self.datagrams: list[udp.Message] = []
        self.flows: list[tuple[str, int]] = []
        transport.ssh = self

    async def open_flow(self, address: str, port: int, app: tuple[str, int]) -> str:
        if self.closed.done():
            raise LinkLost("the link is closed")
        self.flows.append((address, port))
        self.world.changed.set()
        if port == 1:
            raise control.FlowRefused("ECONNREFUSED")
        if port == 2:  # a dial without an answer
            await asyncio.wait((self.closed,))
            raise LinkLost("the link is closed")
        return f"flow to {address}:{port} by {self.host_key}"

    def begin_flow(self, address: str, port: int, app: tuple[str, int], answered: Callable[[Any], bool]) -> bool:
        self.flows.append((address, port))
        return answered(f"flow to {address}:{port} by {self.host_key}")

    async def open_control(self, on_message: Callable[[control.Message], None]) -> Ssh:
        self.on_message = on_message
        on_message(control.FactsTold(FACTS))
        return self

    async def open_udp(self, on_message: Callable[[udp.Message], None]) -> Datagrams:
        self.on_udp = on_message
        return Datagrams(self.datagrams)

    async def agree_secret(self) -> bytes:
        if self.world.fails_at_secret:
            self.world.fails_at_secret -= 1
            raise LinkLost("the carrier broke during the handshake")
        return bytes(32)

    def send(self, message: control.Message) -> None:
        assert isinstance(message, control.Ask)
        self.asked.append(message)
        self.world.changed.set()

    def answer(self, answer: bytes = b"answer", error: str | None = None) -> None:
        assert self.on_message is not None
        self.on_message(control.Answer(self.asked[-1].number, answer, error))

    def close(self) -> None:
        self.end("closed")

    def end(self, why: str) -> None:
        self.transport.attached = False
        if not self.closed.done():
            self.closed.set_result(why)


class Datagrams:
    def __init__(self, sent: list[udp.Message]) -> None:
        self.sent = sent

    def send(self, message: udp.Message) -> None:
        self.sent.append(message)


class World:
    """The host beside the supervisor. While `brings` each dial gets a carrier at once."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.brings = True
        self.why, self.final = "connection refused", False
        self.fails_at_secret = 0
        self.ssh_error: BridgeError | None = None
        self.dials: list[tuple[float, int, tuple[str, ...]]] = []
        self.statuses: list[LinkStatus] = []
        self.transports: list[Transport] = []
        self.connections: list[Ssh] = []
        self.changed = asyncio.Event()
        self.supervisor = Supervisor(
            private_key="private",
            host_key="key-1",
            agent_id="a" * 16,
            dial=self.dial,
            on_status=self.on_status,
            make_transport=self.make_transport,
            connect_ssh=self.connect_ssh,
            now=lambda: 1_000_000 + loop.time(),
            random=lambda: 0.0,
        )

    def dial(self, number: int, avoid: Sequence[str]) -> None:
        loop = asyncio.get_running_loop()
        self.dials.append((loop.time(), number, tuple(avoid)))
        self.changed.set()
        if self.brings:
            via = "exec" if "direct" in avoid else "direct"
            loop.call_soon(self.supervisor.carrier, number, via, ())
        elif self.why:
            loop.call_soon(self.supervisor.carrier_failed, number, self.why, self.final)

    def on_status(self, status: LinkStatus) -> None:
        self.statuses.append(status)
        self.changed.set()

    def make_transport(self) -> Transport:
        self.transports.append(Transport())
        return self.transports[-1]

    async def connect_ssh(self, transport: Transport, *, private_key: str, host_key: str) -> Ssh:
        await asyncio.sleep(0)
        if self.ssh_error is not None:
            raise self.ssh_error
        ssh = Ssh(self, transport, host_key)
        self.connections.append(ssh)
        return ssh

    @property
    def control(self) -> Ssh:
        return next(ssh for ssh in reversed(self.connections) if ssh.on_message is not None)

    @property
    def flows(self) -> Ssh:
        return next(ssh for ssh in reversed(self.connections) if ssh.on_message is None)

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.changed.clear()
            await self.changed.wait()

    async def until_state(self, state: str) -> LinkStatus:
        await self.until(lambda: bool(self.statuses) and self.statuses[-1].state == state)
        return self.statuses[-1]


def with_link(test: Callable[[World, Supervisor], Coroutine[Any, Any, None]], *, fails: type[LinkError] | None = None) -> None:
    """Run `test` beside a running supervisor, and stop that in order."""

    async def whole() -> None:
        world = World()
        async with asyncio.TaskGroup() as group:
            running = group.create_task(_run(world.supervisor, fails), name="run")
            await test(world, world.supervisor)
            if fails is None:
                await world.supervisor.stop()
                assert all(ssh.closed.done() for ssh in world.connections)
            await running

    run(whole())


async def _run(supervisor: Supervisor, fails: type[LinkError] | None) -> None:
    if fails is None:
        await supervisor.run()
        return
    with pytest.raises(fails):
        await supervisor.run()


def test_two_connections_come_up_and_the_facts_are_told() -> None:
    async def test(world: World, link: Supervisor) -> None:
        assert await link.facts() == FACTS
        status = await world.until_state("connected")
        assert (status.via, status.why) == ("direct", None)
        assert len(world.connections) == 2
        assert all(transport.expecting and transport.secret for transport in world.transports)
        assert await link.open_flow("10.0.3.7", 80, APP) == "flow to 10.0.3.7:80 by key-1"

    with_link(test)


def test_A03_a_refused_dial_is_the_targets_own_errno() -> None:
    async def test(world: World, link: Supervisor) -> None:
        with pytest.raises(FlowRefused) as refused:
            await link.open_flow("10.0.3.7", 1, APP)
        assert refused.value.errno_name == "ECONNREFUSED"

    with_link(test)


def test_A37_open_flows_survive_a_cut_and_the_status_is_honest_meanwhile() -> None:
    async def test(world: World, link: Supervisor) -> None:
        loop = asyncio.get_running_loop()
        await world.until_state("connected")
        await asyncio.sleep(60)
        ssh = world.flows
        world.brings, world.why = False, "no route to host"
        start = loop.time()
        ssh.transport.cut("the carrier was silent for 15 s")
        status = await world.until_state("reconnecting")
        assert status == LinkStatus("reconnecting", 1_000_000 + start, None, "the carrier was silent for 15 s")
        await world.until(lambda: world.statuses[-1].why == "no route to host")
        opening = asyncio.ensure_future(link.open_flow("10.0.3.7", 443, APP))
        await asyncio.sleep(60)
        assert world.statuses[-1].state == "reconnecting"
        assert world.statuses[-1].since == 1_000_000 + start
        world.brings = True
        status = await world.until_state("connected")
        assert status.why is None
        assert world.flows is ssh
        assert not ssh.closed.done()
        assert await opening == "flow to 10.0.3.7:443 by key-1"

    with_link(test)


def test_the_first_attempt_after_a_steady_carrier_is_immediate_and_later_ones_back_off_to_10_s() -> None:
    async def test(world: World, link: Supervisor) -> None:
        loop = asyncio.get_running_loop()
        await world.until_state("connected")
        await asyncio.sleep(60)
        world.brings = False
        world.dials.clear()
        start = loop.time()
        world.flows.transport.cut()
        await asyncio.sleep(60)
        waits = [round(at - start, 1) for at, _, _ in world.dials]
        assert waits == [0, 0.1, 0.3, 0.7, 1.5, 3.1, 6.3, 12.7, 22.7, 32.7, 42.7, 52.7]
        world.brings = True
        await world.until_state("connected")
        await asyncio.sleep(60)
        world.brings = False
        world.dials.clear()
        start = loop.time()
        world.flows.transport.cut()
        await asyncio.sleep(0.5)
        assert [round(at - start, 1) for at, _, _ in world.dials] == [0, 0.1, 0.3]

    with_link(test)


def test_carriers_that_die_young_are_avoided_and_never_asked_for_in_a_tight_loop() -> None:
    async def test(world: World, link: Supervisor) -> None:
        await world.until_state("connected")
        await asyncio.sleep(60)
        transport = world.flows.transport
        world.dials.clear()
        loop = asyncio.get_running_loop()
        start = loop.time()
        while loop.time() - start < 10:
            carriers = len(transport.carriers)
            transport.cut("reset")
            await world.until(lambda known=carriers: len(transport.carriers) > known and transport.attached)  # type: ignore[misc]
        assert len(world.dials) <= 9
        assert [avoid for _, _, avoid in world.dials[:3]] == [(), ("direct",), ("direct", "exec")]

    with_link(test)


def test_a_refused_resumption_makes_a_new_connection_and_the_old_flows_are_reset() -> None:
    async def test(world: World, link: Supervisor) -> None:
        await world.until_state("connected")
        old = world.flows
        old.transport.refuses = True
        old.transport.cut()
        await world.until_state("reconnecting")
        await world.until_state("connected")
        assert old.closed.done()
        assert world.flows is not old
        assert await link.open_flow("10.0.3.7", 80, APP) == "flow to 10.0.3.7:80 by key-1"

    with_link(test)


def test_a_carrier_that_comes_after_its_stream_has_ended_carries_the_next_one() -> None:
    async def test(world: World, link: Supervisor) -> None:
        await world.until_state("connected")
        await asyncio.sleep(60)
        old = world.flows
        world.brings, world.why = False, ""  # the host is busy
        world.dials.clear()
        old.transport.cut()
        await world.until(lambda: len(world.dials) == 1)
        old.end("no carrier came for 180 s")
        link.carrier(world.dials[0][1], "exec", ())
        status = await world.until_state("connected")
        assert status.via == "exec"
        assert world.flows is not old
        assert len(old.transport.carriers) == 1
        assert len(world.dials) == 1

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


def test_another_agent_gets_new_connections_with_its_own_key() -> None:
    async def test(world: World, link: Supervisor) -> None:
        await world.until_state("connected")
        old = list(world.connections)
        link.agent_changed("key-2", "b" * 16)
        assert all(ssh.closed.done() for ssh in old)
        await world.until_state("reconnecting")
        await world.until_state("connected")
        assert [ssh.host_key for ssh in world.connections[2:]] == ["key-2", "key-2"]
        assert await link.open_flow("10.0.3.7", 80, APP) == "flow to 10.0.3.7:80 by key-2"
        link.agent_changed("key-2", "b" * 16)
        assert not world.flows.closed.done()

    with_link(test)


def test_another_agent_ends_a_long_wait_at_once() -> None:
    async def test(world: World, link: Supervisor) -> None:
        loop = asyncio.get_running_loop()
        await world.until_state("connected")
        await asyncio.sleep(60)
        world.brings, world.why, world.final = False, "the agent is gone", True
        for ssh in list(world.connections):
            ssh.transport.cut()
        await world.until(lambda: world.statuses[-1].why == "the agent is gone")
        count = len(world.dials)
        await asyncio.sleep(20)
        assert len(world.dials) == count
        world.brings = True
        start = loop.time()
        link.agent_changed("key-2", "b" * 16)
        await world.until_state("connected")
        assert loop.time() - start < 1
        assert world.flows.host_key == "key-2"

    with_link(test)


def test_a_new_agents_carrier_may_come_before_its_key() -> None:
    async def test(world: World, link: Supervisor) -> None:
        await world.until_state("connected")
        world.ssh_error = HostKeyMismatch("the agent's host key is not the one in its log")
        for ssh in list(world.connections):
            ssh.transport.refuses = True
            ssh.transport.cut()
        await world.until(lambda: "host key" in (world.statuses[-1].why or ""))
        world.ssh_error = None
        link.agent_changed("key-2", "b" * 16)
        await world.until_state("connected")
        assert world.flows.host_key == "key-2"

    with_link(test)


def test_a_failed_handshake_is_tried_again_over_another_kind_of_carrier() -> None:
    async def test(world: World, link: Supervisor) -> None:
        world.fails_at_secret = 2
        status = await world.until_state("connected")
        assert status.via == "exec"
        assert [avoid for _, _, avoid in world.dials] == [(), (), ("direct",), ("direct",)]
        assert sum(transport.aborted for transport in world.transports) == 2
        assert world.statuses[-2].state == "connecting"

    with_link(test)


def test_a_carrier_that_leads_to_something_else_is_tried_again() -> None:
    async def test(world: World, link: Supervisor) -> None:
        world.ssh_error = RemoteProtocolError("a frame of unknown type 72 came over the carrier")
        await world.until(lambda: len(world.dials) >= 4)
        assert world.statuses[-1].why == "a frame of unknown type 72 came over the carrier"
        assert all(transport.aborted for transport in world.transports)
        world.ssh_error = None
        await world.until_state("connected")

    with_link(test)


@pytest.mark.parametrize("error", [HostKeyMismatch("another key"), VersionMismatch("2.0 and 1.0")])
def test_what_no_attempt_can_help_fails_the_session_by_name(error: LinkError) -> None:
    async def test(world: World, link: Supervisor) -> None:
        world.ssh_error = error
        status = await world.until_state("failed")
        assert status.why == error.message
        with pytest.raises(LinkError):
            await link.facts()
        with pytest.raises(LinkError):
            await link.open_flow("10.0.3.7", 80, APP)

    with_link(test, fails=type(error))


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


def test_a_carrier_that_comes_too_late_is_closed() -> None:
    async def test(world: World, link: Supervisor) -> None:
        await world.until_state("connected")
        read_end, write_end = os.pipe()
        link.carrier(999, "direct", (read_end, write_end))
        for fd in (read_end, write_end):
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(fd)

    with_link(test)


def test_stopping_while_nothing_was_ever_reached_is_quick() -> None:
    async def test(world: World, link: Supervisor) -> None:
        world.brings, world.why = False, ""
        await world.until(lambda: len(world.dials) == 2)

    with_link(test)

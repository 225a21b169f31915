"""The link kept up: what its status says, and how carriers are asked for, while they come and go."""

from __future__ import annotations

import asyncio
import os

import pytest

from bridge.engine.supervisor import Supervisor
from bridge.errors import HostKeyMismatch, LinkError, RemoteProtocolError, VersionMismatch
from bridge.protocol.door import LinkStatus
from tests.unit.engine.supervised import APP, FACTS, World, with_link


def test_two_connections_come_up_and_the_facts_are_told() -> None:
    async def test(world: World, link: Supervisor) -> None:
        assert await link.facts() == FACTS
        status = await world.until_state("connected")
        assert (status.via, status.why) == ("direct", None)
        assert len(world.connections) == 2
        assert all(transport.expecting and transport.secret for transport in world.transports)
        assert await link.open_flow("10.0.3.7", 80, APP) == "flow to 10.0.3.7:80 by key-1"

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


def test_another_agent_gets_new_connections_with_its_own_key() -> None:
    async def test(world: World, link: Supervisor) -> None:
        await world.until_state("connected")
        old = list(world.connections)
        link.agent_changed("key-2", "b" * 16)
        assert all(ssh.closed.done() for ssh in old)
        await world.until_state("reconnecting")
        await world.until_state("connected")
        assert [ssh.host_key for ssh in world.connections[2:]] == ["key-2", "key-2"]
        assert {avoid for _, _, avoid in world.dials} == {()}, "it is not avoided for what its predecessor's carriers did"
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

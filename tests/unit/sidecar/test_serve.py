"""The bridge's life behind its door, with a link and a wiring that only record. The door and its sockets are real."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from bridge.errors import HostKeyMismatch, KernelLacks
from bridge.model.facts import BridgeConfig, Facts
from bridge.protocol import door, udp
from bridge.sidecar.serve import Bridge, Dial

CONFIG = BridgeConfig("abcdef", "docker/orders", "KEY", "ssh-ed25519 AAAA", "00" * 8)
FACTS = Facts("orders-1", ("10.0.3.7/24",), "nameserver 10.0.0.2\n", "", "ICMP is not allowed", ("slow",))
_Message = TypeVar("_Message")


class Link:
    def __init__(self, dial: Dial, tell: Callable[[door.LinkStatus], None]) -> None:
        self.dial, self.tell = dial, tell
        self.carriers: list[tuple[int, str, tuple[int, ...]]] = []
        self.failures: list[tuple[int, str, bool]] = []
        self.agents: list[tuple[str, str]] = []
        self.stopped = False
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.known: asyncio.Future[Facts] = asyncio.get_running_loop().create_future()
        self.on_datagram: Callable[[udp.Message], None] = lambda message: None
        self.on_facts: Callable[[Facts], None] = lambda facts: None

    def moved(self, facts: Facts) -> None:
        self.known = asyncio.get_running_loop().create_future()
        self.known.set_result(facts)
        self.on_facts(facts)

    async def run(self) -> None:
        await self.over

    async def facts(self) -> Facts:
        return await self.known

    async def stop(self) -> None:
        self.stopped = True

    def carrier(self, dial_id: int, via: str, fds: Sequence[int]) -> None:
        self.carriers.append((dial_id, via, tuple(fds)))

    def carrier_failed(self, dial_id: int, why: str, final: bool) -> None:
        self.failures.append((dial_id, why, final))

    def agent_changed(self, host_key: str, agent_id: str) -> None:
        self.agents.append((host_key, agent_id))

    async def open_flow(self, address: str, port: int, app: tuple[str, int]) -> Any:
        raise NotImplementedError

    def begin_flow(self, address: str, port: int, app: tuple[str, int], answered: Any) -> bool:
        return False

    def send(self, message: udp.Message) -> None: ...

    async def ask(self, nameserver: str, query: bytes, over_tcp: bool) -> bytes:
        raise NotImplementedError


class Count:
    flows = opened_ever = open_associations = 0


class Wired:
    engine_resolv_conf = "nameserver 172.30.0.1\n"
    holder = "nft"
    warnings = ("two names, one address",)

    def __init__(self) -> None:
        self.outgoing = self.datagrams = Count()
        self.error: Exception | None = None
        self.names: list[Sequence[str]] = []
        self.wired_with: list[Facts] = []
        self.new_agents = 0
        self.facts = None

    async def wire(self, facts: Facts) -> None:
        if self.error is not None:
            raise self.error
        self.wired_with.append(facts)
        self.facts: Facts | None = facts

    async def rewire(self, facts: Facts) -> None:
        await self.wire(facts)

    def change_names(self, names: Sequence[str]) -> None:
        self.names.append(names)

    def agent_is_new(self) -> None:
        self.new_agents += 1


class Host:
    """One control connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, message: door.Message) -> None:
        self.writer.write(door.encode(message))

    async def until(self, kind: type[_Message]) -> _Message:
        async with asyncio.timeout(5):
            while line := await self.reader.readline():
                message = door.decode(line)
                if isinstance(message, kind):
                    return message
        raise EOFError

    async def ended(self) -> None:
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(5):
                while await self.reader.readline():
                    pass


class World:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.links: list[Link] = []
        self.wired = Wired()
        self.bridge = Bridge(self._make_link, lambda config, link, group: self.wired, path)  # type: ignore[arg-type,return-value]

    def _make_link(self, config: BridgeConfig, dial: Dial, tell: Callable[[door.LinkStatus], None]) -> Link:
        self.links.append(Link(dial, tell))
        return self.links[-1]

    @property
    def link(self) -> Link:
        return self.links[0]

    async def host(self, first: bytes = b'{"type": "control"}\n') -> Host:
        host = Host(*await asyncio.open_unix_connection(str(self.path)))
        host.writer.write(first)
        return host

    async def configured(self) -> Host:
        host = await self.host()
        host.send(door.Configure(CONFIG))
        await until(lambda: bool(self.links))
        return host

    def bring(self, dial_id: int, fds: list[int]) -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(self.path))
            socket.send_fds(sock, [json.dumps({"type": "carrier", "id": dial_id, "via": "direct"}).encode() + b"\n"], fds)


async def until(fact: Callable[[], bool]) -> None:
    while not fact():  # noqa: ASYNC110  # the fakes are plain lists; the scenario's own timeout ends this
        await asyncio.sleep(0.001)


@pytest.fixture
def run(tmp_path: Path) -> Callable[[Callable[[World], Awaitable[None]]], None]:
    def go(scenario: Callable[[World], Awaitable[None]]) -> None:
        async def main() -> None:
            world = World(tmp_path / "d" / "bridge.sock")
            async with asyncio.timeout(10), asyncio.TaskGroup() as group:
                serving = group.create_task(world.bridge.run())
                await until(world.path.exists)
                await scenario(world)
                world.bridge.stop()
                await serving

        asyncio.run(main())

    return go


def test_ready_comes_once_the_netns_is_wired_with_the_targets_facts(run) -> None:
    async def scenario(world: World) -> None:
        host = await world.configured()
        world.link.tell(door.LinkStatus("connected", 1.0, "direct"))
        assert (await host.until(door.Status)).link.state == "connected"
        assert world.wired.wired_with == []
        world.link.known.set_result(FACTS)
        assert await host.until(door.Ready) == door.Ready(FACTS, "nameserver 172.30.0.1\n")
        assert world.wired.wired_with == [FACTS]
        status = await host.until(door.Status)
        assert status.holder == "nft"
        assert status.warnings == ("slow", "no ping: ICMP is not allowed", "two names, one address")

    run(scenario)


def test_a_wiring_that_fails_is_told_and_told_again_to_a_later_host(run) -> None:
    async def scenario(world: World) -> None:
        world.wired.error = KernelLacks("no tun", hint="modprobe tun")
        host = await world.configured()
        world.link.known.set_result(FACTS)
        expected = door.Failed("KernelLacks", "no tun", "modprobe tun")
        assert await host.until(door.Failed) == expected
        another = await world.configured()
        assert await another.until(door.Failed) == expected

    run(scenario)


def test_a_link_that_can_never_be_up_is_told(run) -> None:
    async def scenario(world: World) -> None:
        host = await world.configured()
        world.link.over.set_exception(HostKeyMismatch("another key", hint="mbridge down"))
        assert await host.until(door.Failed) == door.Failed("HostKeyMismatch", "another key", "mbridge down")

    run(scenario)


def test_a_carrier_that_was_asked_for_reaches_the_link_and_a_strangers_does_not(run) -> None:
    async def scenario(world: World) -> None:
        host = await world.configured()
        world.link.dial(7, ["exec"])
        assert await host.until(door.Dial) == door.Dial(7, ("exec",))
        ours, theirs = socket.socketpair()
        with ours, theirs:
            world.bring(8, [theirs.fileno()])
            world.bring(7, [theirs.fileno()])
            await until(lambda: bool(world.link.carriers))
            theirs.close()
            (dial_id, via, (fd,)) = world.link.carriers[0]
            assert (dial_id, via) == (7, "direct")
            os.write(fd, b"through")
            assert ours.recv(100) == b"through"
            os.close(fd)
            assert ours.recv(100) == b""  # no other copy is open: the stranger's was closed

    run(scenario)


def test_a_dial_that_a_killed_host_left_is_asked_of_the_next(run) -> None:
    async def scenario(world: World) -> None:
        host = await world.configured()
        world.link.known.set_result(FACTS)
        world.link.dial(3, [])
        await host.until(door.Dial)
        host.writer.close()
        another = await world.configured()
        assert await another.until(door.Ready) == door.Ready(FACTS, "nameserver 172.30.0.1\n")
        assert (await another.until(door.Status)).holder == "nft"
        assert await another.until(door.Dial) == door.Dial(3)
        another.send(door.CarrierFailed(3, "refused"))
        await until(lambda: world.link.failures == [(3, "refused", False)])
        assert len(world.links) == 1
        assert len(world.wired.wired_with) == 1

    run(scenario)


def test_a_new_host_takes_over_from_one_that_hangs(run) -> None:
    async def scenario(world: World) -> None:
        host = await world.configured()
        another = await world.configured()
        await host.ended()
        world.link.known.set_result(FACTS)
        await another.until(door.Ready)

    run(scenario)


def test_another_session_is_refused(run) -> None:
    async def scenario(world: World) -> None:
        await world.configured()
        other = await world.host()
        other.send(door.Configure(BridgeConfig("zzzzzz", "docker/other", "KEY", "ssh-ed25519 AAAA", "00" * 8)))
        assert "abcdef" in (await other.until(door.Failed)).message
        await other.ended()

    run(scenario)


def test_an_agent_made_anew_is_told_to_link_and_datagrams_once(run) -> None:
    async def scenario(world: World) -> None:
        host = await world.configured()
        for _ in range(2):
            host.send(door.Agent("ssh-ed25519 BBBB", "11" * 8))
        host.send(door.Names(("db",)))
        await until(lambda: world.wired.names == [("db",)])
        assert world.link.agents == [("ssh-ed25519 BBBB", "11" * 8)]
        assert world.wired.new_agents == 1

    run(scenario)


def test_a_target_that_moved_is_wired_again_and_one_that_did_not_is_left_alone(run) -> None:
    async def scenario(world: World) -> None:
        host = await world.configured()
        world.link.known.set_result(FACTS)
        assert (await host.until(door.Ready)).facts == FACTS
        world.link.moved(replace(FACTS, ping=True))
        elsewhere = replace(FACTS, addresses=("10.0.3.9/24",))
        world.link.moved(elsewhere)
        await until(lambda: len(world.wired.wired_with) > 1)
        assert world.wired.wired_with == [FACTS, elsewhere]

    run(scenario)


@pytest.mark.parametrize("line", [b"rubbish\n", b"[]\n", b'{"type": "ready"}\n', door.encode(door.Dial(1))])
def test_a_line_that_is_no_message_ends_that_connection_alone(run, line: bytes) -> None:
    async def scenario(world: World) -> None:
        host = await world.host()
        host.writer.write(line)
        assert (await host.until(door.Failed)).error == "RemoteProtocolError"
        await host.ended()
        await world.configured()

    run(scenario)


def test_an_endless_line_is_cut_off(run) -> None:
    async def scenario(world: World) -> None:
        host = await world.host()
        host.writer.write(b"x" * (4 << 20))
        await host.ended()
        await world.configured()

    run(scenario)


@pytest.mark.parametrize("first", [b"GET / HTTP/1.0\n", b'{"type": "carrier", "id": 1, "via": "x"}\n', b"[1]\n", b'{"type": "sing"}\n'])
def test_a_first_line_that_the_door_does_not_know_is_cut_off(run, first: bytes) -> None:
    async def scenario(world: World) -> None:
        host = await world.host(first)
        await host.ended()
        await world.configured()

    run(scenario)


def test_stop_closes_the_link_in_order_and_takes_the_door_away(run) -> None:
    async def scenario(world: World) -> None:
        host = await world.configured()
        host.send(door.Stop())
        await host.ended()
        assert world.link.stopped
        assert not world.path.exists()

    run(scenario)


def test_the_door_is_for_a_user_who_is_not_root_too(run) -> None:
    async def scenario(world: World) -> None:
        assert stat.S_IMODE(world.path.stat().st_mode) == 0o666

    run(scenario)


def test_a_bug_in_a_task_is_not_hidden(tmp_path: Path) -> None:
    async def main() -> None:
        world = World(tmp_path / "bridge.sock")
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            serving = group.create_task(world.bridge.run())
            await until(world.path.exists)
            await world.configured()
            world.link.over.set_exception(ZeroDivisionError("a bug"))
            await serving

    with pytest.raises(ExceptionGroup) as caught:
        asyncio.run(main())
    assert caught.group_contains(ZeroDivisionError)

"""Handing whole: the bridge's side and the agent's, over their real socket, between a real app and a real server.

Each test ends with no flow counted at the agent and no descriptor left in the process (`play`).
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from bridge.agent import dialling
from bridge.agent.handing import accept_invitation
from bridge.engine.handing import HandedFlow
from bridge.errors import LinkLost
from bridge.protocol import control
from bridge.protocol import handing as wire
from bridge.protocol.control import FlowRefused
from tests.unit.agent.handed import RESET_AT_CLOSE, Flow, Pair, play
from tests.unit.agent.running import Running
from tests.unit.descriptors import no_descriptors


def test_an_app_that_was_handed_over_speaks_with_the_server_and_both_ends_are_counted(tmp_path: Path) -> None:
    async def scenario(pair: Pair) -> None:
        await pair.live()
        flow, app, server = await pair.joined()
        assert pair.dialler.flows == 1
        app.shutdown(socket.SHUT_WR)
        assert await pair.recv(server) == b""
        server.send(b"the rest")  # half-closed: the server goes on
        server.shutdown(socket.SHUT_WR)
        assert await pair.recv(app) == b"the rest"
        assert await pair.recv(app) == b""
        await pair.until(lambda: bool(flow.ended))
        assert flow.ended == [(4, 12, "CLOSED")]

    play(tmp_path, scenario)


def test_what_a_server_says_and_that_it_ends_before_the_app_is_handed_over_is_kept(tmp_path: Path) -> None:
    async def scenario(pair: Pair) -> None:
        await pair.live()
        flow, (app, ours) = await pair.dialled(), pair.app()
        server = await pair.accepted()
        server.send(b"220 ready")
        server.shutdown(socket.SHUT_WR)
        another = await pair.dialled()  # by now the agent has heard the server
        flow.take(ours)
        assert await pair.recv(app) == b"220 ready"
        assert await pair.recv(app) == b""
        app.send(b"QUIT")
        app.shutdown(socket.SHUT_WR)
        assert await pair.recv(server) == b"QUIT"
        await pair.until(lambda: bool(flow.ended))
        assert flow.ended == [(4, 9, "CLOSED")]
        assert isinstance(another.answer, HandedFlow)
        another.answer.abort()

    play(tmp_path, scenario)


def test_a_server_that_floods_before_the_app_is_handed_over_is_stopped_and_loses_nothing(tmp_path: Path) -> None:
    async def scenario(pair: Pair) -> None:
        await pair.live()
        flow, (app, ours) = await pair.dialled(), pair.app()
        server = await pair.accepted()
        sent = idle = 0
        while idle < 100:
            try:
                sent += server.send(bytes(1 << 20))
                idle = 0
            except BlockingIOError:
                idle += 1
            await asyncio.sleep(0)
            assert sent < 64 << 20, "somebody keeps it all"
        server.shutdown(socket.SHUT_WR)
        flow.take(ours)
        got = 0
        while data := await pair.recv(app, 1 << 20):
            got += len(data)
        assert got == sent
        app.close()

    play(tmp_path, scenario)


@pytest.mark.parametrize("who", ["app", "server"])
def test_A07_a_reset_of_one_is_a_reset_at_the_other(tmp_path: Path, who: str) -> None:
    async def scenario(pair: Pair) -> None:
        await pair.live()
        flow, app, server = await pair.joined()
        first, second = (app, server) if who == "app" else (server, app)
        first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
        first.close()
        await pair.is_reset(second)
        await pair.until(lambda: bool(flow.ended))
        assert flow.ended[0][2].startswith("RESET by the ")

    play(tmp_path, scenario)


@pytest.mark.parametrize("who", ["app", "server"])
def test_A07_a_reset_before_the_app_is_handed_over_is_one_after_it(tmp_path: Path, who: str) -> None:
    async def scenario(pair: Pair) -> None:
        await pair.live()
        flow, (app, ours) = await pair.dialled(), pair.app()
        server = await pair.accepted()
        first, second = (app, server) if who == "app" else (server, app)
        first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
        first.close()
        flow.take(ours)
        await pair.is_reset(second)
        await pair.until(lambda: bool(flow.ended))
        assert flow.ended[0][2].startswith("RESET by the ")

    play(tmp_path, scenario)


def test_A03_a_refused_connection_is_econnrefused(tmp_path: Path) -> None:
    async def scenario(pair: Pair) -> None:
        await pair.live()
        with socket.create_server(("127.0.0.1", 0)) as gone:
            port = gone.getsockname()[1]
        flow = await pair.dialled(port)
        assert isinstance(flow.answer, FlowRefused)
        assert flow.answer.errno_name == "ECONNREFUSED"

    play(tmp_path, scenario)


def test_flows_past_the_agents_bound_are_refused_and_the_others_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialling, "MOST_FLOWS", 1)

    async def scenario(pair: Pair) -> None:
        await pair.live()
        _, app, server = await pair.joined()
        flow = await pair.dialled()
        assert isinstance(flow.answer, FlowRefused)
        assert flow.answer.errno_name == "ENOBUFS"
        app.send(b"still here")
        assert await pair.recv(server) == b"still here"
        app.close()
        server.close()

    play(tmp_path, scenario)


@pytest.mark.parametrize("by", ["the bridge drops the agent", "the agent ends", "the bridge resets the flow"])
def test_A07_whoever_ends_it_app_and_server_both_see_a_reset(tmp_path: Path, by: str) -> None:
    async def scenario(pair: Pair) -> None:
        hand = await pair.live()
        flow, app, server = await pair.joined()
        untaken = await pair.dialled()
        waiting = await pair.accepted()
        if by == "the bridge drops the agent":
            pair.handing.drop("the agent was made anew")
        elif by == "the agent ends":
            hand.close()
        else:
            flow.reset("as the target has another address")
            assert isinstance(untaken.answer, HandedFlow)
            untaken.answer.abort()
        await pair.is_reset(app, server, waiting)
        await pair.until(lambda: bool(flow.ended))
        assert [how.partition(" ")[0].strip(":") for _, _, how in flow.ended] == ["RESET"]
        assert pair.handing.live is (by == "the bridge resets the flow")

    play(tmp_path, scenario)


def test_a_dial_under_way_is_over_with_its_bridge(tmp_path: Path) -> None:
    async def scenario(pair: Pair) -> None:
        await pair.live()
        with socket.socket() as deaf:  # a full backlog: the kernel goes on trying
            deaf.bind(("127.0.0.1", 0))
            deaf.listen(0)
            port = deaf.getsockname()[1]
            fillers = [socket.socket() for _ in range(2)]
            for filler in fillers:
                filler.setblocking(False)
                assert filler.connect_ex(("127.0.0.1", port)) in (0, errno.EINPROGRESS)
            flow = Flow(pair.changed)
            assert pair.handing.begin("127.0.0.1", port, flow.answered)
            await pair.until(lambda: pair.dialler.flows == 1)
            pair.handing.drop("the agent was made anew")
            assert isinstance(flow.answer, LinkLost)
            await pair.until(lambda: pair.dialler.flows == 0)
            for filler in fillers:
                filler.close()

    play(tmp_path, scenario)


def test_a_bridge_that_goes_as_a_dial_succeeds_leaves_no_flow_behind(tmp_path: Path) -> None:
    """The agent finds the bridge gone by its own Opened, within the call that would join the flow."""

    async def scenario(pair: Pair) -> None:
        bridge = await pair.bare()
        bridge.send(wire.encode(wire.Dial(1, "127.0.0.1", pair.server.getsockname()[1])))
        bridge.close()
        server = await pair.accepted()
        await pair.is_reset(server)

    play(tmp_path, scenario)


def test_an_agent_without_descriptors_resets_what_it_cannot_take_and_goes_on(tmp_path: Path) -> None:
    async def scenario(pair: Pair) -> None:
        bridge = await pair.bare()
        bridge.send(wire.encode(wire.Dial(1, "127.0.0.1", pair.server.getsockname()[1])))
        server = await pair.accepted()
        assert wire.decode(await pair.recv(bridge)) == wire.Opened(1)
        app, ours = pair.app()
        socket.send_fds(bridge, [wire.encode(wire.Take(1))], [ours.fileno()])
        ours.close()
        with no_descriptors():
            ended = wire.decode(await pair.recv(bridge))
        assert ended == wire.Ended(1, 0, 0, "RESET: its descriptor was lost")
        await pair.is_reset(app, server)
        bridge.send(wire.encode(wire.Dial(2, "127.0.0.1", pair.server.getsockname()[1])))
        assert wire.decode(await pair.recv(bridge)) == wire.Opened(2)
        bridge.send(wire.encode(wire.Abort(2)))
        await pair.is_reset(await pair.accepted())

    play(tmp_path, scenario)


HOSTILE: dict[str, Callable[[int], wire.Message | bytes]] = {
    "no message": lambda port: b"?",
    "an agent's own message": lambda port: wire.Opened(1),
    "a number that is in use": lambda port: wire.Dial(1, "127.0.0.1", port),
    "take of no flow": lambda port: wire.Take(9),
    "take of a flow that is taken": lambda port: wire.Take(2),
    "take of a flow that is being dialled": lambda port: wire.Take(3),
}


@pytest.mark.parametrize("with_fd", [False, True], ids=["alone", "with a descriptor"])
@pytest.mark.parametrize("says", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_bridge_that_says_what_none_of_ours_does_is_left_and_all_its_flows_are_reset(
    tmp_path: Path, says: Callable[[int], wire.Message | bytes], with_fd: bool
) -> None:
    async def scenario(pair: Pair) -> None:
        bridge, port = await pair.bare(), pair.server.getsockname()[1]
        servers = []
        for number in (1, 2):
            bridge.send(wire.encode(wire.Dial(number, "127.0.0.1", port)))
            servers.append(await pair.accepted())
            assert wire.decode(await pair.recv(bridge)) == wire.Opened(number)
        app, ours = pair.app()
        socket.send_fds(bridge, [wire.encode(wire.Take(2))], [ours.fileno()])
        ours.close()
        app.send(b"x")
        assert await pair.recv(servers[1]) == b"x"
        bridge.send(wire.encode(wire.Dial(3, "name.invalid", port)))  # is being looked up for a while
        message = says(port)
        stray_app, stray = pair.app()
        packet = message if isinstance(message, bytes) else wire.encode(message)
        if with_fd:
            socket.send_fds(bridge, [packet], [stray.fileno()])
        else:
            bridge.send(packet)
        stray.close()
        await pair.is_reset(app, *servers, stray_app)
        assert await pair.recv(bridge) == b"", "and nothing was said to it"

    play(tmp_path, scenario)


@pytest.mark.parametrize("kind", ["file", "path", "pipe", "listener", "datagrams"])
def test_a_descriptor_that_is_no_connection_harms_no_other_flow_or_ends_that_bridge(tmp_path: Path, kind: str) -> None:
    async def scenario(pair: Pair) -> None:
        bridge = await pair.bare()
        bridge.send(wire.encode(wire.Dial(1, "127.0.0.1", pair.server.getsockname()[1])))
        server = await pair.accepted()
        assert wire.decode(await pair.recv(bridge)) == wire.Opened(1)
        match kind:
            case "file":
                fds = [os.open("/dev/null", os.O_RDWR)]
            case "path":
                fds = [os.open("/", os.O_PATH)]
            case "pipe":
                fds = list(os.pipe())
            case "listener":
                fds = [socket.create_server(("127.0.0.1", 0)).detach()]
            case _:
                fds = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM).detach()]
        socket.send_fds(bridge, [wire.encode(wire.Take(1))], fds[:1])
        for fd in fds:
            os.close(fd)
        if kind == "datagrams":
            bridge.close()
        await pair.is_reset(server)

    play(tmp_path, scenario)


def test_where_no_bridge_listens_or_one_has_just_gone_nothing_is_handed_and_nothing_fails(tmp_path: Path) -> None:
    async def scenario(pair: Pair) -> None:
        assert accept_invitation(pair.dialler, bytes(32), tmp_path / "none.sock") is None
        with no_descriptors():
            assert accept_invitation(pair.dialler, bytes(32), pair.path) is None
        pair.accepting.start()
        hands = [accept_invitation(pair.dialler, bytes(32), pair.path) for _ in range(8)]
        assert hands[-1] is None, "its backlog is full: who waits there longer than that is no bridge"
        for hand in hands:
            if hand is not None:
                hand.close()
        await asyncio.sleep(0.02)  # the backlog is emptied, a connection a turn
        await pair.live()

    play(tmp_path, scenario)


def test_an_invitation_on_the_control_channel_is_followed_and_a_later_one_ends_the_first(tmp_path: Path) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(str(tmp_path / "bridge.sock"))
            listener.setblocking(False)
            listener.listen()
            async with Running(tmp_path) as running, asyncio.timeout(10):
                channel, messages = await running.control()
                came: list[socket.socket] = []
                for token in (b"1" * 32, b"2" * 32):
                    channel.send(control.Hand(token))
                    came.append((await loop.sock_accept(listener))[0])
                    assert wire.decode(await loop.sock_recv(came[-1], 100)) == wire.Hello(token)
                assert await loop.sock_recv(came[0], 100) == b""
                listener.close()
                channel.send(control.Hand(b"3" * 32))  # nobody is there: the link goes on
                assert await loop.sock_recv(came[1], 100) == b""
                assert isinstance(await messages.get(), control.FactsTold)
                assert not running.agent.ended.is_set()
            for sock in came:
                sock.close()

    asyncio.run(scenario())

"""Docker targets against a fake engine: found or told why not, the agent's first words, carriers, what becomes of the target."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from bridge.adapters.docker.engine import Engine
from bridge.cli import direct
from bridge.cli.place_docker import DockerPlace
from bridge.engine import way_back
from bridge.errors import AgentFailed, BridgeError, HostKeyMismatch, LinkLost, TargetNotFound
from bridge.model.environ import Environ
from bridge.model.facts import AgentIdentity
from bridge.model.target import ComposeTarget, DockerTarget
from bridge.protocol import preamble
from tests.unit.fake_engine import Container, FakeEngine, Say, forever

AGENT_ID = "00112233445566ff"
KEY = "ssh-ed25519 " + "A" * 68
FIRST_LINE = f"mbridge-agent 1 {AGENT_ID} 4321 {KEY}\n".encode()
Scenario = Callable[[FakeEngine], Coroutine[Any, Any, None]]


def _run(tmp_path: Path, scenario: Scenario) -> None:
    async def all_of_it() -> None:
        async with asyncio.timeout(10), FakeEngine(tmp_path) as engine:
            engine.images |= {"agent:1": {"Id": "3"}, "shop:1": {"Id": "4"}}
            await scenario(engine)

    asyncio.run(all_of_it())


async def _target(engine: FakeEngine, name: str = "shop-api", labels: dict[str, str] | None = None, start: bool = True) -> Container:
    client = await Engine(engine.endpoint).connect()
    identity = await client.create(name, {"Image": "shop:1", "Hostname": "api-1", "Labels": labels or {}, "Env": ["FROM=spec"]})
    if start:
        await client.start(identity)
    return engine.containers[identity]


def _place(engine: FakeEngine, target: DockerTarget | ComposeTarget | None = None, **settings: Any) -> DockerPlace:
    return DockerPlace(target or DockerTarget("shop-api"), Engine(engine.endpoint), "abcdef", "me", agent_image="agent:1", **settings)


def _agent_says(engine: FakeEngine, *lines: bytes, ends: int | None = None) -> None:
    async def agent(container: Container) -> int:
        container.output += [(1, line) for line in lines]
        return await forever(container) if ends is None else ends

    engine.programs["agent:1"] = agent


def test_a_target_is_found_with_its_hostname(tmp_path: Path) -> None:
    async def scenario(engine: FakeEngine) -> None:
        target = await _target(engine)
        found = await _place(engine).find()
        assert (found.where, found.uid, found.hostname, found.host_network) == ("container shop-api", target.id, "api-1", False)

    _run(tmp_path, scenario)


@pytest.mark.parametrize(
    ("target", "message", "hint"),
    [
        (DockerTarget("shop-ap"), "no container is called 'shop-ap'", "did you mean docker/shop-api?"),
        (DockerTarget("off"), "container off is created, not running", "docker start off"),
        (DockerTarget("000"), "'000' is the beginning of several containers' ids: shop-api, off, mine", "use a name of these"),
        (ComposeTarget("shop", "wbe"), "compose project 'shop' has no service 'wbe'", "did you mean compose/shop/web?"),
        (ComposeTarget("shpo", "web"), "no compose project is called 'shpo'", "did you mean compose/shop/web?"),
    ],
)
def test_what_cannot_be_a_target_is_told_with_the_nearest_that_can(
    tmp_path: Path, target: DockerTarget | ComposeTarget, message: str, hint: str
) -> None:
    async def scenario(engine: FakeEngine) -> None:
        await _target(engine, labels={"com.docker.compose.project": "shop", "com.docker.compose.service": "web"})
        await _target(engine, "off", start=False)
        await _target(engine, "mine", {"mbridge.role": "app"})
        with pytest.raises(TargetNotFound) as told:
            await _place(engine, target).find()
        assert (told.value.message, told.value.hint) == (message, hint)

    _run(tmp_path, scenario)


def test_of_a_services_containers_a_running_one_is_taken(tmp_path: Path) -> None:
    async def scenario(engine: FakeEngine) -> None:
        labels = {"com.docker.compose.project": "shop", "com.docker.compose.service": "web"}
        await _target(engine, "web-1", {**labels, "com.docker.compose.container-number": "1"}, start=False)
        await _target(engine, "web-2", {**labels, "com.docker.compose.container-number": "2"})
        await _target(engine, "web-run", {**labels, "com.docker.compose.oneoff": "True"})
        assert (await _place(engine, ComposeTarget("shop", "web")).find()).where == "container web-2"

    _run(tmp_path, scenario)


def test_the_agents_first_line_is_its_identity_and_it_sits_in_the_targets_netns(tmp_path: Path) -> None:
    async def scenario(engine: FakeEngine) -> None:
        target = await _target(engine)
        _agent_says(engine, FIRST_LINE)
        place = _place(engine)
        agent = await place.start_agent("ssh-ed25519 MINE", lambda line: None)
        assert (agent.agent_id, agent.port, agent.host_key) == (AGENT_ID, 4321, KEY)
        container = engine.named("mbridge-abcdef-agent")
        assert container is not None
        assert container.body["HostConfig"]["NetworkMode"] == f"container:{target.id}"
        assert "ssh-ed25519 MINE" in container.body["Cmd"]
        await place.remove_agent()
        assert engine.named("mbridge-abcdef-agent") is None
        await place.remove_agent()

    _run(tmp_path, scenario)


@pytest.mark.parametrize("lines", [(), (b"Traceback:\nOSError: no space\n",), (b"mbridge-agent 2 x y z\n",)])
def test_an_agent_that_does_not_come_up_is_told_with_its_last_lines(tmp_path: Path, lines: tuple[bytes, ...]) -> None:
    async def scenario(engine: FakeEngine) -> None:
        await _target(engine)
        _agent_says(engine, *lines, ends=1)
        with pytest.raises(AgentFailed) as told:
            await _place(engine).start_agent("k", lambda line: None)
        last = b"".join(lines).decode().splitlines()
        assert told.value.hint == ("\n".join(last) or "docker logs mbridge-abcdef-agent")

    _run(tmp_path, scenario)


def test_a_second_host_key_in_the_agents_log_ends_the_session(tmp_path: Path) -> None:
    async def scenario(engine: FakeEngine) -> None:
        await _target(engine)
        _agent_says(engine, FIRST_LINE, b"= link\n", FIRST_LINE.replace(b"AAAA", b"BBBB"))
        place = _place(engine)
        await place.start_agent("k", lambda line: None)
        with pytest.raises(HostKeyMismatch, match="a second host key"):
            async for _ in place.watch():
                pass
        await place.remove_agent()

    _run(tmp_path, scenario)


def test_a_target_that_stops_is_gone_its_agent_ends_and_its_return_is_seen(tmp_path: Path) -> None:
    async def scenario(engine: FakeEngine) -> None:
        target = await _target(engine)
        _agent_says(engine, FIRST_LINE)
        place = _place(engine)
        await place.start_agent("k", lambda line: None)
        async with contextlib.aclosing(place.watch()) as changes:  # type: ignore[type-var]  # it is a generator
            first = asyncio.ensure_future(anext(changes))
            await engine.listened.wait()
            await asyncio.sleep(0.02)  # for the place to look whether it missed something
            target.signals.append("TERM")
            target.killed.set()
            change = await first
            assert (change.kind, change.why) == ("gone", "the target shop-api has stopped (exit code 143)")
            agent = engine.named("mbridge-abcdef-agent")
            assert agent is not None

            await agent.ended.wait()
            await Engine(engine.endpoint).start(target.id)
            assert (await anext(changes)).kind == "moved"
        await place.remove_agent()

    _run(tmp_path, scenario)


async def _listening(answer: bytes, port: int = 0) -> tuple[asyncio.Server, AgentIdentity]:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    return server, AgentIdentity(AGENT_ID, KEY, server.sockets[0].getsockname()[1], "mbridge-abcdef-agent", "127.0.0.1")


def test_a_direct_carrier_is_handed_on_past_the_agents_first_bytes(tmp_path: Path) -> None:
    async def scenario(engine: FakeEngine) -> None:
        server, agent = await _listening(preamble.encode(AGENT_ID) + b"frames")
        async with server:
            via, sock = await _place(engine).dial(agent, ())
            with sock:
                assert via == "direct"
                assert await asyncio.get_running_loop().sock_recv(sock, 100) == b"frames"

    _run(tmp_path, scenario)


async def _exec_carrier(engine: FakeEngine, place: DockerPlace) -> tuple[socket.socket, AgentIdentity, Callable[[], Any]]:
    """Dialled while nobody listens at the agent's address; the last is what starts to."""

    async def door(command: list[str], stdin: asyncio.StreamReader, say: Say) -> None:
        say(1, preamble.encode(AGENT_ID) + b"frames")
        await stdin.read()

    engine.commands["shop:1"] = door
    await _target(engine, "mbridge-abcdef-agent")
    server, agent = await _listening(preamble.encode(AGENT_ID))
    server.close()
    via, sock = await place.dial(agent, ())
    assert via == "exec"
    assert await asyncio.get_running_loop().sock_recv(sock, 100) == b"frames"
    return sock, agent, lambda: _listening(preamble.encode(AGENT_ID), agent.port)


def _trying_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIRST_S", "LAST_S", "PROVEN_S"):
        monkeypatch.setattr(way_back, name, 0.02)


def test_a_carrier_by_exec_makes_way_once_the_agent_can_be_dialled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _trying_soon(monkeypatch)

    async def scenario(engine: FakeEngine) -> None:
        place = _place(engine)
        sock, agent, listen = await _exec_carrier(engine, place)
        with sock:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await asyncio.get_running_loop().sock_recv(sock, 1)
            server, _ = await listen()
            async with server:
                assert await asyncio.get_running_loop().sock_recv(sock, 1) == b"", "it has ended"
                via, better = await place.dial(agent, ())
                better.close()
                assert via == "direct"

    _run(tmp_path, scenario)


def test_a_carrier_by_exec_that_was_asked_for_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _trying_soon(monkeypatch)

    async def scenario(engine: FakeEngine) -> None:
        sock, _, listen = await _exec_carrier(engine, _place(engine, via="exec"))
        server, _ = await listen()
        async with server:
            with sock, pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await asyncio.get_running_loop().sock_recv(sock, 1)

    _run(tmp_path, scenario)


@pytest.mark.parametrize(
    ("answer", "said"), [(preamble.encode("ff" * 8), "instead of"), (b"SSH-2.0-OpenSSH_9.2\r\n", "an ssh server"), (b"", "no answer")]
)
def test_a_stranger_at_the_agents_address_is_never_handed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes, said: str
) -> None:
    monkeypatch.setattr(direct, "GREETING_S", 0.1)

    async def scenario(engine: FakeEngine) -> None:
        await _target(engine, "mbridge-abcdef-agent")
        server, agent = await _listening(answer)
        async with server:
            with pytest.raises(LinkLost, match=said):
                await _place(engine, via="direct").dial(agent, ())

    _run(tmp_path, scenario)


def test_an_agent_whose_container_has_ended_is_to_be_made_anew(tmp_path: Path) -> None:
    async def scenario(engine: FakeEngine) -> None:
        agent = AgentIdentity(AGENT_ID, KEY, 1, "mbridge-abcdef-agent", "127.0.0.1")
        with pytest.raises(AgentFailed, match="has ended"):
            await _place(engine).dial(agent, ())

    _run(tmp_path, scenario)


def test_a_carrier_that_does_not_exist_here_is_told_with_those_that_do(tmp_path: Path) -> None:
    async def scenario(engine: FakeEngine) -> None:
        agent = AgentIdentity(AGENT_ID, KEY, 1, "a")
        with pytest.raises(BridgeError, match="there are direct and exec"):
            await _place(engine, via="port-forward").dial(agent, ())

    _run(tmp_path, scenario)


def test_the_environment_comes_from_a_reader_in_the_targets_pid_namespace(tmp_path: Path) -> None:
    async def scenario(engine: FakeEngine) -> None:
        target = await _target(engine)

        async def reader(container: Container) -> int:
            assert container.body["HostConfig"]["PidMode"] == f"container:{target.id}"
            assert container.body["HostConfig"]["LogConfig"] == {"Type": "none"}
            container.output += [(1, b"A=1\0"), (1, b"B=\xff\0")]
            return 0

        engine.programs["agent:1"] = reader
        assert await _place(engine).environ() == Environ(b"A=1\0B=\xff\0")
        assert len(engine.containers) == 1, "the reader is gone"

    _run(tmp_path, scenario)


def test_where_the_process_cannot_be_read_its_containers_settings_stand_in(tmp_path: Path) -> None:
    async def scenario(engine: FakeEngine) -> None:
        await _target(engine)

        async def reader(container: Container) -> int:
            container.output.append((2, b"mbridge: error: permission denied\n"))
            return 1

        engine.programs["agent:1"] = reader
        said = "the environment is the container's settings, not the process's own: mbridge: error: permission denied"
        assert await _place(engine).environ() == Environ(b"FROM=spec\0", said)

    _run(tmp_path, scenario)


@pytest.mark.parametrize("volume", [None, "mbridge-abcdef-hand"])
def test_an_agent_that_shares_the_bridges_engine_may_look_into_their_volume_and_no_other_has_one(
    tmp_path: Path, volume: str | None
) -> None:
    async def scenario(engine: FakeEngine) -> None:
        await _target(engine)
        _agent_says(engine, FIRST_LINE)
        await _place(engine, hand_volume=volume).start_agent(KEY, lambda _: None)
        agent = engine.named("mbridge-abcdef-agent")
        assert agent is not None
        mounts = agent.host["Mounts"]
        if volume is None:
            assert mounts == []
            return
        (mount,) = mounts
        assert (mount["Type"], mount["Source"], mount["Target"], mount["ReadOnly"]) == ("volume", volume, "/run/mbridge-hand", True)
        made = mount["VolumeOptions"]  # the agent is there first: the engine makes the volume, for `down` to find by these
        assert made == {"NoCopy": True, "Labels": {"mbridge.session": "abcdef", "mbridge.owner": "me"}}

    _run(tmp_path, scenario)

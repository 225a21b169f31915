"""Kubernetes as a place, against a small API server of the test's own: what it makes of answers that no real one gives on demand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from bridge.adapters.kube import launching
from bridge.adapters.kube.api import Unreachable
from bridge.cli.place_kube import KubePlace
from bridge.engine import way_back
from bridge.errors import HostKeyMismatch
from bridge.model.environ import Environ
from bridge.model.facts import AgentIdentity
from tests.unit.cli.fake_cluster import FakeCluster

Scenario = Callable[[FakeCluster], Coroutine[Any, Any, None]]


@pytest.fixture
def play(tmp_path: Path) -> Callable[[Scenario], None]:
    def run(scenario: Scenario) -> None:
        async def all_of_it() -> None:
            cluster = FakeCluster(tmp_path)
            async with asyncio.timeout(20), cluster.serving():
                await scenario(cluster)

        asyncio.run(all_of_it())

    return run


Play = Callable[[Scenario], None]


def test_an_api_server_that_goes_away_ends_the_question_for_the_environment_and_changes_nothing(play: Play) -> None:
    """Not the spec's environment instead, and no agent more in the pod: it may be back in a moment."""

    async def scenario(cluster: FakeCluster) -> None:
        cluster.refusals["exec"] = (503, "the server is starting")
        async with cluster.place() as place:
            with pytest.raises(Unreachable, match="the server is starting"):
                await place.environ()
        assert "GET exec" in cluster.asked
        assert not [one for one in cluster.asked if not one.startswith("GET ")], cluster.asked

    play(scenario)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way back is tried at once, and again."""
    for name in ("FIRST_S", "LAST_S", "PROVEN_S"):
        monkeypatch.setattr(way_back, name, 0.02)


NO_WEBSOCKET, FORBIDDEN = (
    (400, "no WebSocket here"),
    (403, 'pods "web-1" is forbidden: User "ana" cannot create resource "pods/portforward" in API group "" in the namespace "default"'),
)


@pytest.mark.usefixtures("soon")
def test_carriers_by_exec_make_way_once_port_forward_works(play: Play) -> None:
    async def scenario(cluster: FakeCluster) -> None:
        cluster.refusals["portforward"] = NO_WEBSOCKET
        async with cluster.place() as place:
            agent = await place.start_agent("key", lambda _: None)
            carriers = [await place.dial(agent, ()) for _ in range(2)]
            assert [via for via, _ in carriers] == ["exec", "exec"]
            del cluster.refusals["portforward"]
            for _, sock in carriers:
                with sock:
                    assert await asyncio.get_running_loop().sock_recv(sock, 1) == b"", "it has ended"
            made = cluster.count("GET portforward")
            for _ in range(2):
                via, sock = await place.dial(agent, ())
                sock.close()
                assert via == "port-forward"
            assert cluster.count("GET portforward") == made, "those of the try are used"

    play(scenario)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_K17_where_port_forward_is_answered_that_it_cannot_be_had_exec_is_tried(play: Play, status: int) -> None:
    """Of an agent that is used again too: it is no worse for that."""

    async def scenario(cluster: FakeCluster) -> None:
        cluster.refusals["portforward"] = (status, "not now")
        for reused in (False, True):
            async with cluster.place() as place:
                agent = await place.start_agent("key", lambda _: None)
                assert agent.reused is reused
                via, sock = await place.dial(agent, ())
                sock.close()
                assert via == "exec"

    play(scenario)


@pytest.mark.parametrize("first", [(503, "not now"), FORBIDDEN], ids=["neither now", "never, and not now"])
def test_K17_an_agent_that_cannot_be_reached_just_now_is_dialled_again_and_not_replaced(play: Play, first: tuple[int, str]) -> None:
    async def scenario(cluster: FakeCluster) -> None:
        async with cluster.place() as place:
            agent = await place.start_agent("key", lambda _: None)
            cluster.refusals |= {"portforward": first, "exec": (503, "not now")}
            with pytest.raises(Unreachable, match="not now"):
                await place.dial(agent, ())
        async with cluster.place("second") as place:
            with pytest.raises(Unreachable, match="not now"):
                await place.start_agent("key", lambda _: None)
            cluster.refusals.clear()
            assert (await place.start_agent("key", lambda _: None)).reused

    play(scenario)


def test_where_the_api_server_does_not_answer_no_other_way_to_it_is_tried(play: Play) -> None:
    async def scenario(cluster: FakeCluster) -> None:
        async with cluster.place() as place:
            agent = await place.start_agent("key", lambda _: None)
            cluster.away = True
            with pytest.raises(Unreachable, match="unable to connect"):
                await place.dial(agent, ())
            assert cluster.count("GET exec") == 0

    play(scenario)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize(("refusal", "wish"), [(NO_WEBSOCKET, {"via": "exec"}), (FORBIDDEN, {})], ids=["exec was asked for", "forbidden"])
def test_a_carrier_by_exec_stays_where_it_was_asked_for_or_no_other_is_allowed(
    play: Play, refusal: tuple[int, str], wish: dict[str, str]
) -> None:
    async def scenario(cluster: FakeCluster) -> None:
        cluster.refusals["portforward"] = refusal
        async with cluster.place(**wish) as place:
            agent = await place.start_agent("key", lambda _: None)
            via, sock = await place.dial(agent, ())
            assert via == "exec"
            tried = cluster.count("GET portforward")
            del cluster.refusals["portforward"]
            with sock, pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await asyncio.get_running_loop().sock_recv(sock, 1)
            assert cluster.count("GET portforward") == tried

    play(scenario)


def test_an_agent_that_was_not_the_one_it_was_taken_for_is_not_used_again(play: Play) -> None:
    async def scenario(cluster: FakeCluster) -> None:
        async with cluster.place() as place:
            await place.start_agent("key", lambda _: None)
            place.distrust_agent()
        async with cluster.place("second") as place:
            agent = await place.start_agent("key", lambda _: None)
            assert not agent.reused
            assert agent.name == "mbridge-second"

    play(scenario)


def _limited(cluster: FakeCluster) -> None:
    """200 MiB for the pod, of which the target holds 150."""
    cluster.pod["spec"]["containers"][0]["resources"] = {"limits": {"memory": "200Mi"}}
    cluster.commands["cat /sys/fs/cgroup/memory.stat"] = b"anon 157286400\n"


async def _starts(place: KubePlace, warning_of: int) -> AgentIdentity:
    """An agent, once the place warns of so many things."""
    changed = asyncio.Event()
    place.on_warnings = changed.set
    agent = await place.start_agent("key", lambda _: None)
    while len(place.warnings) != warning_of:
        await changed.wait()
        changed.clear()
    return agent


def test_a_pod_with_little_memory_left_is_told_of_when_its_agent_is_made_and_when_it_is_used_again(play: Play) -> None:
    async def scenario(cluster: FakeCluster) -> None:
        _limited(cluster)
        said = "pod web-1: 50 of its 200 MiB of memory are free, and the agent takes up to 82: raise the limit, or --agent pod"
        for reused in (False, True):
            async with cluster.place() as place:
                before = cluster.count("GET exec")
                assert (await _starts(place, 1)).reused is reused
                assert place.warnings == (said,)
                assert cluster.count("GET exec") - before == 1, "the agent that is used again is not asked"

    play(scenario)


def test_nothing_waits_for_the_look_at_the_memory(play: Play) -> None:
    async def scenario(cluster: FakeCluster) -> None:
        _limited(cluster)
        cluster.hold = asyncio.Event()
        for _ in range(2):
            async with cluster.place() as place:
                agent = await place.start_agent("key", lambda _: None)
                (await place.dial(agent, ()))[1].close()
                assert place.warnings == ()

    play(scenario)


def test_a_warning_ends_with_what_it_is_about(play: Play) -> None:
    async def scenario(cluster: FakeCluster) -> None:
        _limited(cluster)
        async with cluster.place() as place:
            await _starts(place, 1)
            cluster.commands["cat /sys/fs/cgroup/memory.stat"] = b"anon 1048576\n"
            await _starts(place, 0)

    play(scenario)


def test_where_nothing_may_read_the_process_its_specs_environment_stands_in(play: Play) -> None:
    async def scenario(cluster: FakeCluster) -> None:
        del cluster.commands["cat /proc/1/environ"]
        cluster.refusals["ephemeralcontainers"] = (403, "no agents here")
        async with cluster.place() as place:
            environ = await place.environ()
        assert environ.raw == b"FROM_SPEC=1\0"
        assert environ.warning is not None
        assert environ.warning.startswith("the environment is the pod spec's, not the process's own: ")

    play(scenario)


@pytest.mark.parametrize("cut", [False, True])
def test_K25_the_log_of_an_agent_made_anew_is_watched_too_past_an_api_server_that_goes_away(
    play: Play, monkeypatch: pytest.MonkeyPatch, cut: bool
) -> None:
    """Of a pod that shares its process namespace, where the target can write into it."""
    monkeypatch.setattr(launching, "_GUARD_AGAIN_S", 0.02)

    async def scenario(cluster: FakeCluster) -> None:
        cluster.pod["spec"]["shareProcessNamespace"] = True
        async with cluster.place(via="exec") as place:
            await place.start_agent("key", lambda _: None)
            cluster.pod["status"]["ephemeralContainerStatuses"][0]["state"] = {"terminated": {"exitCode": 1}}
            agent = await place.start_agent("key", lambda _: None)
            assert agent.name != "mbridge-abcdef"
            _, sock = await place.dial(agent, ())
            await cluster.until_asked("GET log", 4)  # each agent's first line, and each agent's log
            if cut:
                cluster.cut()
                await cluster.until_asked("GET log", 5)
            cluster.write()
            with sock:
                assert await asyncio.get_running_loop().sock_recv(sock, 1) == b"", "nothing may go on"
            with pytest.raises(HostKeyMismatch, match=f"the log of {agent.name} in pod web-1 holds a second host key"):
                await place.dial(agent, ())

    play(scenario)


def test_where_port_forward_reaches_a_stranger_the_agents_own_door_is_tried(play: Play) -> None:
    async def scenario(cluster: FakeCluster) -> None:
        async with cluster.place() as place:
            agent = await place.start_agent("key", lambda _: None)
            cluster.at_port = "ff" * 8
            via, sock = await place.dial(agent, ())
            sock.close()
            assert via == "exec"

    play(scenario)


BY_AGENT = "/opt/mbridge/bin/python -m bridge.agent environ --container 1"


@pytest.mark.parametrize(
    ("commands", "environ", "made"),
    [
        ({"cat /proc/1/environ": b"A=1\0"}, b"A=1\0", []),
        ({"cat /proc/1/environ": b""}, b"", []),
        ({BY_AGENT: b"B=2\0"}, b"B=2\0", ["Never"]),
    ],
    ids=["by cat", "an empty one", "by an agent"],
)
def test_the_environment_is_the_process_own_by_the_least_that_reads_it(
    play: Play, commands: dict[str, bytes], environ: bytes, made: list[str]
) -> None:
    async def scenario(cluster: FakeCluster) -> None:
        cluster.commands = commands
        async with cluster.place(agent_pull_policy="Never") as place:
            assert await place.environ() == Environ(environ)
        assert [one["imagePullPolicy"] for one in cluster.pod["spec"].get("ephemeralContainers", ())] == made

    play(scenario)

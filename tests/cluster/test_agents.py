"""K2, K3, K8, K9, K10, K14, K17, K18, K20, K26, K27: the agent beside the target, and the target's environment."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from bridge.adapters.kube import launching
from bridge.cli.place_kube import KubePlace
from bridge.errors import AgentFailed, BridgeError, LinkLost
from bridge.model.environ import parse_environ
from bridge.model.facts import AgentIdentity
from tests.cluster.kube import PUBLIC_KEY, Namespace, container, ended

Json = dict[str, Any]


def started(place: KubePlace, said: Callable[[str], None] = lambda _: None, key: str = PUBLIC_KEY) -> AgentIdentity:
    """An agent, and one carrier to it: `dial` has checked its first bytes."""

    async def start() -> AgentIdentity:
        async with ended(place):
            await place.find()
            agent = await place.start_agent(key, said)
            _, sock = await place.dial(agent, ())
            sock.close()
            return agent

    return asyncio.run(start())


def environ(namespace: Namespace, target: str, **wish: str) -> tuple[dict[bytes, bytes], str | None]:
    async def ask() -> tuple[dict[bytes, bytes], str | None]:
        async with ended(namespace.place(target, **wish)) as place:
            found = await place.environ()
            return parse_environ(found.raw), found.warning

    return asyncio.run(ask())


def test_K02_K03_an_agent_joins_the_pod_and_nothing_of_the_workload_changes(namespace: Namespace) -> None:
    namespace.workload()
    (before,) = namespace.pods("app=web")
    generation = namespace.get("deploy", "web")["metadata"]["generation"]
    agent = started(namespace.place("deploy/web"))
    (after,) = namespace.pods("app=web")
    assert agent.name == "mbridge-abcdef"
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert after["metadata"]["labels"] == before["metadata"]["labels"]
    assert after["status"]["containerStatuses"] == before["status"]["containerStatuses"], "no restart"
    assert namespace.get("deploy", "web")["metadata"]["generation"] == generation


def test_K02_a_helper_pod_serves_where_ephemeral_containers_are_not_wanted_and_goes_with_the_session(namespace: Namespace) -> None:
    namespace.workload()
    seen: list[Json] = []

    async def start() -> list[str]:
        async with ended(namespace.place("deploy/web", agent_kind="pod")) as place:
            await place.find()
            agent = await place.start_agent(PUBLIC_KEY, lambda _: None)
            (await place.dial(agent, ()))[1].close()
            seen.extend(namespace.pods("mbridge.session=abcdef"))
            return place.warnings

    warnings = asyncio.run(start())
    (helper,) = seen
    (target,) = namespace.pods("app=web")
    assert helper["metadata"]["ownerReferences"][0]["uid"] == target["metadata"]["uid"]
    assert helper["spec"]["activeDeadlineSeconds"] > 0
    assert any("not those of" in warning for warning in warnings), "its address is not the target's: told"
    namespace.until("its end", lambda: not namespace.pods("mbridge.session=abcdef"))


def test_K02_targetless_brings_an_agent_into_a_namespace_that_has_no_workload(namespace: Namespace) -> None:
    assert started(namespace.place("targetless")).name.startswith("mbridge-abcdef-")
    namespace.until("its end", lambda: not namespace.pods("mbridge.session=abcdef"))


def test_K14_a_second_start_uses_the_running_agent_again_in_a_quarter_of_a_second(namespace: Namespace) -> None:
    namespace.workload()
    first = started(namespace.place("deploy/web"))
    said: list[str] = []
    began = time.monotonic()
    second = started(namespace.place("deploy/web", session="ghijkl"), said.append)
    took = time.monotonic() - began
    assert second.reused
    assert (second.agent_id, second.name) == (first.agent_id, first.name)
    assert said == [f"using agent {first.name} again"]
    assert took < 1, "the issue's goal for a whole start with the agent reused"


def test_K27_another_user_does_not_meet_a_running_agent(namespace: Namespace) -> None:
    namespace.workload()
    first = started(namespace.place("deploy/web"))
    other_key = PUBLIC_KEY[:-4] + "AAAA"
    with_other_state = started(namespace.place("deploy/web", session="second", state=namespace.state / "other"))
    with_other_key = started(namespace.place("deploy/web", session="third"), key=other_key)
    assert len({first.agent_id, with_other_state.agent_id, with_other_key.agent_id}) == 3
    assert not with_other_state.reused
    assert not with_other_key.reused


async def has_ended(place: KubePlace, agent: AgentIdentity) -> None:
    """Until a dial says that the agent is gone, which the kubelet must have seen first."""
    async with asyncio.timeout(10):
        while True:
            try:
                (await place.dial(agent, ()))[1].close()
            except LinkLost:
                pass
            except AgentFailed as error:
                assert "has ended" in error.message  # noqa: PT017  the loop ends by it
                return
            await asyncio.sleep(0.1)


def test_K12_an_agent_that_was_killed_is_made_anew_under_another_name(namespace: Namespace) -> None:
    namespace.workload()

    async def run() -> tuple[AgentIdentity, AgentIdentity]:
        async with ended(namespace.place("deploy/web")) as place:
            await place.find()
            first = await place.start_agent(PUBLIC_KEY, lambda _: None)
            (pod,) = namespace.pods("app=web")
            namespace.kubectl("exec", pod["metadata"]["name"], "-c", first.name, "--", "/opt/mbridge/bin/python", "-c",
                              "import os; os.kill(1, 15)")  # fmt: skip
            await has_ended(place, first)
            second = await place.start_agent(PUBLIC_KEY, lambda _: None)
            (await place.dial(second, ()))[1].close()
            return first, second

    first, second = asyncio.run(run())
    assert first.agent_id != second.agent_id
    assert first.name != second.name


@pytest.mark.parametrize("via", ["port-forward", "exec", "direct"])
def test_K17_each_carrier_reaches_the_agent(namespace: Namespace, via: str) -> None:
    if via == "direct" and not namespace.cluster.own:
        pytest.skip("lacks(a route to the pods)")
    namespace.workload()

    async def run() -> tuple[str, bytes]:
        async with ended(namespace.place("deploy/web", via=via)) as place:
            await place.find()
            agent = await place.start_agent(PUBLIC_KEY, lambda _: None)
            used, sock = await place.dial(agent, ())
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(sock, b"\xff" * 64)  # no frame of the stream protocol: the agent hangs up
            async with asyncio.timeout(5):
                answer = b""
                while piece := await loop.sock_recv(sock, 4096):
                    answer += piece
            sock.close()
            return used, answer

    used, answer = asyncio.run(run())
    assert used == via
    assert not answer.startswith(b"MBR1"), "the greeting was read before the carrier was handed on"


def test_K17_exec_takes_over_where_port_forward_has_failed(namespace: Namespace) -> None:
    namespace.workload()

    async def run() -> str:
        async with ended(namespace.place("deploy/web")) as place:
            await place.find()
            agent = await place.start_agent(PUBLIC_KEY, lambda _: None)
            used, sock = await place.dial(agent, ("port-forward",))
            sock.close()
            return used

    assert asyncio.run(run()) == "exec"


def failed(namespace: Namespace, target: str = "deploy/web", **wish: Any) -> BridgeError:
    began = time.monotonic()
    with pytest.raises(AgentFailed) as caught:
        started(namespace.place(target, **wish))
    assert time.monotonic() - began < 5, "the event, not a time-out"
    return caught.value


@pytest.mark.parametrize("kind", ["ephemeral", "pod"])
def test_K10_an_image_that_cannot_be_pulled_is_told_in_the_nodes_words_within_five_seconds(namespace: Namespace, kind: str) -> None:
    namespace.workload()
    error = failed(namespace, agent_image="127.0.0.1:1/nothing:1", agent_kind=kind)
    assert "connect: connection refused" in error.message, "the node's own words"
    assert "127.0.0.1:1/nothing:1" in error.message
    assert error.hint is not None
    assert "--agent-image" in error.hint
    if kind == "ephemeral":
        assert "record of container" in error.hint
    else:
        namespace.until("nothing left", lambda: not namespace.pods("mbridge.session=abcdef"))


def test_K10_a_helper_pod_that_cannot_start_goes_at_once_and_not_with_its_session(namespace: Namespace) -> None:
    """A session that makes its agent anew would leave one with each try."""

    async def fail() -> None:
        async with ended(namespace.place("targetless", agent_image="127.0.0.1:1/nothing:1")) as place:
            with pytest.raises(AgentFailed):
                await place.start_agent(PUBLIC_KEY, lambda _: None)
            namespace.until("its end", lambda: not namespace.pods("mbridge.session=abcdef"))

    asyncio.run(fail())


def test_K10_what_befell_an_earlier_agent_of_the_pod_does_not_end_the_next(namespace: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its events stay for an hour, its container for ever."""
    namespace.workload()
    failed(namespace, agent_image="127.0.0.1:1/nothing:1")
    monkeypatch.setattr(launching, "_EVENTS_EACH_S", 0.05)  # they are read before the container runs
    assert started(namespace.place("deploy/web")).name != "mbridge-abcdef", "in the same pod"


@pytest.mark.parametrize("level", ["restricted", "baseline", "privileged"])
def test_K08_the_network_agent_passes_each_pod_security_level(namespace: Namespace, level: str) -> None:
    strict: Json = {"runAsUser": 1000, "runAsNonRoot": True, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]},
                    "seccompProfile": {"type": "RuntimeDefault"}}  # fmt: skip
    namespace.kubectl("label", "namespace", namespace.name, f"pod-security.kubernetes.io/enforce={level}")
    namespace.workload(pod={"containers": [container(securityContext=strict if level == "restricted" else {})]})
    assert started(namespace.place("deploy/web")).agent_id
    assert started(namespace.place("targetless", session="second")).agent_id


def test_K09_a_quota_that_refuses_the_helper_pod_is_told_in_its_own_words(namespace: Namespace) -> None:
    namespace.apply({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}})
    namespace.until("the quota", lambda: namespace.get("quota", "none").get("status", {}).get("hard"))
    error = failed(namespace, "targetless")
    assert "exceeded quota: none" in error.message
    assert "restricted" in error.message, "the rung that was tried"


def test_K09_a_limit_range_that_refuses_the_helper_pod_is_told_in_its_own_words(namespace: Namespace) -> None:
    limits = [{"type": "Container", "max": {"memory": "32Mi"}}]
    namespace.apply({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "small"}, "spec": {"limits": limits}})
    error = failed(namespace, "targetless")
    assert "maximum memory usage per Container is 32Mi" in error.message


def test_K18_the_named_containers_environment_is_the_process_own(namespace: Namespace) -> None:
    namespace.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"key": "geheim"}})
    secret = {"name": "FROM_SECRET", "valueFrom": {"secretKeyRef": {"name": "s", "key": "key"}}}
    app, side = container(), container("side", command=["sh", "-c", "export LATE=yes; exec sleep 1000"])
    side["env"] = [secret]
    namespace.workload(pod={"containers": [app, side]})
    of_app, _ = environ(namespace, "deploy/web", container="app")
    assert of_app[b"FROM_SPEC"] == b"a\nb"
    assert of_app[b"FROM_IMAGE"] == b"image"
    assert b"FROM_SECRET" not in of_app
    of_side, _ = environ(namespace, "deploy/web", container="side")
    assert of_side[b"FROM_SECRET"] == b"geheim", "a reference is resolved"
    assert of_side[b"LATE"] == b"yes", "what the process itself was started with, beyond its spec"


def test_K20_a_target_without_cat_or_shell_gives_its_environment_through_an_agent(namespace: Namespace) -> None:
    """The image's own tools are hidden: PATH leads nowhere."""
    bare = container(command=["/usr/bin/python3", "-u", "/target.py"])
    bare["env"] = [{"name": "PATH", "value": "/nowhere"}, {"name": "BARE", "value": "yes"}]
    namespace.workload(pod={"containers": [bare]})
    found, warning = environ(namespace, "deploy/web")
    assert found[b"BARE"] == b"yes"
    assert found[b"FROM_IMAGE"] == b"image", "the image's part proves that it is not the spec's"
    assert warning is None
    (pod,) = namespace.pods("app=web")
    agent = next(c["name"] for c in pod["spec"]["ephemeralContainers"])
    assert "BARE" not in namespace.kubectl("logs", pod["metadata"]["name"], "-c", agent), "values never reach a log"


def test_K26_with_a_shared_process_namespace_the_right_process_is_read(namespace: Namespace) -> None:
    """Not the pod's first, not another container's, and not one that the container's own has started."""
    app, side = container(), container("side", command=["sh", "-c", "WHO=child sleep 1000 & exec sleep 1000"])
    app["env"], side["env"] = [{"name": "WHO", "value": "app"}], [{"name": "WHO", "value": "side"}]
    namespace.workload(pod={"shareProcessNamespace": True, "containers": [app, side]})
    for name in ("app", "side"):
        assert environ(namespace, "deploy/web", container=name)[0][b"WHO"] == name.encode()


def test_K21_a_start_asks_the_api_server_twelve_times_at_most(namespace: Namespace) -> None:
    namespace.workload()
    counts: list[int] = []

    async def run(session: str) -> None:
        place = namespace.place("deploy/web", session=session)
        async with ended(place):
            await place.find()
            agent, _ = await asyncio.gather(place.start_agent(PUBLIC_KEY, lambda _: None), place.environ())
            carriers: list[socket.socket] = [(await place.dial(agent, ()))[1] for _ in range(2)]
            counts.append(place.api.count)
            for sock in carriers:
                sock.close()

    asyncio.run(run("first"))
    asyncio.run(run("second"))
    assert counts[0] <= 12
    assert counts[1] <= counts[0]


def bare(**context: Any) -> Json:
    """A container in whose image no tool is found by name, as in a distroless one."""
    made = container(command=["/usr/bin/python3", "-u", "/target.py"], securityContext=context)
    made["env"] = [{"name": "PATH", "value": "/nowhere"}, {"name": "BARE", "value": "yes"}]
    return made


@pytest.mark.parametrize(
    ("level", "context"),
    [
        ("restricted", {"runAsUser": 1000, "runAsNonRoot": True, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]},
                        "seccompProfile": {"type": "RuntimeDefault"}}),
        ("baseline", {"runAsUser": 0}),
    ],
)  # fmt: skip
def test_K08_K24_the_environment_comes_on_the_lowest_rung_that_may_read_it(namespace: Namespace, level: str, context: Json) -> None:
    namespace.kubectl("label", "namespace", namespace.name, f"pod-security.kubernetes.io/enforce={level}")
    namespace.workload(pod={"containers": [bare(**context)]})
    found, warning = environ(namespace, "deploy/web")
    assert (found[b"BARE"], found[b"FROM_IMAGE"]) == (b"yes", b"image")
    assert warning is None


def test_K21_an_idle_session_asks_the_api_server_nothing_for_a_quarter_of_a_minute(namespace: Namespace) -> None:
    namespace.workload()

    async def run() -> int:
        async with ended(namespace.place("deploy/web")) as place, asyncio.TaskGroup() as group:
            await place.find()
            agent = await place.start_agent(PUBLIC_KEY, lambda _: None)
            _, sock = await place.dial(agent, ())

            async def follow() -> None:
                async for change in place.watch():
                    raise AssertionError(f"nothing has changed: {change}")

            following = group.create_task(follow(), name="follow")
            await asyncio.sleep(1)
            before = place.api.count
            await asyncio.sleep(15)  # what is counted is requests in a time
            following.cancel()
            sock.close()
            return place.api.count - before

    assert asyncio.run(run()) == 0

"""Which pod and which container is meant, from the API's JSON alone."""

from __future__ import annotations

from typing import Any

import pytest

from bridge.adapters.kube.targets import choose_container, choose_pod, container_state, is_ready, label_query, pod_state
from bridge.errors import TargetNotFound

Json = dict[str, Any]


def pod(
    name: str = "web-1", *, ready: bool = True, created: str = "2026-01-01", containers: tuple[str, ...] = ("app",), **more: Any
) -> Json:
    statuses = [{"name": one, "state": {"running": {}} if ready else {"waiting": {"reason": "CrashLoopBackOff"}}} for one in containers]
    value: Json = {
        "metadata": {"name": name, "uid": f"uid-{name}", "creationTimestamp": created},
        "spec": {"containers": [{"name": one} for one in containers]},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": str(ready)}], "containerStatuses": statuses},
    }
    for key, part in more.items():
        value[key] |= part
    return value


def test_ready_means_running_and_ready_and_not_being_deleted() -> None:
    assert is_ready(pod())
    assert not is_ready(pod(ready=False))
    assert not is_ready(pod(status={"phase": "Pending"}))
    assert not is_ready(pod(metadata={"deletionTimestamp": "2026"}))


@pytest.mark.parametrize(
    ("one", "state"),
    [
        (pod(), "Running"),
        (pod(ready=False), "CrashLoopBackOff"),
        (pod(metadata={"deletionTimestamp": "2026"}), "Terminating"),
        (pod(status={"conditions": []}), "Running, not ready"),
        (pod(status={"phase": "Failed", "reason": "Evicted"}), "Evicted"),
        (
            pod(status={"phase": "Pending", "containerStatuses": [], "conditions": [
                {"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}]}),
            "Pending: 0/3 nodes are available",
        ),
    ],
)  # fmt: skip
def test_a_pods_state_is_kubectls_word_with_its_reason(one: Json, state: str) -> None:
    assert pod_state(one) == state


def test_the_newest_ready_pod_is_taken_for_a_rollout_leaves_it() -> None:
    pods = [pod("old", created="2026-01-01"), pod("new", created="2026-01-02"), pod("starting", created="2026-01-03", ready=False)]
    assert choose_pod(pods, "deploy/web", None, lambda _: False).name == "new"


def test_a_pod_that_holds_our_agent_already_is_preferred() -> None:
    pods = [pod("old"), pod("new", created="2026-01-02")]
    assert choose_pod(pods, "deploy/web", None, lambda one: one["metadata"]["name"] == "old").name == "old"


def test_without_a_ready_pod_each_is_told_with_its_state() -> None:
    with pytest.raises(TargetNotFound, match=r"no pod of deploy/web is ready: web-1 \(CrashLoopBackOff\)"):
        choose_pod([pod(ready=False)], "deploy/web", None, lambda _: False)


def test_without_any_pod_it_is_said_so() -> None:
    with pytest.raises(TargetNotFound, match="deploy/web has no pods"):
        choose_pod([], "deploy/web", None, lambda _: False)


def test_a_windows_pod_is_refused_by_name() -> None:
    with pytest.raises(TargetNotFound, match="needs a Linux node"):
        choose_pod([pod(spec={"os": {"name": "windows"}})], "deploy/web", None, lambda _: False)


def test_the_only_container_is_meant_and_a_sidecar_counts_as_one() -> None:
    assert choose_container(pod(), None) == "app"
    beside = pod(spec={"initContainers": [{"name": "first"}, {"name": "proxy", "restartPolicy": "Always"}]})
    with pytest.raises(TargetNotFound, match="has 2 containers and none was named") as caught:
        choose_container(beside, None)
    assert caught.value.hint == "-c app"
    assert choose_container(beside, "proxy") == "proxy"
    with pytest.raises(TargetNotFound, match="no container 'first'"):
        choose_container(beside, "first")


def test_kubectls_default_container_is_meant_where_none_is_named() -> None:
    two = pod(containers=("proxy", "app"), metadata={"annotations": {"kubectl.kubernetes.io/default-container": "app"}})
    assert choose_container(two, None) == "app"


def test_a_container_that_does_not_run_cannot_be_a_target_though_its_pod_is_ready() -> None:
    odd = pod()
    odd["status"]["containerStatuses"][0]["state"] = {"terminated": {"reason": "Completed", "exitCode": 0}}
    assert container_state(odd, "app") == "Completed"
    with pytest.raises(TargetNotFound, match="container 'app' of pod web-1 is not running: Completed"):
        choose_pod([odd], "pod/web-1", None, lambda _: False)


def test_a_selector_becomes_the_apis_query() -> None:
    expressions = [{"key": "tier", "operator": "In", "values": ["a", "b"]}, {"key": "old", "operator": "DoesNotExist"}]
    assert label_query({"matchLabels": {"app": "web"}, "matchExpressions": expressions}) == "app=web,tier in (a,b),!old"
    assert label_query({"app": "web"}) == "app=web", "a service's selector is a plain map"

"""K1, K19: what can be named as a target, and what is said when it cannot serve."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from bridge.adapters.kube import kubeconfig
from bridge.adapters.kube.api import Api
from bridge.cli.kube_doctor import targets
from bridge.errors import ClusterError, TargetNotFound
from bridge.model.facts import TargetFound
from tests.cluster.kube import Namespace, container, ended, pod_spec, service, workload


def found(namespace: Namespace, target: str, **wish: str) -> TargetFound:
    async def look() -> TargetFound:
        async with ended(namespace.place(target, **wish)) as place:
            return await place.find()

    return asyncio.run(look())


def refused(namespace: Namespace, target: str, **wish: str) -> TargetNotFound:
    with pytest.raises(TargetNotFound) as caught:
        found(namespace, target, **wish)
    return caught.value


@pytest.mark.parametrize(("kind", "target"), [("Deployment", "deploy"), ("StatefulSet", "sts"), ("DaemonSet", "ds"), ("Job", "job")])
def test_K01_a_workload_stands_for_a_ready_pod_of_it(namespace: Namespace, kind: str, target: str) -> None:
    namespace.workload(kind)
    (pod,) = namespace.pods("app=web")
    looked_up = found(namespace, f"{target}/web")
    assert pod["metadata"]["name"] in looked_up.where
    assert looked_up.uid == pod["metadata"]["uid"]


def test_K01_replica_set_service_and_pod_name_the_same_pod(namespace: Namespace) -> None:
    namespace.workload()
    namespace.apply(service("web"))
    (pod,) = namespace.pods("app=web")
    (replica_set,) = namespace.get("rs")["items"]
    names = ("svc/web", f"rs/{replica_set['metadata']['name']}", f"pod/{pod['metadata']['name']}")
    assert {found(namespace, name).uid for name in names} == {pod["metadata"]["uid"]}


def test_K01_a_cronjob_is_a_target_while_a_run_is_under_way(namespace: Namespace) -> None:
    job = {"template": {"spec": pod_spec(restartPolicy="Never")}}
    body = {"schedule": "0 0 1 1 *", "jobTemplate": {"spec": job}}
    namespace.apply({"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "tick"}, "spec": body})
    assert "no run under way" in refused(namespace, "cronjob/tick").message
    namespace.kubectl("create", "job", "--from=cronjob/tick", "tick-now")
    namespace.ready("job-name=tick-now")
    assert "tick-now" in found(namespace, "cronjob/tick").where


def test_K01_what_is_not_ready_is_told_with_each_pod_and_its_state(namespace: Namespace) -> None:
    broken = {"containers": [container(command=["false"])]}
    namespace.apply(workload("Deployment", "broken", broken, replicas=2))
    namespace.until("two pods", lambda: len(namespace.pods("app=broken")) == 2)
    states = [rf"{pod['metadata']['name']} \((CrashLoopBackOff|Error)\)" for pod in namespace.pods("app=broken")]

    def told() -> bool:
        said = refused(namespace, "deploy/broken").message
        return said.startswith("no pod of deploy/broken is ready: ") and all(re.search(state, said) for state in states)

    namespace.until("the crash of both", told)


def test_K01_a_name_that_does_not_exist_suggests_the_nearest(namespace: Namespace) -> None:
    namespace.workload()
    error = refused(namespace, "deploy/wbe")
    assert error.message == f"deploy/wbe not found in namespace '{namespace.name}'"
    assert error.hint == "did you mean deploy/web"


def test_K01_two_containers_and_none_named_lists_both_with_their_states(namespace: Namespace) -> None:
    namespace.workload(pod={"containers": [container(), container("side", command=["sleep", "1000"])]})
    error = refused(namespace, "deploy/web")
    assert "app (running)" in error.message
    assert "side (running)" in error.message
    assert found(namespace, "deploy/web", container="side").where
    assert "no container 'sid'" in refused(namespace, "deploy/web", container="sid").message


def test_K01_a_service_outside_of_the_cluster_is_refused_by_its_name(namespace: Namespace) -> None:
    namespace.apply(service("far", type="ExternalName", externalName="db.example.com"))
    assert "db.example.com" in refused(namespace, "svc/far").message


def test_K01_a_deployment_scaled_to_zero_has_no_pods(namespace: Namespace) -> None:
    namespace.apply(workload("Deployment", "web", replicas=0))
    assert "has no pods" in refused(namespace, "deploy/web").message


def test_K01_ls_lists_workloads_and_why_one_cannot_be_a_target(namespace: Namespace) -> None:
    namespace.workload()
    namespace.apply(workload("Deployment", "none", replicas=0), service("far", type="ExternalName", externalName="db.example.com"))

    async def look() -> dict[str, str | None]:
        async with Api(kubeconfig.load(str(namespace.cluster.kubeconfig), None, {}, Path("/"))) as api:
            return {one.target: one.why_not for one in await targets(api, namespace.name, None)}

    listed = asyncio.run(look())
    assert listed["deploy/web"] is None
    assert listed["deploy/none"] == "no ready pod"
    assert listed["svc/far"] == "no selector"
    assert not any(name.startswith("rs/") for name in listed), "a Deployment's ReplicaSet is listed as the Deployment"


def test_K19_a_pod_on_its_nodes_network_needs_a_yes(namespace: Namespace) -> None:
    namespace.workload(pod={"hostNetwork": True, "containers": [container(command=["sleep", "1000"])]})
    assert found(namespace, "deploy/web").host_network

    async def start() -> None:
        async with ended(namespace.place("deploy/web")) as place:
            await place.find()
            await place.start_agent("ssh-ed25519 AAAA", lambda _: None)

    with pytest.raises(ClusterError, match="node's own network") as caught:
        asyncio.run(start())
    assert caught.value.hint == "--yes-host-network"


def test_K19_a_sidecar_is_a_container_that_can_be_named(namespace: Namespace) -> None:
    side = container("side", command=["sleep", "1000"], restartPolicy="Always")
    first = container("first", command=["true"])
    namespace.workload(pod={"initContainers": [first, side]})
    assert found(namespace, "deploy/web", container="side").where
    assert "no container 'first'" in refused(namespace, "deploy/web", container="first").message

"""K1: `rollout/x`, by its CRD alone. Argo's controller is not there: the tests make what it would have made.

The CRD is the cluster's, so it is here for this file's tests only; where a cluster has Argo already, that one is used and stays.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.errors import TargetNotFound
from bridge.model.rights import needed
from bridge.model.target import parse_target
from tests.cluster.kube import TARGET_IMAGE, Cluster, Json, Namespace, bridged, service, workload
from tests.cluster.test_rights import user_with
from tests.cluster.test_run import ip_of
from tests.cluster.test_targets import found
from tests.lab.boxes import eventually

NAME = "rollouts.argoproj.io"
_ANY: Json = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
CRD: Json = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": NAME},
    "spec": {
        "group": "argoproj.io",
        "scope": "Namespaced",
        "names": {"kind": "Rollout", "listKind": "RolloutList", "plural": "rollouts", "singular": "rollout", "shortNames": ["ro"]},
        "versions": [{
            "name": "v1alpha1", "served": True, "storage": True, "subresources": {"status": {}},
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": _ANY, "status": _ANY}}},
        }],
    },
}  # fmt: skip


def installed(cluster: Cluster) -> bool:
    return bool(cluster.kubectl("get", "crd", NAME, "--ignore-not-found", "-o", "name"))


@pytest.fixture
def argo(cluster: Cluster, namespace: Namespace) -> Iterator[None]:
    if installed(cluster):
        yield
        return
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(CRD))
    try:
        cluster.kubectl("wait", "--for=condition=Established", f"crd/{NAME}", "--timeout=20s")
        namespace.until("the API", lambda: "Rollout" in cluster.kubectl("api-resources", "--api-group=argoproj.io", check=False))
        yield
    finally:
        cluster.kubectl("delete", "crd", NAME, "--timeout=30s")


def rollout(namespace: Namespace, spec: Json, status: Json) -> None:
    """A Rollout, and a ReplicaSet of its own with one pod, as Argo's controller makes it; waits until that is ready."""
    body: Json = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout", "metadata": {"name": "web"}, "spec": {"replicas": 1, **spec}}
    namespace.apply(body)
    made = namespace.get("rollout", "web")
    namespace.kubectl("patch", "rollout", "web", "--subresource=status", "--type=merge", "-p", json.dumps({"status": status}))
    replicas(namespace, "web-5f7c", made["metadata"]["uid"], "5f7c")
    namespace.ready("rollouts-pod-template-hash=5f7c")


def replicas(namespace: Namespace, name: str, owner: str, template: str) -> None:
    """One ReplicaSet of the Rollout; its pods bear the hash of their template, as Argo's do."""
    one = workload("ReplicaSet", "web")
    one["metadata"] = {"name": name, "ownerReferences": [
        {"apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout", "name": "web", "uid": owner, "controller": True},
    ]}  # fmt: skip
    for labels in (one["spec"]["selector"]["matchLabels"], one["spec"]["template"]["metadata"]["labels"]):
        labels["rollouts-pod-template-hash"] = template
    namespace.apply(one)


SELECTED: Json = {"selector": {"matchLabels": {"app": "web"}}, "template": workload("Deployment", "web")["spec"]["template"]}
READY: Json = {"replicas": 1, "readyReplicas": 1}


def test_K01_a_rollouts_pod_is_found_and_an_app_runs_in_it(namespace: Namespace, argo: None, tmp_path: Path) -> None:
    """As a user who has the Role that doctor prints for it, and no other right."""
    namespace.workload("Deployment", "peer")
    namespace.apply(service("peer"))
    rollout(namespace, SELECTED, READY)
    (pod,) = namespace.pods("app=web")
    kubeconfig = user_with(namespace, needed(parse_target("rollout/web")), tmp_path)
    program = "import socket; s = socket.create_connection(('peer', 8080)); print(s.makefile().readline(), end='')"
    options = ("--kubeconfig", kubeconfig, "-n", namespace.name)
    done = namespace.cli.run("run", "rollout/web", *options, TARGET_IMAGE, "python3", "-c", program)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["host"].startswith("peer-")
    assert answer["peer"] == ip_of(pod)


def test_K01_a_rollout_that_refers_to_a_deployments_template_is_found_by_its_status(namespace: Namespace, argo: None) -> None:
    """With `workloadRef` the selector is not in the spec: Argo writes it into the status alone."""
    reference = {"workloadRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}}
    rollout(namespace, reference, {**READY, "selector": "app=web"})
    (pod,) = namespace.pods("app=web")
    assert found(namespace, "rollout/web").uid == pod["metadata"]["uid"]


def test_K11_a_rollouts_next_replica_set_is_followed(namespace: Namespace, argo: None) -> None:
    namespace.workload("Deployment", "peer")
    namespace.apply(service("peer"))
    rollout(namespace, SELECTED, READY)
    (before,) = namespace.pods("app=web")
    with bridged(namespace, "rollout/web") as app:
        assert app.asks("peer")["peer"] == ip_of(before)
        replicas(namespace, "web-6a8d", namespace.get("rollout", "web")["metadata"]["uid"], "6a8d")
        namespace.ready("rollouts-pod-template-hash=6a8d")
        (after,) = namespace.pods("rollouts-pod-template-hash=6a8d")
        namespace.kubectl("scale", "rs", "web-5f7c", "--replicas=0")

        def seen() -> str | None:
            with contextlib.suppress(AssertionError):  # a connection of the old pod's, cut with it
                return str(app.asks("peer")["peer"])
            return None

        eventually(seen, until=lambda peer: peer == ip_of(after), limit_s=40)


def test_K01_ls_lists_rollouts_and_not_their_replica_sets(namespace: Namespace, argo: None) -> None:
    rollout(namespace, SELECTED, READY)
    options = ("-n", namespace.name, "--kubeconfig", str(namespace.cluster.kubeconfig), "--json")
    done = namespace.cli.run("ls", "rollout", *options)
    assert done.returncode == 0, done.stderr
    (listed,) = json.loads(done.stdout)
    assert listed == {"target": "rollout/web", "what": TARGET_IMAGE, "state": "1/1 ready", "why_not": None}
    done = namespace.cli.run("ls", *options)
    targets = [one["target"] for one in json.loads(done.stdout)]
    assert "rollout/web" in targets
    assert "rs/web-5f7c" not in targets


def test_K01_a_rollout_that_does_not_exist_suggests_the_nearest(namespace: Namespace, argo: None) -> None:
    namespace.apply({"apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout", "metadata": {"name": "web"}, "spec": SELECTED})
    with pytest.raises(TargetNotFound) as caught:
        found(namespace, "rollout/wbe")
    assert caught.value.hint == "did you mean rollout/web"


def test_K01_without_its_crd_a_rollout_is_no_target_and_the_message_says_why(namespace: Namespace) -> None:
    if installed(namespace.cluster):
        pytest.skip("lacks(a cluster without Argo)")
    namespace.until("no API", lambda: "rollouts" not in namespace.cluster.kubectl("api-resources", "--no-headers", check=False))
    done = namespace.cli.run("run", "rollout/web", "-n", namespace.name, TARGET_IMAGE, "true")
    assert done.returncode == 125
    assert "mbridge: error: the cluster knows no rollouts: Argo's CRD rollouts.argoproj.io is not installed" in done.stderr
    assert f"mbridge: hint: mbridge ls -n {namespace.name}" in done.stderr

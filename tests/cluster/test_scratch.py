"""K20: a target whose image is FROM scratch: one static program, nothing that could be executed to look at it."""

from __future__ import annotations

import json

import docker
import pytest

from tests.cluster.kube import HERE, TARGET_IMAGE, Cluster, Json, Namespace, container, service
from tests.cluster.test_run import ip_of

IMAGE = "mbridge-test-scratch:1"
STRICT: Json = {"runAsUser": 4321, "runAsNonRoot": True, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]},
                "readOnlyRootFilesystem": True, "seccompProfile": {"type": "RuntimeDefault"}}  # fmt: skip


@pytest.fixture(scope="module")
def scratch(cluster: Cluster) -> None:
    client = docker.from_env(timeout=300)
    client.images.build(path=str(HERE / "scratch"), tag=IMAGE)
    cluster.load(IMAGE)
    client.close()


@pytest.mark.parametrize(("level", "context"), [("baseline", {}), ("restricted", STRICT)], ids=["root", "restricted"])
def test_K20_a_program_runs_as_if_in_a_pod_from_scratch(namespace: Namespace, scratch: None, level: str, context: Json) -> None:
    namespace.workload("Deployment", "peer")
    namespace.apply(service("peer"))
    namespace.kubectl("label", "namespace", namespace.name, f"pod-security.kubernetes.io/enforce={level}")
    namespace.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"key": "geheim"}})
    still = container(image=IMAGE, securityContext=context)
    still["env"] += [{"name": "FROM_SECRET", "valueFrom": {"secretKeyRef": {"name": "s", "key": "key"}}}]
    namespace.workload("Deployment", "still", {"containers": [still]})
    (pod,), (peer,) = namespace.pods("app=still"), namespace.pods("app=peer")
    assert not namespace.kubectl("exec", pod["metadata"]["name"], "--", "cat", "/proc/1/environ", check=False), "there is no cat"
    program = f"""
import json, os, socket
with socket.create_connection(("peer.{namespace.name}", 8080), timeout=10) as sock:
    hello, own = json.loads(sock.makefile().readline()), sock.getsockname()[0]
names = ("FROM_IMAGE", "FROM_SPEC", "FROM_SECRET")
print(json.dumps([hello["host"], hello["peer"], own, socket.gethostname(), *(os.environ.get(name) for name in names)]))"""
    done = namespace.cli.run("run", "deploy/still", "-n", namespace.name, TARGET_IMAGE, "python3", "-c", program)
    assert done.returncode == 0, done.stderr
    host, seen, own, hostname, *environ = json.loads(done.stdout)
    assert host == peer["metadata"]["name"]
    assert seen == own == ip_of(pod)
    assert hostname == pod["metadata"]["name"]
    assert environ == ["scratch", "a\nb", "geheim"], "the image's and the secret's part are the process's own, not the spec's"
    assert "warning" not in done.stderr
    after = namespace.get("pod", pod["metadata"]["name"])
    assert after["status"]["containerStatuses"] == pod["status"]["containerStatuses"]

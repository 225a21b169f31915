"""A cluster for the whole run, a namespace for each test, and a workload to bridge to.

The cluster is tests/cluster/cluster's own, started if it is not up and ended only if it was started here. Where there is one
already, MBRIDGE_TEST_KUBECONFIG names its kubeconfig and MBRIDGE_TEST_LOAD the command that brings it an image of the local
engine ("kind load docker-image"); tests that stop a component of the node are skipped there.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
TOOL = HERE / "cluster"
TARGET_IMAGE = "mbridge-test-target:1"
_NEEDS = ("containerd", "ctr", "runc", "openssl", "iptables", "gcc", "docker", "nsenter")
Json = dict[str, Any]


@dataclass(frozen=True)
class Cluster:
    """kubectl, images and, on our own cluster, its components."""

    kubeconfig: Path
    kubectl_command: tuple[str, ...]
    own: bool

    def kubectl(self, *words: str, stdin: str | None = None, check: bool = True) -> str:
        done = subprocess.run([*self.kubectl_command, *words], input=stdin, capture_output=True, text=True, timeout=60, check=False)
        assert not check or done.returncode == 0, f"kubectl {' '.join(words)}: {done.stderr}"
        return done.stdout

    def load(self, *images: str) -> None:
        command = [str(TOOL), "load"] if self.own else shlex.split(os.environ["MBRIDGE_TEST_LOAD"])
        subprocess.run([*command, *images], check=True, capture_output=True, timeout=120)

    def component(self, action: str, name: str) -> None:
        subprocess.run([str(TOOL), action, name], check=True, timeout=30)


@dataclass(frozen=True)
class Namespace:
    """One test's namespace."""

    cluster: Cluster
    name: str
    state: Path
    made: list[str] = field(default_factory=list)

    def kubectl(self, *words: str, stdin: str | None = None, check: bool = True) -> str:
        return self.cluster.kubectl("-n", self.name, *words, stdin=stdin, check=check)

    def apply(self, *objects: Json) -> None:
        self.kubectl("apply", "-f", "-", stdin="\n---\n".join(map(json.dumps, objects)))

    def get(self, *words: str) -> Json:
        return json.loads(self.kubectl("get", *words, "-o", "json"))

    def pods(self, selector: str) -> list[Json]:
        return self.get("pods", "-l", selector)["items"]

    def until(self, what: str, check: Callable[[], object], limit_s: float = 30) -> Any:
        """Ask the cluster again and again: what kubectl shows has no event to wait for."""
        deadline = time.monotonic() + limit_s
        while not (answer := check()):
            assert time.monotonic() < deadline, f"{what}: not within {limit_s} s"
            time.sleep(0.1)
        return answer

    def workload(self, kind: str = "Deployment", name: str = "web", pod: Json | None = None, **spec: Any) -> None:
        """Target.py as a workload; waits until it is ready. `pod` is merged into the pod's spec."""
        self.apply(workload(kind, name, pod, **spec))
        self.ready(f"app={name}")

    def ready(self, selector: str) -> None:
        self.until("a pod", lambda: self.pods(selector))
        self.kubectl("wait", "--for=condition=Ready", "pod", "-l", selector, "--timeout=40s")


def container(name: str = "app", **more: Any) -> Json:
    return {"name": name, "image": TARGET_IMAGE, "env": [{"name": "FROM_SPEC", "value": "a\nb"}], **more}


def pod_spec(**more: Any) -> Json:
    return {"terminationGracePeriodSeconds": 1, "containers": [container()], **more}


def workload(kind: str, name: str, pod: Json | None = None, **spec: Any) -> Json:
    body = pod_spec(**(pod or {}))
    group = {"Pod": "v1", "Job": "batch/v1", "CronJob": "batch/v1"}.get(kind, "apps/v1")
    labels = {"app": name}
    if kind == "Pod":
        return {"apiVersion": group, "kind": kind, "metadata": {"name": name, "labels": labels}, "spec": body}
    template = {"metadata": {"labels": labels}, "spec": body}
    whole: Json = {"template": template, **spec}
    if kind == "Job":
        body["restartPolicy"] = "Never"
    else:
        whole["selector"] = {"matchLabels": labels}
    if kind == "StatefulSet":
        whole["serviceName"] = name
    return {"apiVersion": group, "kind": kind, "metadata": {"name": name}, "spec": whole}


def service(name: str, selector: Json | None = None, **spec: Any) -> Json:
    chosen = {} if "externalName" in spec else {"selector": selector or {"app": name}}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"ports": [{"port": 8080}], **chosen, **spec}}


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    if given := os.environ.get("MBRIDGE_TEST_KUBECONFIG"):
        kubectl = shutil.which("kubectl")
        if kubectl is None or "MBRIDGE_TEST_LOAD" not in os.environ:
            pytest.skip("MBRIDGE_TEST_KUBECONFIG needs kubectl and MBRIDGE_TEST_LOAD")
        found, started = Cluster(Path(given), (kubectl, f"--kubeconfig={given}"), own=False), False
    else:
        missing = [name for name in _NEEDS if shutil.which(name) is None]
        if os.geteuid() != 0 or missing or not Path("/usr/lib/cni/bridge").exists():
            pytest.skip(f"the cluster needs root, the CNI plugins and {', '.join(missing) or 'nothing else'}")
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        state = Path(os.environ.get("MBRIDGE_CLUSTER") or cache / "mbridge" / "cluster")
        started = not (state / "run/kubelet.pid").exists()
        up = subprocess.run([str(TOOL), "up"], capture_output=True, text=True, timeout=1800, check=False)
        assert up.returncode == 0, up.stderr
        found = Cluster(Path(up.stdout.split()[-1]), (str(TOOL), "kubectl"), own=True)
    yield found
    if started:
        subprocess.run([str(TOOL), "down"], check=True, timeout=60)


@pytest.fixture(scope="session")
def images(cluster: Cluster) -> str:
    """The agent's image and the target's, loaded; the agent's name."""
    import docker

    from bridge.adapters import images

    client = docker.from_env()
    agent = images.tag("agent")
    if not images.present(client, "agent"):
        images.build(client, "agent", lambda _: None)
    client.images.build(path=str(HERE / "target"), tag=TARGET_IMAGE)
    cluster.load(agent, TARGET_IMAGE)
    return agent


@pytest.fixture
def namespace(cluster: Cluster, images: str, tmp_path: Path) -> Iterator[Namespace]:
    name = f"mb-{secrets.token_hex(4)}"
    cluster.kubectl("create", "namespace", name)
    made = Namespace(cluster, name, tmp_path / "state")
    try:
        made.until("the default service account", lambda: made.kubectl("get", "serviceaccount", "default", check=False))
        yield made
    finally:
        cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def own_cluster(cluster: Cluster) -> Cluster:
    """A cluster whose components may be stopped."""
    if not cluster.own:
        pytest.skip("lacks(a node of our own)")
    return cluster

"""A cluster for the whole run, a namespace for each test, and a workload to bridge to.

The cluster is tests/cluster/cluster's own, started if it is not up and ended only if it was started here. Where there is one
already, MBRIDGE_TEST_KUBECONFIG names its kubeconfig and MBRIDGE_TEST_LOAD the command that brings it an image of the local
engine ("kind load docker-image"); tests that stop a component of the node are skipped there.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.kube import HERE, TARGET_IMAGE, TOOL, Cluster, Namespace, end_sessions

_NEEDS = ("containerd", "ctr", "runc", "openssl", "iptables", "gcc", "docker", "nsenter")


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
        started = not (state / "run/etcd.pid").exists()
        up = subprocess.run([str(TOOL), "up"], capture_output=True, text=True, timeout=1800, check=False)
        assert up.returncode == 0, up.stderr
        kubeconfig = up.stdout.split()[-1]
        # what `cluster kubectl` calls, without the half of its time that is Python's: a run of this level calls it thousands of times
        found = Cluster(Path(kubeconfig), (str(state / "bin" / "kubenode"), "kubectl", f"--kubeconfig={kubeconfig}"), own=True)
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
    client.images.build(path=str(HERE / "target"), tag=TARGET_IMAGE, rm=True)
    cluster.load(agent, TARGET_IMAGE)
    return agent


@contextlib.contextmanager
def a_namespace(cluster: Cluster, agent_image: str, state: Path) -> Iterator[Namespace]:
    name = f"mb-{secrets.token_hex(4)}"
    cluster.kubectl("create", "namespace", name)
    made = Namespace(cluster, name, state, agent_image)
    try:
        made.until("the default service account", lambda: made.kubectl("get", "serviceaccount", "default", check=False), 90)
        yield made
        end_sessions(made.cli)
    finally:
        cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def namespace(cluster: Cluster, images: str, tmp_path: Path) -> Iterator[Namespace]:
    with a_namespace(cluster, images, tmp_path / "state") as made:
        yield made


@pytest.fixture(scope="module")
def shared_namespace(cluster: Cluster, images: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Namespace]:
    """For tests that only look at what is in it."""
    with a_namespace(cluster, images, tmp_path_factory.mktemp("state")) as made:
        yield made


@pytest.fixture
def own_cluster(cluster: Cluster) -> Iterator[Cluster]:
    """A cluster whose components may be stopped; the next test begins when all of them act again."""
    if not cluster.own:
        pytest.skip("lacks(a node of our own)")
    yield cluster
    if cluster.disturbed:
        cluster.settle()

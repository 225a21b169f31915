"""`mbridge images load` into a real node's containerd, and `mbridge images prune` on a real engine.

The node of kind or k3d is played by a container of the engine that has their label and `ctr`, whose containerd is the cluster's.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from bridge.adapters import image_store, images
from bridge.adapters.docker.endpoint import find_endpoint
from bridge.adapters.docker.engine import Engine
from bridge.cli import cluster_images
from tests.cluster.kube import TARGET_IMAGE, Cluster, Namespace
from tests.lab.boxes import Cli


@pytest.fixture
def client() -> Iterator[docker.DockerClient]:
    made = docker.from_env()
    yield made
    made.close()


@pytest.fixture
def image(client: docker.DockerClient, own_node: Path) -> Iterator[str]:
    """An image that neither the engine nor the node has had before."""
    name = f"mbt-load:{secrets.token_hex(6)}"
    client.images.get(TARGET_IMAGE).tag(*name.split(":"))
    yield name
    client.images.remove(name)
    ctr(own_node, "k8s.io", "images", "rm", f"docker.io/library/{name}")


@pytest.fixture
def own_node(cluster: Cluster) -> Path:
    """The containerd socket of the test cluster's node."""
    if not cluster.own:
        pytest.skip("lacks(a node of our own)")
    return cluster.kubeconfig.parents[1] / "run" / "containerd.sock"


def ctr(socket: Path, namespace: str, *words: str) -> str:
    command = ["ctr", "--address", str(socket), "-n", namespace, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


def engine() -> Engine:
    return Engine(find_endpoint(None, os.environ))


def has_arrived(namespace: Namespace, image: str) -> None:
    """A pod runs from it, which may not pull."""
    spec = {"containers": [{"name": "app", "image": image, "imagePullPolicy": "Never"}], "terminationGracePeriodSeconds": 0}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "from-it", "labels": {"app": "from-it"}}, "spec": spec}
    namespace.kubectl("apply", "-f", "-", stdin=json.dumps(pod))
    namespace.kubectl("wait", "--for=condition=Ready", "pod/from-it", "--timeout=40s")


def test_a_command_brings_an_image_into_the_nodes_containerd(namespace: Namespace, image: str, own_node: Path) -> None:
    asyncio.run(cluster_images.load_by(f"ctr --address {own_node} -n k8s.io images import -", image, engine(), lambda _: None, os.environ))
    has_arrived(namespace, image)


@contextlib.contextmanager
def node_container(client: docker.DockerClient, socket: Path, cluster: str) -> Iterator[None]:
    mounts = {
        "/usr/bin/ctr": {"bind": "/usr/bin/ctr", "mode": "ro"},
        str(socket): {"bind": "/run/containerd/containerd.sock", "mode": "rw"},
    }
    labels = {"io.x-k8s.kind.cluster": cluster, "io.x-k8s.kind.role": "control-plane", "mbridge.test": "cluster"}
    made = client.containers.run(TARGET_IMAGE, ["sleep", "120"], detach=True, labels=labels, volumes=mounts, network_mode="none")
    try:
        yield
    finally:
        made.remove(force=True)


def test_without_kinds_own_tool_the_image_goes_into_its_node_containers(
    namespace: Namespace, image: str, own_node: Path, client: docker.DockerClient
) -> None:
    name, said = f"mbt-{secrets.token_hex(4)}", list[str]()

    async def load() -> str:
        asked = await engine().connect()
        cluster = await cluster_images.find(f"kind:{name}", cluster_images.Where(), asked)
        return await cluster_images.load(image, cluster, asked, said.append, {"PATH": "/nowhere"})

    with node_container(client, own_node, name):
        assert asyncio.run(load()) == "into 1 node"
    has_arrived(namespace, image)
    assert said[-1].endswith(" MB")


def test_the_agents_image_is_built_where_it_is_absent_and_loaded_by_the_command_line(
    cluster: Cluster, own_node: Path, tmp_path: Path
) -> None:
    apart = f"mbt-{secrets.token_hex(4)}"  # a namespace of containerd's: what others have loaded does not count
    cli = Cli(tmp_path, {"KUBECONFIG": str(cluster.kubeconfig)})
    done = cli.run("images", "load", "--command", f"ctr --address {own_node} -n {apart} images import --no-unpack -")
    try:
        assert (done.returncode, done.stdout) == (0, images.tag("agent") + "\n"), done.stderr
        assert ctr(own_node, apart, "images", "ls", "-q") == f"docker.io/library/{images.tag('agent')}\n"
    finally:
        for found in ctr(own_node, apart, "images", "ls", "-q").split():
            ctr(own_node, apart, "images", "rm", "--sync", found)
        ctr(own_node, apart, "namespaces", "rm", apart)


def test_a_cluster_of_no_known_kind_is_told_with_the_ways_that_are_left(cluster: Cluster, own_node: Path, tmp_path: Path) -> None:
    done = Cli(tmp_path, {"KUBECONFIG": str(cluster.kubeconfig)}).run("images", "load")
    assert done.returncode == 4
    assert "context 'mbk' is no cluster of kind, k3d or minikube, and its nodes are not on this engine" in done.stderr
    assert "mbridge: hint: mbridge images push REPOSITORY" in done.stderr


def test_prune_takes_an_unused_image_of_ours_and_leaves_one_that_a_container_uses(client: docker.DockerClient, images: str) -> None:
    """By the image store, for those two alone: what else is old on this machine is the user's to prune."""
    names = [f"mbridge-agent:test-{secrets.token_hex(4)}" for _ in range(2)]
    for name in names:
        build = f"FROM scratch\nLABEL mbridge.image=agent made={name}\n"
        client.images.build(fileobj=io.BytesIO(build.encode()), tag=name, rm=True)
    held = client.containers.create(names[0], ["nothing"], labels={"mbridge.test": "cluster"})
    try:
        old = {one.what: one for one in image_store.superseded(client, [images])}
        assert names[0] not in old
        assert images not in old
        assert image_store.remove(client, old[names[1]])
        assert [bool(client.images.list(name)) for name in names] == [True, False]
    finally:
        held.remove()
        client.images.remove(names[0])

"""`mbridge images load`: which cluster is meant, and what each way of bringing an image there is given."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bridge.adapters.docker.engine import Engine
from bridge.cli import cluster_images
from bridge.cli.cluster_images import Cluster, named, nodes_of, recognised, same_names
from bridge.cli.looking import Where
from bridge.errors import BridgeError, ClusterError, EngineUnavailable, HostError, SpecError
from tests.unit.fake_engine import FakeEngine

IMAGE = "mbridge-agent:1"
DATA = b"a tar of docker save " * 100_000 + bytes(1024)


class Exporting(FakeEngine):
    """An engine that has IMAGE and packs it; with `breaks` it goes away in the midst of that."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.images[IMAGE] = {"Id": "sha256:2", "Size": len(DATA)}
        self.breaks = False
        self.listed: list[dict[str, Any]] = []

    async def _answer(self, method: str, path: str, query: dict[str, str], body: bytes, writer: asyncio.StreamWriter) -> None:
        if path == f"/images/{IMAGE}/get":
            sent = DATA[: len(DATA) // 2] if self.breaks else DATA
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(DATA), sent))
        elif path == "/containers/json" and self.listed:
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n" + json.dumps(self.listed).encode()
            )
        else:
            await super()._answer(method, path, query, body, writer)


def node(name: str, provider: str = "", runtime: str = "containerd://1.7.27", **labels: str) -> dict[str, Any]:
    info = {"nodeInfo": {"containerRuntimeVersion": runtime}}
    return {"metadata": {"name": name, "labels": labels}, "spec": {"providerID": provider} if provider else {}, "status": info}


def container(name: str, state: str = "running", **labels: str) -> dict[str, Any]:
    return {"Id": f"id-of-{name}", "Names": [f"/{name}"], "State": state, "Labels": labels}


@pytest.mark.parametrize(
    ("context", "nodes", "meant"),
    [
        ("renamed", [node("dev-control-plane", "kind://docker/dev/dev-control-plane")], Cluster("kind", "dev")),
        ("renamed", [node("k3d-my-dev-server-0", "k3s://k3d-my-dev-server-0", "containerd://1.7-k3s1")], Cluster("k3d", "my-dev")),
        ("x", [node("p1", runtime="docker://27.1", **{"minikube.k8s.io/name": "p1"})], Cluster("minikube", "p1", runtime="docker")),
        ("kind-dev", [], Cluster("kind", "dev")),
        ("k3d-dev", [], Cluster("k3d", "dev")),
        ("minikube", [], Cluster("minikube", "minikube", runtime="docker")),
        ("prod", [node("ip-10-0-0-1", "aws:///eu-central-1a/i-0abc")], None),
        ("kind-dev", [node("n", "kind://docker/other/n")], Cluster("kind", "other")),
        ("prod", [node("server", "k3s://server")], None),
    ],
)
def test_the_nodes_tell_the_cluster_else_the_contexts_name(context: str, nodes: list[Any], meant: Cluster | None) -> None:
    assert recognised(context, nodes) == meant


def test_to_names_a_cluster_or_the_tools_own_default() -> None:
    assert (named("kind:dev").name, named("kind").name, named("k3d").name) == ("dev", "kind", "k3s-default")
    with pytest.raises(SpecError, match="--to kin: not one of kind, k3d, minikube"):
        named("kin")


def test_nodes_are_those_of_this_cluster_that_run_and_no_load_balancer() -> None:
    containers = [
        container("one", **{"k3d.cluster": "dev", "k3d.role": "server"}),
        container("two", **{"k3d.cluster": "dev", "k3d.role": "agent"}),
        container("lb", **{"k3d.cluster": "dev", "k3d.role": "loadbalancer"}),
        container("old", "exited", **{"k3d.cluster": "dev", "k3d.role": "agent"}),
        container("other", **{"k3d.cluster": "test", "k3d.role": "server"}),
        container("stranger"),
    ]
    assert nodes_of(Cluster("k3d", "dev"), containers) == ("id-of-one", "id-of-two")


def test_a_container_that_is_called_like_a_node_is_one() -> None:
    by_id = {"Id": "0123456789abcdef", "Names": ["/x"], "State": "running"}
    assert same_names([node("n1"), node("0123456789ab")], [container("n1"), by_id, container("n2")]) == ("id-of-n1", "0123456789abcdef")


# What is brought, and how


def tool(folder: Path, name: str, says: str = "", code: int = 0) -> dict[str, str]:
    """An environment in which NAME is a program that writes its words into NAME.asked."""
    program = folder / name
    program.write_text(f"#!/bin/sh\nprintf '%s ' \"$@\" >{folder}/{name}.asked\nprintf '%b' '{says}'\nexit {code}\n")
    program.chmod(0o755)
    return {"PATH": f"{folder}:/usr/bin:/bin"}


def loaded(folder: Path, cluster: Cluster, environ: dict[str, str]) -> tuple[str, list[str]]:
    said: list[str] = []

    async def load() -> str:
        async with Exporting(folder) as engine:
            return await cluster_images.load(IMAGE, cluster, await Engine(engine.endpoint).connect(), said.append, environ)

    return asyncio.run(load()), said


@pytest.mark.parametrize(
    ("cluster", "words"),
    [
        (Cluster("kind", "dev"), f"load docker-image {IMAGE} --name dev "),
        (Cluster("k3d", "dev"), f"image import {IMAGE} -c dev "),
        (Cluster("minikube", "p1"), f"image load {IMAGE} -p p1 "),
    ],
)
def test_a_clusters_own_tool_is_given_the_images_name(tmp_path: Path, cluster: Cluster, words: str) -> None:
    name = str(cluster.tool)
    way, said = loaded(tmp_path, cluster, tool(tmp_path, name, "loading...\\ndone\\n"))
    assert (tmp_path / f"{name}.asked").read_text() == words
    assert (way, said) == (f"by {name}", ["loading...", "done"])


def test_a_tool_that_fails_is_quoted(tmp_path: Path) -> None:
    environ = tool(tmp_path, "kind", 'looking\\nERROR: no nodes found for cluster "dev"\\n', 1)
    with pytest.raises(HostError) as caught:
        loaded(tmp_path, Cluster("kind", "dev"), environ)
    assert caught.value.message == f'`kind load docker-image {IMAGE} --name dev` ended with 1: ERROR: no nodes found for cluster "dev"'
    assert caught.value.hint == "looking"


def test_without_a_tool_and_without_a_node_here_the_other_ways_are_told(tmp_path: Path) -> None:
    with pytest.raises(
        HostError, match="kind cluster dev: there is no kind on the PATH, and none of its nodes runs on this engine"
    ) as caught:
        loaded(tmp_path, Cluster("kind", "dev"), {"PATH": "/nowhere"})
    assert "mbridge images push" in str(caught.value.hint)


def test_a_cluster_on_this_very_engine_has_the_image_already(tmp_path: Path) -> None:
    assert "has it" in loaded(tmp_path, Cluster(None, "docker-desktop", shared=True), {"PATH": "/nowhere"})[0]


def test_a_tool_looks_for_the_engine_that_is_meant() -> None:
    environ = {"PATH": "/bin", "DOCKER_HOST": "tcp://elsewhere", "DOCKER_CONTEXT": "other"}
    assert cluster_images.environ_of("far", environ) == {"PATH": "/bin", "DOCKER_CONTEXT": "far"}
    assert cluster_images.environ_of(None, environ) == environ


def by_command(folder: Path, command: str, breaks: bool = False) -> list[str]:
    said: list[str] = []

    async def load() -> None:
        async with Exporting(folder) as engine:
            engine.breaks = breaks
            await cluster_images.load_by(command, IMAGE, Engine(engine.endpoint), said.append, os.environ)

    asyncio.run(load())
    return said


def test_a_command_gets_the_image_on_its_stdin_and_how_much_it_took_is_told(tmp_path: Path) -> None:
    said = by_command(tmp_path, f"cat | cat >{tmp_path}/got")
    assert (tmp_path / "got").read_bytes() == DATA
    assert said[-1] == "2 of about 2 MB"


def test_a_command_that_wants_no_more_tells_why_by_its_words_and_code(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"`echo no space left; exit 3` ended with 3: no space left"):
        by_command(tmp_path, "echo no space left; exit 3")


def test_an_engine_that_goes_away_meanwhile_is_the_reason_not_what_the_command_made_of_it(tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable, match=f"the engine broke off while it packed {IMAGE}"):
        by_command(tmp_path, "cat >/dev/null; echo unexpected EOF; exit 1", breaks=True)


def test_an_interrupted_load_ends_its_program(tmp_path: Path) -> None:
    pid = tmp_path / "pid"

    async def interrupted() -> None:
        async with Exporting(tmp_path) as engine:
            command = f"echo $$ >{pid}.new; mv {pid}.new {pid}; exec sleep 60"
            loading = asyncio.ensure_future(cluster_images.load_by(command, IMAGE, Engine(engine.endpoint), lambda _: None, os.environ))
            async with asyncio.timeout(10):
                while not pid.exists():  # noqa: ASYNC110  a file has no event
                    await asyncio.sleep(0.01)
                loading.cancel()
                await asyncio.gather(loading, return_exceptions=True)

    asyncio.run(interrupted())
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


# Which cluster, as a user's kubeconfig has it


def kubeconfig(folder: Path, context: str, server: str = "http://127.0.0.1:1") -> str:
    file = folder / "config"
    value = {"current-context": context, "clusters": [{"name": "c", "cluster": {"server": server}}],
             "contexts": [{"name": context, "context": {"cluster": "c"}}]}  # fmt: skip
    file.write_text(json.dumps(value))
    return str(file)


def found(folder: Path, context: str, to: str | None = None, containers: Sequence[dict[str, Any]] = ()) -> Cluster:
    async def find() -> Cluster:
        async with Exporting(folder) as engine:
            engine.listed = [*containers]
            return await cluster_images.find(to, Where(kubeconfig=kubeconfig(folder, context)), Engine(engine.endpoint))

    return asyncio.run(find())


def test_a_stopped_cluster_is_known_by_its_context_and_its_nodes_by_their_label(tmp_path: Path) -> None:
    containers = [container("dev-control-plane", **{"io.x-k8s.kind.cluster": "dev", "io.x-k8s.kind.role": "control-plane"})]
    assert found(tmp_path, "kind-dev", containers=containers) == Cluster("kind", "dev", ("id-of-dev-control-plane",))


def test_to_beats_the_context(tmp_path: Path) -> None:
    assert found(tmp_path, "kind-dev", "k3d:other") == Cluster("k3d", "other")


def test_a_cluster_of_no_known_kind_that_cannot_be_asked_is_told_with_both_reasons(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(ClusterError, match="context 'prod' names no cluster of kind, k3d or minikube, and unable to connect") as caught:
        found(tmp_path, "prod")
    assert caught.value.exit_code == 4
    assert "--command" in str(caught.value.hint)
    assert time.monotonic() - began < 6


def test_no_kubeconfig_is_told_as_everywhere(tmp_path: Path) -> None:
    async def find() -> Cluster:
        async with Exporting(tmp_path) as engine:
            return await cluster_images.find(None, Where(kubeconfig=str(tmp_path / "absent")), Engine(engine.endpoint))

    with pytest.raises(BridgeError, match="no such file"):
        asyncio.run(find())

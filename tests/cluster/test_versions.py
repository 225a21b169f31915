"""K15: a bridge and an agent of neighbouring releases work together; of another major version they refuse, each named."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from bridge import __version__
from tests.cluster.kube import TARGET_IMAGE, App, Cluster, Namespace, bridged, service, workload
from tests.cluster.test_run import ip_of
from tests.lab.boxes import Cli
from tests.lab.release import Release, another_release

NEXT, NEXT_LINK = "0.2.0", (1, 1)


@pytest.fixture(scope="module")
def client() -> Iterator[docker.DockerClient]:
    client = docker.from_env(timeout=120)
    yield client
    client.close()


@pytest.fixture(scope="module")
def newer(client: docker.DockerClient, cluster: Cluster, images: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    """The next minor: both its images are there, and the agent's is on the node."""
    with another_release(client, tmp_path_factory.mktemp("newer"), NEXT, NEXT_LINK) as release:
        release.build("bridge")
        cluster.load(release.build("agent"))
        yield release


def works(namespace: Namespace, app: App) -> None:
    """TCP, names, UDP and the environment, as the pod has them."""
    (web,), (peer,) = namespace.pods("app=web"), namespace.pods("app=peer")
    for name in ("peer", f"peer.{namespace.name}.svc.cluster.local", ip_of(peer)):
        answer = app.asks(name)
        assert answer["host"] == peer["metadata"]["name"], name
        assert answer["peer"] == answer["sockname"] == ip_of(web), name
    seen = app.python(f"""
import json, os, socket
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); udp.settimeout(5)
udp.sendto(b"x" * 100, ({ip_of(peer)!r}, 8080))
seen = {{"udp": json.loads(udp.recv(65536))}}
try:
    socket.getaddrinfo("nothing.{namespace.name}.svc.cluster.local", 80)
except socket.gaierror as error:
    seen["nothing"] = error.errno == socket.EAI_NONAME
print(json.dumps(seen))""")
    assert seen == {"udp": {"host": peer["metadata"]["name"], "peer": ip_of(web), "bytes": 100}, "nothing": True}
    assert app.status()["link"]["state"] == "up"


def targets(namespace: Namespace) -> None:
    namespace.apply(workload("Deployment", "peer"), service("peer"))
    namespace.workload()
    namespace.ready("app=peer")


def release_of(namespace: Namespace, container: str) -> str:
    """What runs there: the test would prove nothing with an image of this release."""
    (pod,) = namespace.pods("app=web")
    program = "import bridge; from bridge.protocol import control; print(bridge.__version__, *control.VERSION)"
    return namespace.kubectl("exec", pod["metadata"]["name"], "-c", container, "--", "/opt/mbridge/bin/python", "-c", program).strip()


def agent_of(namespace: Namespace) -> str:
    (pod,) = namespace.pods("app=web")
    (agent,) = pod["spec"]["ephemeralContainers"]
    return str(agent["name"])


def test_K15_an_agent_one_minor_newer_serves_this_bridge(namespace: Namespace, newer: Release) -> None:
    targets(namespace)
    with bridged(namespace, "deploy/web", "--agent-image", newer.name("agent")) as app:
        assert release_of(namespace, agent_of(namespace)) == f"{NEXT} {NEXT_LINK[0]} {NEXT_LINK[1]}"
        works(namespace, app)


def test_K15_an_agent_one_minor_older_serves_a_newer_bridge(namespace: Namespace, newer: Release) -> None:
    """The developer has upgraded; `agent.image` names what the team pushed a release ago."""
    targets(namespace)
    cli = newer.cli(namespace.state, **namespace.cli.environ)
    with bridged(namespace, "deploy/web", "--agent-image", namespace.agent_image, cli=cli) as app:
        assert release_of(namespace, agent_of(namespace)).startswith(f"{__version__} ")
        works(namespace, app)


def refused(namespace: Namespace, cli: Cli, agent_image: str) -> str:
    began = time.monotonic()
    try:
        done = cli.run("run", "deploy/web", "-n", namespace.name, "--agent-image", agent_image, TARGET_IMAGE, "true", limit_s=30)
    finally:
        cli.run("down", "--all")  # of a session that did not end by itself
    assert done.returncode == 125, done.stderr
    assert time.monotonic() - began < 10, "a version never changes by waiting"
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("link", "stream", "said"),
    [
        ((2, 0), 1, "the agent speaks link version 2.0 (release 2.0.0), this side 1.0"),
        ((2, 0), 2, "the agent speaks stream protocol 2, this mbridge 1"),
    ],
)
def test_K15_an_agent_of_another_major_is_refused_with_both_versions(
    client: docker.DockerClient, namespace: Namespace, tmp_path: Path, link: tuple[int, int], stream: int, said: str
) -> None:
    namespace.workload()
    with another_release(client, tmp_path / "release", "2.0.0", link, stream) as release:
        namespace.cluster.load(agent := release.build("agent"))
        assert f"mbridge: error: {said}" in refused(namespace, namespace.cli, agent)


def test_K15_a_bridge_of_another_major_is_refused_with_both_versions(
    client: docker.DockerClient, namespace: Namespace, tmp_path: Path
) -> None:
    namespace.workload()
    with another_release(client, tmp_path / "release", "2.0.0", (2, 0)) as release:
        release.build("bridge")
        cli = release.cli(namespace.state, **namespace.cli.environ)
        said = refused(namespace, cli, namespace.agent_image)
        assert f"the agent speaks link version 1.0 (release {__version__}), this side 2.0" in said

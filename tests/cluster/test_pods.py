"""K18, K19, K26: pods of more than one container, of other kinds of containers, and on networks and process namespaces that are shared.

Each is a whole `mbridge run`, beside what the named container itself sees by kubectl exec.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.kube import TARGET_IMAGE, Json, Namespace, container, service

# Whom the peer saw, the own name, whose environment this is, and the first word from loopback ports that are asked for.
PROGRAM = """
import json, os, socket, sys
def hello(host, port):
    with socket.create_connection((host, port), timeout=10) as sock:
        return json.loads(sock.makefile().readline())
loopback = [hello("127.0.0.1", int(port))["host"] for port in sys.argv[1:]]
print(json.dumps([hello("peer", 8080)["peer"], socket.gethostname(), os.environ.get("WHO"), loopback]))"""


def who(name: str, command: tuple[str, ...] = ("sleep", "1000"), **more: Any) -> Json:
    made = container(name, command=list(command), **more)
    made["env"] = [{"name": "WHO", "value": name}]
    return made


SERVES = ("python3", "-u", "/target.py")


def seen_by_app(namespace: Namespace, name: str, *options: str, ports: tuple[str, ...] = ()) -> list[object]:
    """By an app bridged to `name`."""
    done = namespace.cli.run(
        "run", "deploy/web", "-n", namespace.name, "-c", name, *options, TARGET_IMAGE, "python3", "-c", PROGRAM, *ports
    )
    assert done.returncode == 0, done.stderr
    found: list[object] = json.loads(done.stdout)
    return found


def seen_inside(namespace: Namespace, name: str, *ports: str) -> list[object]:
    """The truth: the same program in the container itself."""
    (pod,) = namespace.pods("app=web")
    found: list[object] = json.loads(namespace.kubectl("exec", pod["metadata"]["name"], "-c", name, "--", "python3", "-c", PROGRAM, *ports))
    return found


@pytest.fixture(autouse=True)
def peer(namespace: Namespace) -> None:
    namespace.workload("Deployment", "peer")
    namespace.apply(service("peer"))


@pytest.mark.parametrize("shared", [False, True], ids=["own processes", "shared processes"])
def test_K18_K26_each_container_of_a_pod_is_a_target_of_its_own_on_the_network_of_all(
    namespace: Namespace, tmp_path: Path, shared: bool
) -> None:
    """Environment of the one that was named, also where all see each other's processes; loopback of the whole pod."""
    namespace.workload(pod={"containers": [who("app", SERVES), who("side")], "shareProcessNamespace": shared})
    settings = tmp_path / "mbridge.yaml"
    settings.write_text("outgoing: {loopback: [9092]}")
    for name in ("app", "side"):
        ours = seen_by_app(namespace, name, "--config", str(settings), ports=("9092",))
        assert ours == seen_inside(namespace, name, "9092")
        assert ours[2] == name


def test_K19_a_sidecar_is_a_target_and_an_init_container_that_has_ended_is_not(namespace: Namespace) -> None:
    side = who("side", restartPolicy="Always")
    namespace.workload(pod={"initContainers": [who("first", ("true",)), side], "containers": [who("app", SERVES)]})
    ours = seen_by_app(namespace, "side")
    assert ours == seen_inside(namespace, "side")
    assert ours[2] == "side"
    done = namespace.cli.run("run", "deploy/web", "-n", namespace.name, "-c", "first", TARGET_IMAGE, "true")
    assert done.returncode == 125
    assert "has no container 'first': app (running), side (running)" in done.stderr


def test_K19_with_a_yes_an_app_has_its_nodes_network(namespace: Namespace) -> None:
    if not namespace.cluster.own:
        pytest.skip("lacks(a node of our own)")
    namespace.workload(pod={"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet", "containers": [who("app")]})
    refused = namespace.cli.run("run", "deploy/web", "-n", namespace.name, TARGET_IMAGE, "true")
    assert refused.returncode == 125
    assert "uses its host's own network" in refused.stderr, "before anything is made"
    assert "mbridge: hint: --yes-host-network" in refused.stderr
    source, hostname, whose, _ = seen_by_app(namespace, "app", "--yes-host-network")
    (pod,) = namespace.pods("app=web")
    assert [source, whose] == [seen_inside(namespace, "app")[0], "app"]
    assert hostname == pod["spec"]["nodeName"], "as Kubernetes calls the node, whatever it calls itself"

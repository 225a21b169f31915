"""The figures of a Kubernetes target, on the tests' own cluster, each beside `kubectl port-forward` in the same round.

    ours    app (container) -> bridge -> port-forward carrier -> agent in pod `web` -> pod `server`
    peer    program of this machine -> kubectl port-forward -> pod `server`

Limits: one machine of few cores carries both ends, the API server, the
kubelet and containerd; where the cluster has its own cores the shares differ.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.bench.figures import Row, alternate, number, ratio
from tests.cluster.kube import HERE, TARGET_IMAGE, TOOL, App, Cluster, Namespace, bridged, container

TRAFFIC = Path(__file__).with_name("traffic.py")
PORT = 9000
BULK = 128 << 20


@dataclass(frozen=True)
class Scene:
    namespace: Namespace
    app: App
    server: str  # its address, as the app dials it
    local_port: int  # of kubectl port-forward

    def ours(self, what: str, **words: object) -> object:
        asked = json.dumps({"host": self.server, "port": PORT, **words})
        done = self.app.run("python3", "-c", TRAFFIC.read_text(), what, asked, limit_s=120)
        assert done.code == 0, done.err
        return json.loads(done.out.splitlines()[-1])

    def peers(self, what: str, **words: object) -> object:
        command = [sys.executable, str(TRAFFIC), what, json.dumps({"host": "127.0.0.1", "port": self.local_port, **words})]
        return json.loads(subprocess.run(command, check=True, capture_output=True, timeout=120).stdout.splitlines()[-1])


def bulk(scene: Scene) -> Iterable[Row]:
    for way, function, must, goal in (("down", "down", 1.1, 1.5), ("up", "up_counted", 0.9, 1.1)):
        ways = {"mbridge": scene.ours, "kubectl": scene.peers}
        rates = alternate(5, {name: _rate(ask, function) for name, ask in ways.items()})
        detail = "; ".join(f"{name} {number(median(rates[name]))} MB/s" for name in ways)
        value = ratio(rates["mbridge"], rates["kubectl"])
        yield Row("bulk", f"bulk {way} against kubectl port-forward", value, "×", must, goal, detail, True)


def _rate(ask: Callable[..., object], way: str) -> Callable[[], float]:
    return lambda: BULK / 1e6 / float(ask(way, size=BULK))  # type: ignore[arg-type]  # traffic.py gives seconds


def latency(scene: Scene) -> Iterable[Row]:
    for what, said, must, goal in (("round_trips", "round trip", 1.6, 1.1), ("connects", "connect + first answer", 0.9, 0.5)):
        ways = {"mbridge": scene.ours, "kubectl": scene.peers}
        taken = alternate(5, {name: _median(ask, what) for name, ask in ways.items()})
        detail = "; ".join(f"{name} {median(taken[name]) * 1e6:.0f} µs" for name in ways)
        yield Row("latency", f"{said} against kubectl port-forward", ratio(taken["mbridge"], taken["kubectl"]), "×", must, goal, detail)


def _median(ask: Callable[..., object], what: str) -> Callable[[], float]:
    return lambda: median(ask(what, count=200))  # type: ignore[call-overload,no-any-return]  # traffic.py gives a list of seconds


def start(scene: Scene) -> Iterable[Row]:
    """`mbridge run deploy/x IMAGE true`, from its start to its end: first with no agent there, then with one."""

    def run(target: str) -> float:
        began = time.monotonic()
        done = scene.namespace.cli.run("run", target, "-n", scene.namespace.name, TARGET_IMAGE, "true")
        assert done.returncode == 0, done.stderr
        return time.monotonic() - began

    firsts, seconds = [], []
    for round_number in range(3):
        name = f"fresh{round_number}"
        scene.namespace.workload("Deployment", name)
        firsts.append(run(f"deploy/{name}"))
        seconds += [run(f"deploy/{name}") for _ in range(2)]
    yield Row("start", "run … true, first", median(firsts), "s", 3.5, 2, f"{[round(one, 2) for one in firsts]}")
    yield Row("start", "run … true, agent used again", median(seconds), "s", 2, 1, f"{[round(one, 2) for one in seconds]}")


def memory(scene: Scene) -> Iterable[Row]:
    (pod,) = scene.namespace.pods("app=web")
    agent = pod["spec"]["ephemeralContainers"][0]["name"]
    program = "print(open('/proc/1/status').read())"
    said = scene.namespace.kubectl("exec", pod["metadata"]["name"], "-c", agent, "--", "/opt/mbridge/bin/python", "-c", program)
    found = re.search(r"VmRSS:\s+(\d+) kB", said)
    assert found is not None
    yield Row("memory", "agent's resident memory, idle", int(found[1]) / 1000, "MB", 60, 50)


ROWS: dict[str, Callable[[Scene], Iterable[Row]]] = {"memory": memory, "start": start, "latency": latency, "bulk": bulk}


@contextlib.contextmanager
def scene() -> Iterator[Scene]:
    import docker

    from bridge.adapters import images

    up = subprocess.run([str(TOOL), "up"], capture_output=True, text=True, check=True)
    cluster = Cluster(Path(up.stdout.split()[-1]), (str(TOOL), "kubectl"), own=True)
    client = docker.from_env()
    agent = images.tag("agent")
    for which in images.NAMES:
        if not images.present(client, which):
            images.build(client, which, lambda _: None)
    client.images.build(path=str(HERE / "target"), tag=TARGET_IMAGE)
    cluster.load(agent, TARGET_IMAGE)
    name = f"mb-bench-{secrets.token_hex(3)}"
    cluster.kubectl("create", "namespace", name)
    with tempfile.TemporaryDirectory() as folder:
        namespace = Namespace(cluster, name, Path(folder) / "state", agent)
        try:
            namespace.until("the default service account", lambda: namespace.kubectl("get", "serviceaccount", "default", check=False))
            data = {"t.py": TRAFFIC.read_text()}
            namespace.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "traffic"}, "data": data})
            mounted = container(command=["python3", "/bench/t.py", "serve", json.dumps({"port": PORT})],
                                volumeMounts=[{"name": "traffic", "mountPath": "/bench"}])  # fmt: skip
            volume = {"name": "traffic", "configMap": {"name": "traffic"}}
            namespace.workload("Pod", "server", {"containers": [mounted], "volumes": [volume]})
            namespace.workload("Deployment", "web")
            (server,) = namespace.pods("app=server")
            with bridged(namespace, "deploy/web") as app, _port_forward(namespace) as port:
                yield Scene(namespace, app, server["status"]["podIP"], port)
        finally:
            cluster.kubectl("delete", "namespace", name, "--wait=false")


@contextlib.contextmanager
def _port_forward(namespace: Namespace) -> Iterator[int]:
    command = [*namespace.cluster.kubectl_command, "-n", namespace.name, "port-forward", "pod/server", f":{PORT}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    try:
        found = re.search(r"127\.0\.0\.1:(\d+)", process.stdout.readline())
        assert found is not None
        yield int(found[1])
    finally:
        os.killpg(process.pid, 15)
        process.wait()

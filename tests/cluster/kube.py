"""What cluster tests share: the cluster as an administrator sees it, a test's namespace, and workloads to bridge to."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shlex
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker

from bridge.cli.place_kube import KubePlace
from bridge.model.target import parse_target
from bridge.model.wish import AppWish, SessionWish
from tests.lab import boxes
from tests.lab.boxes import Cli

HERE = Path(__file__).parent
TOOL = HERE / "cluster"
TARGET_IMAGE = "mbridge-test-target:1"
# Of a user that no agent but ours knows; who holds its private half does not matter to these tests.
PUBLIC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBQw9Xrn5JkVYVTkfpZ2wFJ1cQx5Kq2YjD0nq7yq3n1u"
Json = dict[str, Any]


@dataclass(frozen=True)
class Cluster:
    """kubectl, images and, on our own cluster, its components."""

    kubeconfig: Path
    kubectl_command: tuple[str, ...]
    own: bool
    disturbed: list[str] = field(default_factory=list)  # components that were stopped or started since all were seen to act

    def kubectl(self, *words: str, stdin: str | None = None, check: bool = True) -> str:
        done = subprocess.run([*self.kubectl_command, *words], input=stdin, capture_output=True, text=True, timeout=60, check=False)
        assert not check or done.returncode == 0, f"kubectl {' '.join(words)}: {done.stderr}"
        return done.stdout

    def load(self, *images: str) -> None:
        command = [str(TOOL), "load"] if self.own else shlex.split(os.environ["MBRIDGE_TEST_LOAD"])
        subprocess.run([*command, *images], check=True, capture_output=True, timeout=120)

    def component(self, action: str, name: str) -> None:
        self.disturbed.append(name)
        subprocess.run([str(TOOL), action, name], check=True, timeout=30)

    def settle(self, limit_s: float = 100) -> None:
        """Wait until every part acts. After an outage of the API server their back-off is up to a minute long: they start anew."""
        for name in ("controllers", "scheduler", "kubelet", "proxy", "coredns"):
            self.component("stop", name)
            self.component("start", name)
        name = f"settle-{secrets.token_hex(3)}"
        deadline = time.monotonic() + limit_s
        self.kubectl("create", "namespace", name)
        try:
            for made in (workload("Deployment", "web"), service("web")):
                self.kubectl("-n", name, "apply", "-f", "-", stdin=json.dumps(made))
            program = "import socket; socket.create_connection(('web', 8080), 2); print('served')"
            ask = ("exec", "deploy/web", "--", "python3", "-c", program)  # scheduled, run, routed, and known by its name
            while self.kubectl("-n", name, *ask, check=False) != "served\n":
                assert time.monotonic() < deadline, f"the cluster does not act, {limit_s:.0f} s after an outage"
                time.sleep(0.2)
            self.disturbed.clear()
        finally:
            self.kubectl("delete", "namespace", name, "--wait=false")


@dataclass(frozen=True)
class Namespace:
    """One test's namespace."""

    cluster: Cluster
    name: str
    state: Path
    agent_image: str

    def place(self, target: str, session: str = "abcdef", state: Path | None = None, **wish: Any) -> KubePlace:
        """What a session of one user with this target would use; `async with ended(place)` ends it."""
        whole = {"namespace": self.name, "kubeconfig": str(self.cluster.kubeconfig), **wish}
        asked = SessionWish(parse_target(target), AppWish("none"), **whole)
        return KubePlace(asked, session, "tests", state or self.state, self.agent_image)

    @property
    def cli(self) -> Cli:
        """`mbridge` of this test's user, who has nothing but a kubeconfig."""
        return Cli(self.state, {"KUBECONFIG": str(self.cluster.kubeconfig)})

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

    def deployments(self, *names: str) -> None:
        """Target.py as several, which start side by side."""
        self.apply(*(workload("Deployment", name) for name in names))
        for name in names:
            self.ready(f"app={name}")

    def ready(self, selector: str) -> None:
        self.until("a pod", lambda: self.pods(selector))
        self.kubectl("wait", "--for=condition=Ready", "pod", "-l", selector, "--timeout=40s")


@contextlib.asynccontextmanager
async def ended(place: KubePlace) -> AsyncIterator[KubePlace]:
    try:
        yield place
    finally:
        await place.remove_agent()


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


class App(boxes.App):
    """`python` runs a program beside the app, in its namespaces."""

    def python(self, program: str, limit_s: float = 30) -> Any:
        """What `program` prints, as JSON."""
        ran = self.run("python3", "-c", program, limit_s=limit_s)
        assert ran.code == 0, f"code {ran.code}: {ran.err[-2000:]}"
        return json.loads(ran.out)

    def asks(self, host: str, port: int = 8080) -> Json:
        """The JSON line that target.py says first, and the socket's own name."""
        return self.python(f"""
import json, socket
with socket.create_connection(({host!r}, {port}), timeout=10) as sock:
    answer = json.loads(sock.makefile("rb").readline())
    print(json.dumps(answer | {{"sockname": sock.getsockname()[0]}}))""")


# As process 1 a plain sleep would ignore the signal that ends the session.
_IDLE = ("sh", "-c", "trap 'exit 0' TERM; sleep infinity & wait")


@contextlib.contextmanager
def bridged(namespace: Namespace, target: str, *options: str, cli: Cli | None = None) -> Iterator[App]:
    """`mbridge run` in the background, until its app runs."""
    cli = cli or namespace.cli
    name = f"mbt-{secrets.token_hex(4)}"
    client = docker.from_env()
    try:
        with boxes.run_behind(client, cli, name, "-n", namespace.name, *options, target, TARGET_IMAGE, *_IDLE) as app:
            yield App(app.container, cli, app.process)
    finally:
        end_sessions(cli)
        client.close()


def end_sessions(cli: Cli) -> None:
    """Those whose `mbridge run` was killed, by a test or by its time limit; all others have undone themselves."""
    if any(cli.state.glob("mbridge/*/status.json")):
        cli.run("down", "--all", limit_s=60)

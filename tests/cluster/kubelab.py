"""The lab of the container tests as pods: the same servers, the same questions, another way to the target.

    server   every kind of answer, DNS of lab.test       target   what is bridged to; resolves by `server`
    insider  a pod beside the target: what it would see

Limits: no network of its own, so what only a bypass could show (outsider, sentinel) is not asked here.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import docker
import pytest

from tests.cluster.kube import Cluster
from tests.lab import images
from tests.lab.boxes import PROBES, Box, Ran, eventually
from tests.lab.dockerlab import ENVIRON, Lab

Json = dict[str, Any]


@dataclass
class PodBox(Box):
    """A running pod with one container; commands by kubectl exec."""

    cluster: Cluster
    namespace: str
    pod: str

    @property
    def name(self) -> str:
        return self.pod

    def command(self, *words: str) -> list[str]:
        return [*self.cluster.kubectl_command, "-n", self.namespace, "exec", self.pod, "--", *words]

    def run(self, *command: str, limit_s: float = 30, user: str = "", env: dict[str, str] | None = None) -> Ran:
        assert not user, "kubectl exec knows no user"
        words = ["env", *(f"{key}={value}" for key, value in (env or {}).items()), "timeout", "-k", "2", str(limit_s), *command]
        done = subprocess.run(self.command(*words), capture_output=True, timeout=limit_s + 10, check=False)
        return Ran(done.returncode, done.stdout.decode(errors="surrogateescape"), done.stderr.decode(errors="replace"))

    def probing(self, probe_name: str, limit_s: float = 120, **arguments: Any) -> Any:
        words = ["timeout", "-k", "2", str(limit_s), "python3", "-c", PROBES, probe_name, json.dumps(arguments)]
        return _Probing(subprocess.Popen(self.command(*words), stdout=subprocess.PIPE))

    def addresses(self) -> dict[str, str]:
        return {"pod": self.ip(4)}

    def ip(self, version: int) -> str:
        found = json.loads(self.cluster.kubectl("-n", self.namespace, "get", "pod", self.pod, "-o", "json"))
        address = next((str(one["ip"]) for one in found["status"]["podIPs"] if (":" in one["ip"]) == (version == 6)), None)
        if address is None:
            pytest.skip(f"lacks(pods with IPv{version})")
        return address


class _Probing:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._out = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        self._out = self._process.stdout.read()

    def answer(self) -> Any:
        self._reader.join()
        code = self._process.wait()
        assert code == 0, f"code {code}: {self._out.decode(errors='replace')[-2000:]}"
        return json.loads(self._out.splitlines()[-1])


@dataclass
class KubeLab(Lab):
    cluster: Cluster | None = None
    namespace: str = ""
    _ips: dict[str, str] = field(default_factory=dict)

    def address(self, last: int) -> str:
        """Of the server (10) and the target (20); any other is one that no pod has."""
        known = {10: "server", 20: "target"}
        return self._ip(known[last], 4) if last in known else f"{self.server_ip.rpartition('.')[0]}.{last + 150}"

    @property
    def server_ip(self) -> str:
        return self._ip("server", 4)

    @property
    def server_ip6(self) -> str:
        return self._ip("server", 6)

    @property
    def target_ip(self) -> str:
        return self._ip("target", 4)

    @property
    def target_ip6(self) -> str:
        return self._ip("target", 6)

    @property
    def outside(self) -> str:
        return "bridge"  # the engine's own network

    def _ip(self, name: str, version: int) -> str:
        key = f"{name}{version}"
        if key not in self._ips:
            box = self.boxes[name]
            assert isinstance(box, PodBox)
            self._ips[key] = box.ip(version)
        return self._ips[key]

    def up(self) -> None:
        assert self.cluster is not None
        own = {"name": "OWN", "valueFrom": {"fieldRef": {"fieldPath": "status.podIPs"}}}
        net_admin = {"capabilities": {"add": ["NET_ADMIN"]}}
        serve = ["sh", "-c", "exec python3 server.py --dns ${OWN%%,*} --dns6 ${OWN##*,}"]
        self._pod("server", self.lab_image, serve, env=[own], securityContext=net_admin)
        self._ready("server")
        resolving: Json = {
            "dnsPolicy": "None",
            "dnsConfig": {"nameservers": [self.server_ip], "searches": ["lab.test", "sub.lab.test"],
                          "options": [{"name": "ndots", "value": "1"}]},
            "hostAliases": [{"ip": self.server_ip, "hostnames": ["from-hosts"]}],
        }  # fmt: skip
        environ = [{"name": name, "value": value} for name, value in ENVIRON.items()]
        self._pod("target", self.lab_image, ["python3", "/lab/server.py", "--loopback"], resolving, env=environ, securityContext=net_admin)
        self._pod("insider", self.programs_image, ["sleep", "infinity"], resolving)
        for name in ("target", "insider"):
            self._ready(name)
        for tool in ("iptables", "ip6tables"):
            ran = self.server.run(tool, "-A", "INPUT", "-p", "tcp", "--dport", "7008", "-j", "DROP")
            assert ran.code == 0, ran.err
        eventually(lambda: self.server.run("python3", "-c", "import socket; socket.create_connection(('127.0.0.1', 7000))").code == 0)

    def _pod(self, name: str, image: str, command: list[str], spec: Json | None = None, **more: Any) -> None:
        assert self.cluster is not None
        container = {"name": "app", "image": image, "command": command, "imagePullPolicy": "IfNotPresent", **more}
        body = {"hostname": f"{name}-host", "terminationGracePeriodSeconds": 0, "containers": [container], **(spec or {})}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": body}
        self.cluster.kubectl("-n", self.namespace, "apply", "-f", "-", stdin=json.dumps(pod))
        self.boxes[name] = PodBox(None, self.cluster, self.namespace, name)  # type: ignore[arg-type]  # a pod is no container of the engine's

    def _ready(self, name: str) -> None:
        assert self.cluster is not None
        self.cluster.kubectl("-n", self.namespace, "wait", "--for=condition=Ready", f"pod/{name}", "--timeout=40s")


@contextlib.contextmanager
def kube_lab(cluster: Cluster, namespace: str) -> Iterator[KubeLab]:
    """In a namespace that exists; pods go with it."""
    client = docker.from_env(timeout=600)
    lab_image, programs_image = images.ensure(client, "lab"), images.ensure(client, "programs")
    cluster.load(lab_image, programs_image)
    lab = KubeLab(client, "kube", 0, lab_image, programs_image, cluster=cluster, namespace=namespace)
    lab.up()
    yield lab

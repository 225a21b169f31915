"""The lab on a Docker engine: the target's network, which nothing else reaches, and the developer's network, which is watched.

        inside (internal, IPv4 and IPv6)                         outside (the developer's)
    server  .10  every kind of answer (server.py), DNS       outsider  a container without mbridge: shows the bypass
    target  .20  mbridge's target; serves loopback too       sentinel  counts packets on their way to `inside` here
    insider .30  a container without mbridge: what the target itself would see; the truth to compare with

Limits: one local Linux engine (the sentinel looks at a device of the host). Everything carries the label mbridge.test.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import docker
import docker.errors
import docker.types

from tests.lab import images
from tests.lab.boxes import Box, eventually

ENVIRON = {"LAB_PLAIN": "plain value", "LAB_LINES": "first\nsecond\n", "LAB_EMPTY": "", "AWS_REGION": "lab-1", "PGHOST": "server"}
# The target's own process has what no container API can carry: bytes that are not UTF-8.
_TARGET = (
    "import os; os.environb[b'LAB_RAW'] = b'\\xff\\xfe='; os.environb[b'LAB_SET_BY_PROCESS'] = b'yes'; "
    "os.execvp('python3', ['python3', '/lab/server.py', '--loopback'])"
)


def _labels() -> dict[str, str]:
    return {"mbridge.test": str(os.getpid())}


@dataclass
class Lab:
    client: docker.DockerClient
    tag: str
    number: int
    lab_image: str
    programs_image: str
    boxes: dict[str, Box] = field(default_factory=dict)
    networks: dict[str, Any] = field(default_factory=dict)

    # where things are

    def address(self, last: int) -> str:
        return f"10.201.{self.number}.{last}"

    def address6(self, last: int) -> str:
        return f"fd00:201:{self.number}::{last}"

    @property
    def server_ip(self) -> str:
        return self.address(10)

    @property
    def server_ip6(self) -> str:
        return self.address6(10)

    @property
    def target_ip(self) -> str:
        return self.address(20)

    @property
    def target_ip6(self) -> str:
        return self.address6(20)

    @property
    def server(self) -> Box:
        return self.boxes["server"]

    @property
    def target(self) -> Box:
        return self.boxes["target"]

    @property
    def insider(self) -> Box:
        return self.boxes["insider"]

    @property
    def outsider(self) -> Box:
        return self.boxes["outsider"]

    @property
    def outside(self) -> str:
        return f"mbt-outside-{self.tag}"

    @property
    def inside(self) -> str:
        return f"mbt-inside-{self.tag}"

    # what has been seen

    def events(self) -> list[dict[str, Any]]:
        """What the server has noted, asked from within its own network."""
        return list(self._http("/events"))

    def event(self, **wanted: Any) -> dict[str, Any]:
        def found() -> dict[str, Any] | None:
            return next((one for one in self.events() if wanted.items() <= one.items()), None)

        event = eventually(found, limit_s=10)
        assert event is not None
        return dict(event)

    def asked(self, name: str) -> int:
        """How often the lab's DNS was asked for `name`."""
        return int(self._http(f"/dns?name={name}"))

    def _http(self, path: str) -> Any:
        ran = self.server.run(
            "python3", "-c", f"import urllib.request as u; print(u.urlopen('http://127.0.0.1:7000{path}').read().decode())"
        )
        return ran.json

    def strays(self) -> list[dict[str, str]]:
        """Packets on the developer's network that were on their way to the target's, the outsider's own left out."""
        lines = self.boxes["sentinel"].container.logs().decode().splitlines()
        own = self.outsider.addresses()[self.outside]
        return [stray for stray in (json.loads(line) for line in lines if line.startswith("{")) if stray["source"] != own]

    # making

    def box(self, name: str, image: str, command: list[str], **options: Any) -> Box:
        """A container, remembered and removed with the lab. `at`: its last octet on the inside network."""
        at, aliases = options.pop("at", None), options.pop("aliases", None)
        config: dict[str, Any] = {"labels": _labels(), "detach": True, "init": True, "stop_signal": "SIGKILL", **options}
        if at is not None:
            endpoint = self.client.api.create_endpoint_config(
                ipv4_address=self.address(at), ipv6_address=self.address6(at), aliases=[name, *(aliases or [])]
            )
            config |= {"network": self.inside, "networking_config": {self.inside: endpoint}}
        host = {
            key: config.pop(key)
            for key in ("binds", "cap_add", "dns", "dns_search", "dns_opt", "init", "network_mode", "extra_hosts")
            if key in config
        }
        labels, detach, network = config.pop("labels"), config.pop("detach"), config.pop("network", None)
        networking = config.pop("networking_config", None)
        made = self.client.api.create_container(
            image, command, name=f"mbt-{name}-{self.tag}", labels=labels, detach=detach,
            host_config=self.client.api.create_host_config(**({"network_mode": network} if network else {}), **host),
            networking_config=self.client.api.create_networking_config(networking) if networking else None, **config,
        )  # fmt: skip
        box = Box(self.client.containers.get(made["Id"]))
        self.boxes[name] = box
        box.container.start()
        return box

    def make_target(self, name: str, at: int, **options: Any) -> Box:
        settings: dict[str, Any] = {
            "hostname": f"{name}-host", "environment": ENVIRON, "cap_add": ["NET_ADMIN"], "dns": [self.server_ip],
            "dns_search": ["lab.test", "sub.lab.test"], "dns_opt": ["ndots:1"], "at": at,
            "extra_hosts": {"from-hosts": self.server_ip}, "init": False, **options,
        }  # fmt: skip
        box = self.box(name, self.lab_image, ["python3", "-c", _TARGET], **settings)
        wait_ready(box)
        return box

    @contextlib.contextmanager
    def another_target(self, at: int, **options: Any) -> Iterator[Box]:
        """A target of one test alone, for what would disturb others."""
        box = self.make_target(f"target{at}", at, **options)
        try:
            yield box
        finally:
            box.container.remove(force=True)
            self.boxes.pop(f"target{at}", None)

    def up(self) -> None:
        pools = docker.types.IPAMPool
        inside = docker.types.IPAMConfig(
            pool_configs=[pools(subnet=f"10.201.{self.number}.0/24"), pools(subnet=f"fd00:201:{self.number}::/64")]
        )
        outside = docker.types.IPAMConfig(pool_configs=[pools(subnet=f"10.202.{self.number}.0/24")])
        self.networks["inside"] = self.client.networks.create(self.inside, internal=True, enable_ipv6=True, ipam=inside, labels=_labels())
        self.networks["outside"] = self.client.networks.create(
            self.outside, ipam=outside, labels=_labels(), options={"com.docker.network.bridge.name": f"mbt{self.tag}"}
        )
        sleep = ["sleep", "infinity"]
        resolving = {"dns": [self.server_ip], "dns_search": ["lab.test", "sub.lab.test"], "dns_opt": ["ndots:1"]}
        server = ["python3", "server.py", "--dns", self.server_ip, "--dns6", self.server_ip6]
        self.box("server", self.lab_image, server, hostname="server-host", cap_add=["NET_ADMIN"], at=10, aliases=["neighbour"])
        self.make_target("target", 20)
        self.box("insider", self.programs_image, sleep, at=30, extra_hosts={"from-hosts": self.server_ip}, **resolving)
        self.box("outsider", self.programs_image, sleep, network=self.outside, hostname="outsider-host")
        capture = ["python3", "capture.py", f"mbt{self.tag}", f"10.201.{self.number}.0/24", f"fd00:201:{self.number}::/64"]
        self.box("sentinel", self.lab_image, capture, network="host", cap_add=["NET_RAW"])
        for name in ("server", "target", "sentinel"):
            wait_ready(self.boxes[name])
        for tool in ("iptables", "ip6tables"):
            ran = self.server.run(tool, "-A", "INPUT", "-p", "tcp", "--dport", "7008", "-j", "DROP")
            assert ran.code == 0, ran.err

    def down(self) -> None:
        for box in self.boxes.values():
            with contextlib.suppress(docker.errors.NotFound):
                box.container.remove(force=True, v=True)
        for network in self.networks.values():
            with contextlib.suppress(docker.errors.APIError):
                network.remove()


def wait_ready(box: Box, limit_s: float = 20) -> None:
    eventually(lambda: "ready" in box.container.logs().decode(errors="replace"), limit_s=limit_s)


def sweep(client: docker.DockerClient) -> None:
    """Remove what runs of tests that are no more have left, their sessions too."""
    for app in client.containers.list(all=True, filters={"name": "mbt-app-", "label": "mbridge.session"}):
        pid = str(app.name).split("-")[2]
        if pid.isdigit() and not os.path.exists(f"/proc/{pid}"):
            session = app.labels["mbridge.session"]
            with contextlib.suppress(docker.errors.APIError):
                for part in client.containers.list(all=True, filters={"label": f"mbridge.session={session}"}):
                    part.remove(force=True, v=True)
                for volume in client.volumes.list(filters={"name": f"mbridge-{session}"}):
                    volume.remove()
    for kind in (
        client.containers.list(all=True, filters={"label": "mbridge.test"}),
        client.networks.list(filters={"label": "mbridge.test"}),
    ):
        for one in kind:
            labels = one.attrs.get("Labels") or one.attrs.get("Config", {}).get("Labels") or {}
            pid = labels.get("mbridge.test", "")
            if pid.isdigit() and not os.path.exists(f"/proc/{pid}"):
                with contextlib.suppress(docker.errors.APIError):
                    one.remove(**({"force": True, "v": True} if hasattr(one, "kill") else {}))


@contextlib.contextmanager
def docker_lab(client: docker.DockerClient) -> Iterator[Lab]:
    sweep(client)
    lab_image, programs_image = images.ensure(client, "lab"), images.ensure(client, "programs")
    for attempt in range(20):
        lab = Lab(client, f"{os.getpid() % 100000}{'abcdefghijklmnopqrst'[attempt]}", random.randrange(1, 250), lab_image, programs_image)
        try:
            lab.up()
            break
        except docker.errors.APIError as error:
            lab.down()
            if attempt == 19 or "overlap" not in str(error.explanation):
                raise
            time.sleep(0.1)
        except BaseException:
            lab.down()
            raise
    try:
        yield lab
    finally:
        lab.down()

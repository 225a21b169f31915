"""Four network namespaces, and the bridge's real wiring in one of them.

    dev  172.30.0.1 ════ ses  172.30.0.2          tgt 10.77.0.3 ════ clu 10.77.0.9, 10.78.0.1
    the developer's network │ the session: bridge, app      │ the target           │ the target's network

The twins: `dev` answers at the cluster's addresses too, so a flow that went astray would be answered, and answered by "dev";
besides, every packet that reaches `dev` for an address outside its own network is a stray, and each test ends with none.
Programs of the app run in threads of this process that have entered `ses`, or as real processes by `world.app_run`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from bridge.model.facts import BridgeConfig, Facts
from bridge.protocol import door
from tests.lab import answering
from tests.lab.netns import WAIT_S, Netns, Sentinel
from tests.lab.parts import ROOT, Agent, Host, end

HERE = Path(__file__).parent
PORT = 7000  # each place answers here, over TCP and UDP: "place peer-address", then an echo
TARGET, TARGET6 = "10.77.0.3", "fd77::3"
SERVER, SERVER6 = "10.77.0.9", "fd77::9"
FAR = "10.78.0.1"  # one hop past the target's own network
SILENT = "10.77.0.66"
_OWN_NETWORKS = ("172.30.0.0/24", "fd30::/64", "fe80::/10", "ff00::/8", "224.0.0.0/4")
CLUSTER_NAMES = {"db.shop.svc": SERVER, "far.shop.svc": FAR, "api.corp.example": FAR}
DEV_NAMES = {"api.corp.example": "172.30.0.1", "db.shop.svc": "172.30.0.1", "sibling": "10.78.0.3"}
_numbers = itertools.count()

FACTS = Facts(
    hostname="orders-1",
    addresses=("10.77.0.3/24", "fd77::3/64"),
    resolv_conf="search shop.svc\nnameserver 10.77.0.9\noptions ndots:2\n",
    hosts="10.77.0.9 in-hosts\n",
)

# 10.79.0.0/24 has no host, 203.0.113.0/24 no route, SILENT takes packets and says nothing
_SETUP = """
link add {ses0} type veth peer name {dev0}
link set {ses0} netns {ses} name eth0
link set {dev0} netns {dev} name eth0
link add {tgt0} type veth peer name {clu0}
link set {tgt0} netns {tgt} name eth0
link set {clu0} netns {clu} name eth0
"""
_INSIDE = {
    "dev": "addr add 172.30.0.1/24 dev eth0\naddr add fd30::1/64 dev eth0 nodad\n"
    "addr add 10.77.0.9/32 dev lo\naddr add 10.78.0.1/32 dev lo\naddr add fd77::9/128 dev lo nodad\naddr add 10.77.0.3/32 dev lo\n",
    "ses": "addr add 172.30.0.2/24 dev eth0\naddr add fd30::2/64 dev eth0 nodad\n",
    "tgt": "addr add 10.77.0.3/24 dev eth0\naddr add fd77::3/64 dev eth0 nodad\n",
    "clu": "addr add 10.77.0.9/24 dev eth0\naddr add fd77::9/64 dev eth0 nodad\naddr add 10.77.0.66/24 dev eth0\n"
    "addr add 10.78.0.1/32 dev lo\n",
}
_ROUTES = {
    "dev": "",
    "ses": "route add default via 172.30.0.1\nroute add default via fd30::1\n",
    "tgt": "route add 10.78.0.0/16 via 10.77.0.9\nroute add unreachable 10.79.0.0/24\n",
    "clu": "",
}


def _lacking() -> str | None:
    if os.geteuid() != 0:
        return "root (network namespaces, NET_ADMIN)"
    for tool in ("ip", "nft", "nsenter", "unshare", "iptables-restore"):
        if shutil.which(tool) is None:
            return tool
    return None if Path("/dev/net/tun").exists() else "/dev/net/tun"


class World:
    """The four namespaces with their servers, and a bridge in `ses` once `start()` was called."""

    def __init__(
        self, folder: Path, link: str, rules: tuple[dict[str, Any], ...], loopback: tuple[int, ...], hold: bool, facts: Facts
    ) -> None:
        self.folder = folder
        self.door = folder / "bridge.sock"
        self.facts = facts
        self.hold = hold
        self.link = link
        self.hand = folder / "hand" if link == "handed" else None
        self.slow_nft_s = 0
        self.agent: Agent | None = None
        self.key = asyncssh.generate_private_key("ssh-ed25519")
        self.config = BridgeConfig("abcdef", "docker/orders", "KEY", "ssh-ed25519 AAAA", "00" * 8, rules, loopback)
        self.log = folder / "bridge.log"
        self._stack = contextlib.ExitStack()
        self.bridge: subprocess.Popen[bytes] | None = None
        self.host: Host | None = None
        self.ready: door.Ready | None = None
        self._number = next(_numbers)
        names = {short: f"mbt-{os.getpid()}-{self._number}{short[0]}" for short in _INSIDE}
        made = {}
        for short, name in names.items():
            made[short] = Netns(name)
            self._stack.callback(made[short].close)
        self.dev, self.ses, self.tgt, self.clu = made["dev"], made["ses"], made["tgt"], made["clu"]

    def set_up(self) -> None:
        names = {netns: getattr(self, netns).name for netns in _INSIDE}
        links = {f"{short}0": f"mb{os.getpid() % 100000}{self._number}{short[0]}" for short in _INSIDE}
        subprocess.run(["ip", "-batch", "-"], input=_SETUP.format(**names, **links), text=True, check=True, timeout=WAIT_S)
        for short, batch in _INSIDE.items():
            netns: Netns = getattr(self, short)
            netns.ip(f"link set lo up\nlink set eth0 up\n{batch}{_ROUTES[short]}")
        self.tgt.call("sysctl", "-qw", "net.ipv4.ping_group_range=0 2147483647")
        self.clu.call("iptables", "-A", "INPUT", "-d", SILENT, "-j", "DROP")
        # what the engine sets on pause's netns when it makes it
        conf = "net.ipv4.conf.all"
        self.ses.call("sysctl", "-qw", f"{conf}.arp_ignore=1", f"{conf}.arp_announce=2", f"{conf}.rp_filter=2")
        self.sentinel = Sentinel(self.dev, _OWN_NETWORKS)
        self._stack.callback(self.sentinel.close)
        for netns, place in ((self.dev, "dev"), (self.clu, "cluster"), (self.tgt, "target")):
            for address in ("0.0.0.0", "::"):
                self._stack.callback(answering.tcp(netns, address, PORT, place))
        for netns, place, addresses in (
            (self.clu, "cluster", (SERVER, SERVER6, FAR)),
            (self.dev, "dev", ("172.30.0.1", SERVER, SERVER6, FAR)),
        ):
            for address in addresses:  # bound to each, so that an answer comes from the address that was asked
                self._stack.callback(answering.udp(netns, address, PORT, place))
        self._stack.callback(answering.dns(self.clu, SERVER, CLUSTER_NAMES))
        self._stack.callback(answering.dns(self.dev, "172.30.0.1", DEV_NAMES))
        for name, text in (("resolv.conf", "nameserver 172.30.0.1\n"), ("hosts", "127.0.0.1 localhost\n172.30.0.2 own-name\n")):
            (self.folder / name).write_text(text)
        mounts = [f"mount --bind {self.folder}/{name} /etc/{name}" for name in ("resolv.conf", "hosts")]
        if self.link != "fake":
            mounts += ["mount -t tmpfs none /run", "mkdir /run/mbridge", f"mount --bind {self.folder} /run/mbridge"]
        if self.hand is not None:
            self.hand.mkdir()
            mounts += ["mkdir /run/mbridge-hand", f"mount --bind {self.hand} /run/mbridge-hand"]
        self.pause = subprocess.Popen(
            ["nsenter", f"--net={self.ses.path}", "unshare", "-m", "sh", "-c", f"{' && '.join(mounts)} && echo up && exec sleep 100000"],
            stdout=subprocess.PIPE,
        )
        self._stack.callback(end, self.pause)
        assert self.pause.stdout is not None
        assert self.pause.stdout.readline() == b"up\n"
        self._stack.callback(self.pause.stdout.close)
        if self.link != "fake":
            self.start_agent()

    def start_agent(self) -> None:
        """An agent (a new one, if there was one) in the target."""
        if self.agent is not None:
            self.agent.close()
        self.agent = Agent(self.tgt, self.folder, self.facts, self.key, self.hand)
        self._stack.callback(self.agent.close)
        private_key, host_key, agent_id = self.agent.private_key, self.agent.host_key, self.agent.agent_id
        self.config = dataclasses.replace(self.config, private_key=private_key, host_key=host_key, agent_id=agent_id)

    def start(self) -> door.Ready:
        """A bridge (a new one, if there was one) wires the session."""
        facts = json.dumps(self.facts.to_json())
        script = [str(HERE / "fake_sidecar.py"), str(self.door), self.tgt.path, facts, *([] if self.hold else ["no-hold"])]
        if self.link != "fake":
            script = ["-m", "bridge.sidecar"]
        self.door.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self.bridge = subprocess.Popen(
                [shutil.which("nsenter") or "nsenter", "-t", str(self.pause.pid), "-n", "-m", sys.executable, *script],
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(ROOT), "MBRIDGE_LOG": "debug", "PATH": self._path()},
            )
        self._stack.callback(end, self.bridge)
        self._await_door()
        self.take_over()
        assert self.ready is not None
        self.config = dataclasses.replace(self.config, engine_resolv_conf=self.ready.engine_resolv_conf)
        return self.ready

    def take_over(self) -> None:
        """A host process (a new one, if there was one) configures the bridge."""
        self.host = Host(self.door, self.agent.dial if self.agent else None)
        self._stack.callback(self.host.close)
        self.host.send(door.Configure(self.config))
        self.ready = self.host.until(door.Ready)
        if self.hand is not None:
            self.host.until(door.Status, lambda status: status.link.handed)

    def _path(self) -> str:
        """Where the real bridge is to find no packet queue, it gets an nft that knows no `queue`, and no iptables.

        Where `slow_nft_s` is set, an nft that takes so long over the table of redirects.
        """
        if self.hold and not self.slow_nft_s:
            return os.environ["PATH"]
        tools = self.folder / "tools"
        tools.mkdir(exist_ok=True)
        case = f"*redirect*) sleep {self.slow_nft_s};;" if self.hold else '*"queue num"*) exit 1;;'
        script = f'rules=$(cat); case "$rules" in {case} esac; printf "%s\\n" "$rules" | {shutil.which("nft")} "$@"'
        (tools / "nft").write_text(f"#!/bin/sh\nPATH={os.environ['PATH']}\n{script}\n")
        (tools / "nft").chmod(0o755)
        return f"{tools}:{os.environ['PATH']}" if self.hold else str(tools)

    def _await_door(self) -> None:
        assert self.bridge is not None
        for _ in range(WAIT_S * 100):
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(self.door))
                return
            if self.bridge.poll() is not None:
                raise AssertionError(f"the bridge ended: {self.log.read_text()[-3000:]}")
            threading.Event().wait(0.01)
        raise AssertionError("the bridge does not open its door")

    def kill_bridge(self) -> None:
        assert self.bridge is not None
        self.bridge.send_signal(signal.SIGKILL)
        self.bridge.wait(WAIT_S)

    def app_run(self, *command: str, timeout_s: float = 30) -> subprocess.CompletedProcess[str]:
        """A real program of the app: in the session's netns, with the session's /etc/resolv.conf and /etc/hosts."""
        return subprocess.run(
            ["nsenter", "-t", str(self.pause.pid), "-n", "-m", *command], capture_output=True, text=True, timeout=timeout_s, check=False
        )

    def python(self, code: str, *args: str) -> subprocess.CompletedProcess[str]:
        return self.app_run(sys.executable, "-c", code, *args)

    def close(self) -> None:
        self._stack.close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test runs over two links, unless its mark `links` or its module's LINKS names others.

    fake     the bridge's process dials in the target by itself      real     a real agent, by SSH
    handed   a real agent, which the app's connections are handed to
    """
    if "world" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("links")
        links = marker.args if marker is not None else getattr(metafunc.module, "LINKS", ("fake", "real"))
        metafunc.parametrize("world", links, indirect=True, scope="module")


@pytest.fixture(scope="module")
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A wired session. A test module says otherwise by RULES, LOOPBACK, HOLD, IPV6 and FACTS."""
    if (lacks := _lacking()) is not None:
        pytest.skip(f"netns: this machine lacks {lacks}")
    module = request.module
    made = World(
        tmp_path_factory.mktemp("session"),
        request.param,
        getattr(module, "RULES", ()),
        getattr(module, "LOOPBACK", ()),
        getattr(module, "HOLD", True),
        getattr(module, "FACTS", FACTS),
    )
    try:
        made.set_up()
        if not getattr(module, "IPV6", True):
            made.ses.call("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
        made.start()
        made.sentinel.strays()
        yield made
    finally:
        made.close()


@pytest.fixture(autouse=True)
def no_strays(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test did: nothing of it reached the developer's own network."""
    yield
    if "world" in request.fixturenames and "strays_allowed" not in request.keywords:
        assert request.getfixturevalue("world").sentinel.strays() == []

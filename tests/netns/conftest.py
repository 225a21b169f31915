"""Four network namespaces, and the bridge's real wiring in one of them.

    dev  172.30.0.1 ════ ses  172.30.0.2          tgt 10.77.0.3 ════ clu 10.77.0.9, 10.78.0.1
    the developer's network │ the session: bridge, app      │ the target           │ the target's network

The twins: `dev` answers at the cluster's addresses too, so a flow that went astray would be answered, and answered by "dev";
besides, every packet that reaches `dev` for an address outside its own network is a stray, and each test ends with none.
Programs of the app run in threads of this process that have entered `ses`, or as real processes by `world.app_run`.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import itertools
import json
import os
import queue
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, TypeVar

import asyncssh
import pytest

from bridge.model.facts import BridgeConfig, Facts
from bridge.protocol import door, preamble

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
_T = TypeVar("_T")
_CLONE_NEWNET = 0x40000000
_WAIT_S = 20
PORT = 7000  # each place answers here, over TCP and UDP: "place peer-address", then an echo
TARGET, TARGET6 = "10.77.0.3", "fd77::3"
SERVER, SERVER6 = "10.77.0.9", "fd77::9"
FAR = "10.78.0.1"  # one hop past the target's own network
SILENT = "10.77.0.66"
_OWN_NETWORKS = [ip_network(text) for text in ("172.30.0.0/24", "fd30::/64", "fe80::/10", "ff00::/8", "224.0.0.0/4")]

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


class Netns:
    """A named network namespace with threads inside; `run` and `submit` call a function there."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = f"/run/netns/{name}"
        subprocess.run(["ip", "netns", "add", name], check=True, timeout=_WAIT_S)
        self.threads = ThreadPoolExecutor(1500, thread_name_prefix=name, initializer=self._enter)

    def _enter(self) -> None:
        with open(self.path) as file:
            if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")

    def submit(self, function: Callable[..., _T], *args: Any) -> Future[_T]:
        return self.threads.submit(function, *args)

    def run(self, function: Callable[..., _T], *args: Any, timeout_s: float = 30) -> _T:
        return self.threads.submit(function, *args).result(timeout_s)

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> socket.socket:
        sock = self.run(socket.socket, family, kind, protocol)
        if not kind & socket.SOCK_NONBLOCK:
            sock.settimeout(_WAIT_S)
        return sock

    def listen(self, address: str, port: int) -> socket.socket:
        sock = self.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address, port))
        sock.listen(4096)
        return sock

    def connect(self, address: str, port: int) -> socket.socket:
        sock = self.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        try:
            sock.connect((address, port))
        except BaseException:
            sock.close()
            raise
        return sock

    def udp(self, address: str) -> socket.socket:
        return self.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)

    def ip(self, batch: str) -> None:
        subprocess.run(["ip", "-n", self.name, "-batch", "-"], input=batch, text=True, check=True, timeout=_WAIT_S)

    def call(self, *command: str) -> str:
        done = subprocess.run(["ip", "netns", "exec", self.name, *command], capture_output=True, text=True, timeout=_WAIT_S, check=True)
        return done.stdout

    def close(self) -> None:
        self.threads.shutdown(wait=False, cancel_futures=True)
        subprocess.run(["ip", "netns", "del", self.name], timeout=_WAIT_S, check=False)


class Sentinel:
    """Hears every packet that comes out of the session's veth."""

    def __init__(self, netns: Netns) -> None:
        self._sock = netns.run(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self._sock.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
        self._sock.bind(("eth0", 0))
        self._sock.setblocking(False)

    def settle(self) -> None:
        """Wait for what is under way: a packet crosses a veth at once, repetitions of a SYN and neighbour look-ups take 1 s."""
        threading.Event().wait(1.1)

    def strays(self) -> list[str]:
        """Packets since the last call whose destination is none of the developer's own network's."""
        found = []
        while True:
            try:
                frame, (_, ethertype, pkttype, *_) = self._sock.recvfrom(2048)
            except BlockingIOError:
                return found
            if pkttype == socket.PACKET_OUTGOING:
                continue
            if ethertype == 0x0800:
                source, destination, protocol = ip_address(frame[26:30]), ip_address(frame[30:34]), frame[23]
            elif ethertype == 0x86DD:
                source, destination, protocol = ip_address(frame[22:38]), ip_address(frame[38:54]), frame[20]
            elif ethertype == 0x0806 and frame[20:22] == b"\0\1" and ip_address(frame[38:42]) not in _OWN_NETWORKS[0]:
                found.append(f"arp who-has {ip_address(frame[38:42])}")
                continue
            else:
                continue
            if not any(destination in network for network in _OWN_NETWORKS if network.version == destination.version):
                found.append(f"{source} -> {destination} protocol {protocol}")

    def close(self) -> None:
        self._sock.close()


class Host:
    """The host CLI's end of one control connection: brings the carriers that are asked for, keeps what else is said."""

    def __init__(self, path: Path, dial: Callable[[], socket.socket] | None) -> None:
        self._path = path
        self._dial = dial
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.connect(str(path))
        self._sock.sendall(b'{"type": "control"}\n')
        self.heard: queue.Queue[door.Message | None] = queue.Queue()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        reader = door.LineReader()
        with contextlib.suppress(OSError):
            while data := self._sock.recv(65536):
                for line in reader.feed(data):
                    message = door.decode(line)
                    if isinstance(message, door.Dial):
                        self._bring(message)
                    else:
                        self.heard.put(message)
        self.heard.put(None)

    def _bring(self, asked: door.Dial) -> None:
        try:
            if self._dial is None:
                raise OSError("no agent")
            carrier = self._dial()
        except OSError as exc:
            self.send(door.CarrierFailed(asked.id, str(exc)))
            return
        with carrier, socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(self._path))
            line = json.dumps({"type": "carrier", "id": asked.id, "via": "direct"}).encode() + b"\n"
            socket.send_fds(sock, [line], [carrier.fileno()])

    def send(self, message: door.Message) -> None:
        self._sock.sendall(door.encode(message))

    def until(self, kind: type[_T], fact: Callable[[_T], bool] = lambda message: True) -> _T:
        """The next message of that kind for which `fact` holds."""
        while True:
            message = self.heard.get(timeout=_WAIT_S)
            if isinstance(message, kind) and fact(message):
                return message
            if message is None:
                raise EOFError(f"the bridge closed its door: {(self._path.parent / 'bridge.log').read_text()[-3000:]}")
            if isinstance(message, door.Failed):
                raise AssertionError(f"{message.error}: {message.message} ({message.hint})")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        self._thread.join(_WAIT_S)


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
        subprocess.run(["ip", "-batch", "-"], input=_SETUP.format(**names, **links), text=True, check=True, timeout=_WAIT_S)
        for short, batch in _INSIDE.items():
            netns: Netns = getattr(self, short)
            netns.ip(f"link set lo up\nlink set eth0 up\n{batch}{_ROUTES[short]}")
        self.tgt.call("sysctl", "-qw", "net.ipv4.ping_group_range=0 2147483647")
        self.clu.call("iptables", "-A", "INPUT", "-d", SILENT, "-j", "DROP")
        # what the engine sets on pause's netns when it makes it
        conf = "net.ipv4.conf.all"
        self.ses.call("sysctl", "-qw", f"{conf}.arp_ignore=1", f"{conf}.arp_announce=2", f"{conf}.rp_filter=2")
        self.sentinel = Sentinel(self.dev)
        self._stack.callback(self.sentinel.close)
        for place in ("dev", "clu", "tgt"):
            netns = getattr(self, place)
            for address in ("0.0.0.0", "::"):
                self._serve_tcp(netns, address, PORT)
        for netns, addresses in ((self.clu, (SERVER, SERVER6, FAR)), (self.dev, ("172.30.0.1", SERVER, SERVER6, FAR))):
            for address in addresses:  # bound to each, so that an answer comes from the address that was asked
                self._serve_udp(netns, address, PORT)
        self._serve_dns(self.clu, SERVER, CLUSTER_NAMES)
        self._serve_dns(self.dev, "172.30.0.1", DEV_NAMES)
        for name, text in (("resolv.conf", "nameserver 172.30.0.1\n"), ("hosts", "127.0.0.1 localhost\n172.30.0.2 own-name\n")):
            (self.folder / name).write_text(text)
        mounts = [f"mount --bind {self.folder}/{name} /etc/{name}" for name in ("resolv.conf", "hosts")]
        if self.link == "real":
            mounts += ["mount -t tmpfs none /run", "mkdir /run/mbridge", f"mount --bind {self.folder} /run/mbridge"]
        self.pause = subprocess.Popen(
            ["nsenter", f"--net={self.ses.path}", "unshare", "-m", "sh", "-c", f"{' && '.join(mounts)} && echo up && exec sleep 100000"],
            stdout=subprocess.PIPE,
        )
        self._stack.callback(_end, self.pause)
        assert self.pause.stdout is not None
        assert self.pause.stdout.readline() == b"up\n"
        self._stack.callback(self.pause.stdout.close)
        if self.link == "real":
            self.start_agent()

    def start_agent(self) -> None:
        """An agent (a new one, if there was one) in the target."""
        if self.agent is not None:
            self.agent.close()
        self.agent = Agent(self.tgt, self.folder, self.facts, self.key)
        self._stack.callback(self.agent.close)
        private_key, host_key, agent_id = self.agent.private_key, self.agent.host_key, self.agent.agent_id
        self.config = dataclasses.replace(self.config, private_key=private_key, host_key=host_key, agent_id=agent_id)

    def start(self) -> door.Ready:
        """A bridge (a new one, if there was one) wires the session."""
        facts = json.dumps(self.facts.to_json())
        script = [str(HERE / "fake_sidecar.py"), str(self.door), self.tgt.path, facts, *([] if self.hold else ["no-hold"])]
        if self.link == "real":
            script = ["-m", "bridge.sidecar"]
        self.door.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self.bridge = subprocess.Popen(
                [shutil.which("nsenter") or "nsenter", "-t", str(self.pause.pid), "-n", "-m", sys.executable, *script],
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(ROOT), "MBRIDGE_LOG": "debug", "PATH": self._path()},
            )
        self._stack.callback(_end, self.bridge)
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

    def _path(self) -> str:
        """Where the real bridge is to find no packet queue, it gets an nft that knows no `queue`, and no iptables."""
        if self.hold:
            return os.environ["PATH"]
        tools = self.folder / "tools"
        tools.mkdir(exist_ok=True)
        script = f'rules=$(cat); case "$rules" in *"queue num"*) exit 1;; esac; printf "%s\\n" "$rules" | {shutil.which("nft")} "$@"'
        (tools / "nft").write_text(f"#!/bin/sh\nPATH={os.environ['PATH']}\n{script}\n")
        (tools / "nft").chmod(0o755)
        return str(tools)

    def _await_door(self) -> None:
        assert self.bridge is not None
        for _ in range(_WAIT_S * 100):
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
        self.bridge.wait(_WAIT_S)

    def app_run(self, *command: str, timeout_s: float = 30) -> subprocess.CompletedProcess[str]:
        """A real program of the app: in the session's netns, with the session's /etc/resolv.conf and /etc/hosts."""
        return subprocess.run(
            ["nsenter", "-t", str(self.pause.pid), "-n", "-m", *command], capture_output=True, text=True, timeout=timeout_s, check=False
        )

    def python(self, code: str, *args: str) -> subprocess.CompletedProcess[str]:
        return self.app_run(sys.executable, "-c", code, *args)

    def _thread(self, netns: Netns, function: Callable[[], None]) -> None:
        netns.submit(function)

    def _serve_tcp(self, netns: Netns, address: str, port: int) -> None:
        listener = netns.listen(address, port)
        listener.settimeout(None)
        self._stack.callback(listener.close)
        self._stack.callback(_wake, listener)
        place = _place(netns)

        def talk(sock: socket.socket, peer: tuple[Any, ...]) -> None:
            with sock, contextlib.suppress(OSError):
                sock.settimeout(60)
                sock.sendall(f"{place} {peer[0]}\n".encode())
                while data := sock.recv(65536):
                    sock.sendall(data)

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    sock, peer = listener.accept()
                    threading.Thread(target=talk, args=(sock, peer), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()

    def _serve_udp(self, netns: Netns, address: str, port: int) -> None:
        sock = netns.udp(address)
        sock.settimeout(None)
        sock.bind((address, port))
        self._stack.callback(sock.close)
        self._stack.callback(_wake, sock)
        place = _place(netns)

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    data, peer = sock.recvfrom(65535)
                    if peer is None:
                        return
                    if data == b"who":
                        data = f"{place} {peer[0]}".encode()
                    sock.sendto(data, peer)

        threading.Thread(target=serve, daemon=True).start()

    def _serve_dns(self, netns: Netns, address: str, names: dict[str, str]) -> None:
        self._serve_dns_over_tcp(netns, address, names)
        sock = netns.udp(address)
        sock.settimeout(None)
        sock.bind((address, 53))
        self._stack.callback(sock.close)
        self._stack.callback(_wake, sock)

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    query, peer = sock.recvfrom(4096)
                    if peer is None:
                        return
                    sock.sendto(_answer(query, names), peer)

        threading.Thread(target=serve, daemon=True).start()

    def _serve_dns_over_tcp(self, netns: Netns, address: str, names: dict[str, str]) -> None:
        listener = netns.listen(address, 53)
        listener.settimeout(None)
        self._stack.callback(listener.close)
        self._stack.callback(_wake, listener)

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    sock, _ = listener.accept()
                    with sock:
                        sock.settimeout(5)
                        size = int.from_bytes(sock.recv(2, socket.MSG_WAITALL), "big")
                        answer = _answer(sock.recv(size, socket.MSG_WAITALL), names)
                        sock.sendall(len(answer).to_bytes(2, "big") + answer)

        threading.Thread(target=serve, daemon=True).start()

    def close(self) -> None:
        self._stack.close()


class Agent:
    """The real agent's process in the target's netns, with the target's /etc and host name."""

    def __init__(self, netns: Netns, folder: Path, facts: Facts, key: asyncssh.SSHKey) -> None:
        self.private_key = key.export_private_key().decode()
        self._netns = netns
        for name, text in (("agent-resolv.conf", facts.resolv_conf), ("agent-hosts", facts.hosts)):
            (folder / name).write_text(text)
        steps = [f"mount --bind {folder}/agent-{name} /etc/{name}" for name in ("resolv.conf", "hosts")]
        steps += [f"hostname {facts.hostname}", 'exec "$@"']
        serve = [sys.executable, "-m", "bridge.agent", "--listen", "loopback", "--key", key.export_public_key().decode().strip()]
        self._log = (folder / "agent.log").open("ab")
        self.process = subprocess.Popen(
            ["nsenter", f"--net={netns.path}", "unshare", "-m", "-u", "sh", "-c", " && ".join(steps), "sh", *serve],
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, "PYTHONPATH": str(ROOT), "MBRIDGE_AGENT_SOCKET": str(folder / "agent.sock")},
        )
        assert self.process.stdout is not None
        first = self.process.stdout.readline().decode().split()
        assert first[:2] == ["mbridge-agent", "1"], first
        self.agent_id, self.port, self.host_key = first[2], int(first[3]), " ".join(first[4:])

    def dial(self) -> socket.socket:
        sock = self._netns.connect("127.0.0.1", self.port)
        preamble.check(sock.recv(preamble.SIZE, socket.MSG_WAITALL), self.agent_id)
        return sock

    def close(self) -> None:
        _end(self.process)
        if self.process.stdout is not None:
            self.process.stdout.close()
        self._log.close()


_numbers = itertools.count()
CLUSTER_NAMES = {"db.shop.svc": SERVER, "far.shop.svc": FAR, "api.corp.example": FAR}
DEV_NAMES = {"api.corp.example": "172.30.0.1", "db.shop.svc": "172.30.0.1"}


def _answer(query: bytes, names: dict[str, str]) -> bytes:
    """One A record, or NXDOMAIN; no record for other types (RFC 1035 4.1)."""
    at, labels = 12, []
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode())
        at += 1 + query[at]
    question, kind = query[12 : at + 5], query[at + 1 : at + 3]
    address = names.get(".".join(labels).lower())
    if address is None:
        return query[:2] + struct.pack("!HHHHH", 0x8583, 1, 0, 0, 0) + question
    records = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 30, 4) + socket.inet_aton(address) if kind == b"\0\1" else b""
    return query[:2] + struct.pack("!HHHHH", 0x8580, 1, 1 if records else 0, 0, 0) + question + records


def _place(netns: Netns) -> str:
    return {"d": "dev", "c": "cluster", "t": "target", "s": "session"}[netns.name[-1]]


def _wake(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait(_WAIT_S)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test runs over both links, unless its module names LINKS."""
    if "world" in metafunc.fixturenames:
        metafunc.parametrize("world", getattr(metafunc.module, "LINKS", ("fake", "real")), indirect=True, scope="module")


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

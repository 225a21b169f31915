"""`docker network connect` while the session runs: its namespace gets an address more, and may lose it again."""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest

from bridge.protocol import door
from tests.lab.netns import Sentinel
from tests.netns.conftest import FAR, PORT, SERVER, WAIT_S, World

GATEWAY, GATEWAY6 = "10.78.0.3", "fd78::3"
OWN, OWN6 = "10.78.0.2/24", "fd78::2/64"  # FAR is in the first, and answers on the developer's side too
_T = TypeVar("_T")


def _place(world: World) -> str:
    """Who answers at FAR, an address that both sides have."""
    with world.ses.connect(FAR, PORT) as app:
        return app.recv(100).split()[0].decode()


def _eventually(answer: Callable[[], _T], wanted: _T) -> None:
    deadline = time.monotonic() + WAIT_S
    while (seen := answer()) != wanted:
        assert time.monotonic() < deadline, seen


@contextlib.contextmanager
def _joined(world: World, *addresses: str, allowed: tuple[str, ...] = ("10.78.0.0/24", "fd78::/64")) -> Iterator[Sentinel]:
    """A device `eth1`, as the engine makes it, to a gateway in the developer's namespace; the sentinel there."""
    names = [f"mb{world.pause.pid % 1000000}{end}" for end in "ab"]
    subprocess.run(["ip", "link", "add", names[0], "type", "veth", "peer", "name", names[1]], check=True, timeout=WAIT_S)
    for name, netns in zip(names, (world.ses, world.dev), strict=True):
        subprocess.run(["ip", "link", "set", name, "netns", netns.name], check=True, timeout=WAIT_S)
        netns.ip(f"link set {name} name eth1\nlink set eth1 up\n")
    world.dev.ip(f"addr add {GATEWAY}/24 dev eth1\naddr add {GATEWAY6}/64 dev eth1 nodad\n")
    sentinel = Sentinel(world.dev, (*allowed, "fe80::/10", "ff00::/8", "224.0.0.0/4"), "eth1")
    try:
        world.ses.ip("".join(f"addr add {address} dev eth1{' nodad' * (':' in address)}\n" for address in addresses))
        yield sentinel
    finally:
        sentinel.close()
        if " eth1@" in world.ses.call("ip", "link"):
            world.ses.ip("link del eth1\n")
        _eventually(lambda: _place(world), "cluster")


def test_a_network_is_the_apps_own_from_its_joining_to_its_leaving(world: World) -> None:
    assert _place(world) == "cluster"
    with _joined(world, OWN):
        _eventually(lambda: _place(world), "dev")
        with world.ses.udp(FAR) as app:
            app.sendto(b"who", (FAR, PORT))
            assert app.recv(100).startswith(b"dev")
        with world.ses.connect(SERVER, PORT) as app:
            assert app.recv(100).startswith(b"cluster"), "all else goes where it went"


def test_a_network_that_overlaps_the_targets_stays_the_targets(world: World) -> None:
    with _joined(world, "10.77.0.200/24", OWN):
        _eventually(lambda: _place(world), "dev")  # both have been looked at
        with world.ses.connect(SERVER, PORT) as app:
            assert app.recv(100).startswith(b"cluster")


def test_a_new_bridge_finds_what_was_joined_while_there_was_none(world: World) -> None:
    world.kill_bridge()
    try:
        with _joined(world, OWN):
            world.start()
            assert _place(world) == "dev"
    finally:
        if world.bridge is None or world.bridge.poll() is not None:
            world.start()


def test_A36_nothing_leaves_by_a_network_that_no_bridge_has_looked_at(world: World) -> None:
    """By any protocol, whether it would be the app's own or overlaps the target's."""
    world.kill_bridge()
    with _joined(world, OWN, OWN6, "10.77.0.200/24", "169.254.7.2/16", allowed=("192.0.2.0/24",)) as sentinel:
        try:
            for address in (FAR, SERVER, "10.78.0.255", "fd78::9", "169.254.7.9", "203.0.113.7"):
                _send_all(world, address)
            sentinel.settle()
            assert sentinel.strays() == []
        finally:
            world.start()


def test_A36_a_network_that_was_left_is_not_reached_by_the_default_route(world: World) -> None:
    with _joined(world, OWN, OWN6):
        assert world.host is not None
        world.host.send(door.Names(("sibling",)))
        _eventually(lambda: world.app_run("getent", "hosts", "sibling").stdout.split()[:1], [GATEWAY])
        with world.ses.connect(GATEWAY, PORT) as app:
            assert app.recv(100).startswith(b"dev")
        _eventually(lambda: _place(world), "dev")
        world.kill_bridge()
        try:
            world.ses.ip("link del eth1\n")
            for address in (FAR, GATEWAY, "fd78::9"):
                _send_all(world, address)
            world.sentinel.settle()
            assert world.sentinel.strays() == []
        finally:
            world.start()


def test_A36_a_route_that_the_engine_adds_is_no_way_out(world: World) -> None:
    with _routed(world, "203.0.113.0/24", "2001:db8::/32"):
        _eventually(lambda: "203.0.113.0/24" in world.ses.call("ip", "rule"), True)
        _eventually(lambda: "2001:db8::/32" in world.ses.call("ip", "-6", "rule"), True)
        for address in ("203.0.113.7", "2001:db8::7"):
            _send_all(world, address)
        world.sentinel.settle()
        assert world.sentinel.strays() == []


def test_A36_nor_is_one_that_no_bridge_has_seen_for_tcp_udp_and_icmp(world: World) -> None:
    world.kill_bridge()
    try:
        with _routed(world, "198.51.100.0/24", "2001:db9::/32"):
            for address in ("198.51.100.7", "2001:db9::7"):
                _send_all(world, address, but=((socket.SOCK_RAW, socket.IPPROTO_UDP), (socket.SOCK_DGRAM, 65535)))
            world.sentinel.settle()
            assert world.sentinel.strays() == []
    finally:
        world.start()


def test_A36_what_overlaps_the_targets_network_leaves_by_no_protocol(world: World) -> None:
    with _without_default(world), _joined(world, OWN, OWN6, "10.77.0.200/24", "fd77::200/64") as sentinel:
        _eventually(lambda: _place(world), "dev")
        world.ses.ip(f"route add default via {GATEWAY}\nroute add default via {GATEWAY6}\nroute add 203.0.113.0/24 via {GATEWAY}\n")
        _eventually(lambda: "203.0.113.0/24" in world.ses.call("ip", "rule"), True)
        for address in (SERVER, "10.77.0.77", "203.0.113.7", "fd77::9", "2001:db8::7"):
            _send_all(world, address)
        sentinel.settle()
        assert sentinel.strays() == []


@pytest.mark.parametrize("alive", [True, False])
def test_a_joined_network_may_become_the_default_gateway(world: World, alive: bool) -> None:
    """In the engine's words, at once after it has given the device its address: which device leads to the gateway? a route by it."""
    if not alive:
        world.kill_bridge()
    with _without_default(world), _joined(world, OWN, OWN6) as sentinel:
        for gateway in (GATEWAY, GATEWAY6):
            assert " dev eth1 " in world.ses.call("ip", "route", "get", gateway)
            world.ses.ip(f"route add default via {gateway} dev eth1\n")
        if not alive:
            world.start()
        _eventually(lambda: _place(world), "dev")
        with world.ses.connect(SERVER, PORT) as app:
            assert app.recv(100).startswith(b"cluster")
        for address in ("203.0.113.7", "2001:db8::7", "169.254.7.9"):
            _send_all(world, address)
        sentinel.settle()
        assert sentinel.strays() == []


def test_A24_what_the_engine_writes_at_a_joining_is_undone(world: World) -> None:
    files = [world.folder / "resolv.conf", world.folder / "hosts"]
    before = [file.read_text() for file in files]
    files[0].write_text("nameserver 127.0.0.11\n")
    files[1].write_text(f"{before[1]}10.78.0.2 orders-1\n")
    with _joined(world, OWN):
        _eventually(lambda: [file.read_text() for file in files], before)
        _eventually(lambda: _place(world), "dev")
        files[1].write_text("127.0.0.1 localhost\n")  # as it takes a network away, after the device
    _eventually(lambda: [file.read_text() for file in files], before)


@contextlib.contextmanager
def _without_default(world: World) -> Iterator[None]:
    """The engine has taken the default route of before away."""
    world.ses.ip("route del default\nroute del default via fd30::1\n")
    try:
        yield
    finally:
        world.ses.ip("route add default via 172.30.0.1\nroute add default via fd30::1\n")


@contextlib.contextmanager
def _routed(world: World, network: str, network6: str) -> Iterator[None]:
    """As a network driver of the engine may add routes of its own."""
    world.ses.ip(f"route add {network} via 172.30.0.1\nroute add {network6} via fd30::1\n")
    try:
        yield
    finally:
        world.ses.ip(f"route del {network}\nroute del {network6}\n")


def _send_all(world: World, address: str, but: tuple[tuple[int, int], ...] = ()) -> None:
    """One packet or more by each protocol that a program of the app's may use; no answer is expected."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    echo = b"\x08\0\xf7\xff\0\0\0\0" if family == socket.AF_INET else b"\x80\0\0\0\0\0\0\0"
    with world.ses.socket(family) as app:
        app.settimeout(0.05)
        with contextlib.suppress(OSError):
            app.connect((address, 7999))
    icmp = socket.IPPROTO_ICMP if family == socket.AF_INET else socket.IPPROTO_ICMPV6
    for kind, protocol, port in (
        (socket.SOCK_DGRAM, 0, 7999),
        (socket.SOCK_DGRAM, 0, 65535),
        (socket.SOCK_RAW, icmp, 0),
        (socket.SOCK_RAW, socket.IPPROTO_UDP, 0),
        (socket.SOCK_RAW, 132, 0),
        (socket.SOCK_RAW, 47, 0),
        (socket.SOCK_RAW, socket.IPPROTO_RAW, 0),
    ):
        if (kind, protocol or port) in but:
            continue
        with world.ses.socket(family, kind, protocol) as app, contextlib.suppress(OSError):
            app.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            app.sendto(_udp(address) if protocol == socket.IPPROTO_RAW else echo, (address, port))


def _udp(address: str) -> bytes:
    """A whole packet, as a raw socket that writes its own header sends one."""
    payload = struct.pack("!HHHH", 4000, 7999, 8, 0)
    if ":" in address:
        ends = (socket.inet_pton(socket.AF_INET6, end) for end in ("fd78::2", address))
        return struct.pack("!IHBB16s16s", 6 << 28, 8, socket.IPPROTO_UDP, 64, *ends) + payload
    ends = (socket.inet_aton(end) for end in ("10.78.0.2", address))
    return struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28, 0, 0, 64, socket.IPPROTO_UDP, 0, *ends) + payload

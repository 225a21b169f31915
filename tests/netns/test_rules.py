"""Rules of outgoing traffic, the app's own networks, published ports: who answers, and with which errno it is refused."""

from __future__ import annotations

import errno
import socket
import time

import pytest

RULES = (
    {"to": "10.78.0.1:7100-7199", "verdict": "cluster"},
    {"to": "10.78.0.0/16:7000", "verdict": "direct", "protocol": "tcp"},
    {"to": "10.78.0.0/16", "verdict": "deny"},
    {"to": "169.254.169.254", "verdict": "deny"},
    {"to": "*.corp.example", "verdict": "direct"},
    {"to": "far.shop.svc:7000", "verdict": "cluster"},
)
LOOPBACK = (7000,)
LINKS = ("fake", "real", "handed")


@pytest.fixture(autouse=True)
def direct_is_no_stray(world):
    """10.78.0.1:7000 is DIRECT here, so what goes there is no stray."""
    yield
    strays = [stray for stray in world.sentinel.strays() if "-> 10.78.0.1 protocol 6" not in stray]
    assert strays == []


def test_A20_the_first_rule_that_matches_wins(world) -> None:
    with world.ses.connect("10.78.0.1", 7000) as app:
        assert app.recv(100).startswith(b"dev 172.30.0.2")
        assert app.getsockname()[0] == "172.30.0.2"
    with world.ses.connect("10.77.0.9", 7000) as app:
        assert app.recv(100) == b"cluster 10.77.0.3\n"


def test_A20_a_range_of_ports(world) -> None:
    for port, expected in ((7100, 0), (7199, 0), (7200, errno.EACCES), (7099, errno.EACCES)):
        with world.clu.listen("10.78.0.1", port), world.ses.socket() as app:
            assert app.connect_ex(("10.78.0.1", port)) == expected


@pytest.mark.parametrize("address", ["10.78.0.1", "169.254.169.254"])
def test_A20_deny_is_permission_denied_at_once(world, address: str) -> None:
    started = time.monotonic()
    with world.ses.socket() as app:
        assert app.connect_ex((address, 80)) == errno.EACCES
    with world.ses.udp(address) as app, pytest.raises(PermissionError):
        app.connect((address, 80))
    assert time.monotonic() - started < 0.5


def test_A20_a_rule_of_tcp_leaves_udp_alone(world) -> None:
    with world.ses.udp("10.78.0.1") as app, pytest.raises(PermissionError):  # the third rule denies it
        app.connect(("10.78.0.1", 7000))


def test_A21_a_name_rule_matches_what_the_resolver_answered(world) -> None:
    """The cluster's DNS says 10.78.0.1 for this name; the developer's own says 172.30.0.1, and DIRECT names ask that one."""
    code = "import socket; s = socket.create_connection(('api.corp.example', 7000), 10); print(s.getpeername()[0], s.recv(100).decode())"
    assert world.python(code).stdout.split() == ["172.30.0.1", "dev", "172.30.0.2"]


def test_A21_a_name_rule_for_the_cluster_overrules_the_network_it_lies_in(world) -> None:
    code = "import socket; s = socket.create_connection(('far.shop.svc', 7000), 10); print(s.getpeername()[0], s.recv(100).decode())"
    done = world.python(code)
    assert done.stdout.split()[0] == "10.78.0.1", done.stderr


def test_the_apps_own_network_is_direct(world) -> None:
    for address, answer in (("172.30.0.1", b"dev 172.30.0.2\n"), ("fd30::1", b"dev fd30::2\n")):
        with world.ses.connect(address, 7000) as app:
            assert app.recv(100) == answer


def test_A18_a_mapped_port_of_loopback_reaches_the_targets_loopback(world) -> None:
    with world.ses.connect("127.0.0.1", 7000) as app:
        assert app.recv(100) == b"target 127.0.0.1\n"
    with world.ses.socket() as app:
        assert app.connect_ex(("127.0.0.1", 7001)) == errno.ECONNREFUSED


def test_A23_a_mapped_port_is_mapped_on_loopback_alone(world) -> None:
    with world.ses.listen("172.30.0.2", 7000) as listener, world.ses.connect("172.30.0.2", 7000) as app:
        own, _ = listener.accept()
        own.sendall(b"the app itself")
        assert app.recv(100) == b"the app itself"
        own.close()


def test_A22_a_published_port_is_reachable_and_its_replies_go_back_the_way_they_came(world) -> None:
    """From an address that is CLUSTER to the app: without the mark, the reply would go to the cluster."""
    world.dev.ip("addr add 10.80.0.1/32 dev lo\n")
    with world.ses.listen("0.0.0.0", 8000) as listener, world.dev.socket() as client:
        client.bind(("10.80.0.1", 0))
        client.connect(("172.30.0.2", 8000))
        server, peer = listener.accept()
        assert peer[0] == "10.80.0.1"
        server.sendall(b"welcome")
        assert client.recv(100) == b"welcome"
        server.close()
    assert [stray for stray in world.sentinel.strays() if "-> 10.80.0.1" not in stray] == []  # but the replies themselves


def test_A22_a_published_udp_port_answers_too(world) -> None:
    world.dev.ip("addr replace 10.80.0.2/32 dev lo\n")
    with world.ses.udp("0.0.0.0") as server, world.dev.udp("10.80.0.2") as client:
        server.bind(("172.30.0.2", 8001))
        client.bind(("10.80.0.2", 0))
        client.sendto(b"?", ("172.30.0.2", 8001))
        _, peer = server.recvfrom(100)
        assert peer[0] == "10.80.0.2"
        server.sendto(b"!", peer)
        assert client.recvfrom(100) == (b"!", ("172.30.0.2", 8001))
    assert [stray for stray in world.sentinel.strays() if "-> 10.80.0.2" not in stray] == []  # but the replies themselves


def test_A44_the_bridges_listeners_serve_nobody_who_comes_straight_to_them(world) -> None:
    ports = _listening_ports(world)
    assert len(ports) >= 2  # TCP flows, DNS
    for port in ports:
        for address in ("127.0.0.1", "::1"):
            with world.ses.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as app:
                assert app.connect_ex((address, port)) == errno.ECONNREFUSED, port
        with world.dev.socket() as neighbour:
            assert neighbour.connect_ex(("172.30.0.2", port)) == errno.ECONNREFUSED


def test_the_targets_address_is_not_answered_for_on_the_developers_network(world) -> None:
    """ARP: the session's netns may share a layer-2 network with the live target."""
    world.dev.ip("addr del 10.77.0.3/32 dev lo\n")
    try:
        world.dev.ip("route add 10.77.0.3/32 dev eth0\n")
        with world.dev.socket() as neighbour:
            neighbour.settimeout(5)
            assert neighbour.connect_ex(("10.77.0.3", 7000)) == errno.EHOSTUNREACH
    finally:
        world.dev.ip("route del 10.77.0.3/32 dev eth0\naddr add 10.77.0.3/32 dev lo\n")


def _listening_ports(world) -> list[int]:
    listening = world.ses.call("cat", "/proc/net/tcp").splitlines()[1:]
    return [int(line.split()[1].split(":")[1], 16) for line in listening if line.split()[3] == "0A"]

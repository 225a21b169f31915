"""UDP, ICMP echo and other protocols of the app."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct

import pytest

PLACES = [("10.77.0.9", b"cluster 10.77.0.3"), ("10.78.0.1", b"cluster 10.77.0.3"), ("fd77::9", b"cluster fd77::3")]


@pytest.mark.parametrize(("address", "answer"), PLACES)
def test_A14_a_connected_socket_speaks_as_the_target(world, address: str, answer: bytes) -> None:
    with world.ses.udp(address) as app:
        app.connect((address, 7000))
        assert app.getsockname()[0] == ("fd77::3" if ":" in address else "10.77.0.3")
        app.send(b"who")
        assert app.recv(100) == answer


def test_A14_one_socket_speaks_with_many_from_a_port_of_its_own_choice(world) -> None:
    with world.ses.udp("10.77.0.9") as app:
        app.bind(("0.0.0.0", 5353))
        for address in ("10.77.0.9", "10.78.0.1"):
            app.sendto(b"who", (address, 7000))
            data, peer = app.recvfrom(100)
            assert data == b"cluster 10.77.0.3"
            assert peer == (address, 7000)


def test_A14_an_answer_from_another_address_shows_its_real_source(world) -> None:
    with world.clu.udp("10.77.0.9") as one, world.clu.udp("10.77.0.9") as other, world.ses.udp("10.77.0.9") as app:
        one.bind(("10.77.0.9", 7010))
        other.bind(("10.78.0.1", 7011))
        app.sendto(b"?", ("10.77.0.9", 7010))
        _, target = one.recvfrom(100)
        other.sendto(b"!", target)
        assert app.recvfrom(100) == (b"!", ("10.78.0.1", 7011))


@pytest.mark.parametrize("address", ["10.77.0.9", "fd77::9"])
def test_A15_a_closed_port_is_connection_refused_on_a_connected_socket(world, address: str) -> None:
    with world.ses.udp(address) as app:
        app.connect((address, 9))
        app.send(b"?")
        with pytest.raises(ConnectionRefusedError):
            app.recv(100)


def test_A04_no_route_reaches_a_udp_socket_that_asks_for_such_errors(world) -> None:
    with world.ses.udp("10.79.0.5") as app:
        app.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR: without it the kernel keeps "host unreachable" to itself
        app.connect(("10.79.0.5", 9))
        app.send(b"?")
        with pytest.raises(OSError, match="No route to host") as caught:
            app.recv(100)
        assert caught.value.errno == errno.EHOSTUNREACH


@pytest.mark.parametrize("size", [0, 1, 1472, 8000, 65507])
@pytest.mark.parametrize("address", ["10.77.0.9", "fd77::9"])
def test_A16_datagrams_of_every_size_come_back_whole(world, size: int, address: str) -> None:
    data = os.urandom(size)
    with world.ses.udp(address) as app:
        app.connect((address, 7000))
        app.send(data)
        assert app.recv(65535) == data


@pytest.mark.parametrize("address", ["10.77.0.9", "10.78.0.1", "fd77::9"])
def test_A17_a_neighbour_of_the_targets_answers_an_echo(world, address: str) -> None:
    answer = _ping(world, address, timeout_s=10)
    assert answer == (address, b"mbridge ping")


def test_A17_a_silent_address_does_not(world) -> None:
    assert _ping(world, "10.77.0.66", timeout_s=0.5) is None


@pytest.mark.parametrize("protocol", [132, 47, 99])  # SCTP, GRE, none
def test_A47_another_protocol_is_refused_and_goes_nowhere(world, protocol: int) -> None:
    def send_twice(app: socket.socket) -> None:
        app.send(bytes(64))
        app.recv(100)  # the error of the first may be told here

    with world.ses.socket(socket.AF_INET, socket.SOCK_RAW, protocol) as app:
        app.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR
        app.settimeout(1)
        app.connect(("10.77.0.9", 0))
        with pytest.raises(OSError, match=r"No route|not permitted|unreachable|Protocol"):
            send_twice(app)


def test_A47_a_raw_tcp_segment_that_belongs_to_no_flow_goes_nowhere(world) -> None:
    with world.ses.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as app:
        for flags in (0x10, 0x04, 0x11):  # ACK, RST, FIN+ACK
            app.sendto(struct.pack("!HHIIBBHHH", 40000, 80, 1, 1, 0x50, flags, 1000, 0, 0), ("10.77.0.9", 0))
    with world.ses.connect("10.77.0.9", 7000) as app:  # what is asserted: no stray (the fixture), and life goes on
        assert app.recv(100) == b"cluster 10.77.0.3\n"


def test_multicast_and_broadcast_stay_quiet(world) -> None:
    with world.ses.udp("10.77.0.9") as app:
        app.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        for address in ("224.0.0.251", "255.255.255.255"):
            with contextlib.suppress(OSError):  # the kernel may know no such route
                app.sendto(b"anyone?", (address, 5353))
        app.settimeout(0.2)
        with pytest.raises(TimeoutError):
            app.recv(100)


def _ping(world, address: str, timeout_s: float) -> tuple[str, bytes] | None:
    """As ping(8) does it as root: a raw ICMP socket."""
    six = ":" in address
    body = struct.pack("!BBHHH", 128 if six else 8, 0, 0, 4711, 1) + b"mbridge ping"
    if not six:
        total = sum(struct.unpack("!10H", body))
        body = body[:2] + struct.pack("!H", ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF) + body[4:]
    family, protocol = (socket.AF_INET6, socket.IPPROTO_ICMPV6) if six else (socket.AF_INET, socket.IPPROTO_ICMP)
    with world.ses.socket(family, socket.SOCK_RAW, protocol) as app:
        app.settimeout(timeout_s)
        app.sendto(body, (address, 0))
        try:
            while True:
                packet, peer = app.recvfrom(1500)
                icmp = packet if six else packet[20:]
                if icmp[0] == (129 if six else 0) and icmp[4:6] == struct.pack("!H", 4711):
                    return peer[0], icmp[8:]
        except TimeoutError:
            return None

"""`ip route get` and the making of a route by a gateway, which engines do, have no protocol and no port to match: sockets have."""

from __future__ import annotations

import socket

import pytest

_RULES = """
addr add 10.0.0.1/24 dev lo
addr add 10.0.3.7/32 dev lo
addr add fd00::1/64 dev lo nodad
route add default dev lo src 10.0.3.7 table 77
rule add pref 10 ipproto tcp lookup 77
rule add pref 10 ipproto udp dport 1-65534 lookup 77
rule add pref 10 ipproto icmp lookup 77
rule add pref 10 ipproto 255 lookup 77
rule add pref 20 lookup main suppress_prefixlength 0
rule add pref 30 unreachable
"""
_RULES6 = """
rule add pref 10 ipproto tcp unreachable
rule add pref 10 ipproto udp unreachable
rule add pref 10 ipproto ipv6-icmp unreachable
rule add pref 20 lookup main suppress_prefixlength 0
rule add pref 30 unreachable
route add fd05::/64 dev lo
"""


def test_a_question_finds_what_is_connected_and_no_default(netns) -> None:
    netns.ip(_RULES)
    netns.ip("route add 10.5.0.0/24 dev lo\nroute add default via 10.5.0.9 dev lo onlink\n")
    netns.call("ip", "-6", "-batch", "-", text=_RULES6)
    assert "table 77" not in netns.call("ip", "route", "get", "10.5.0.9")
    assert "fd05::9" in netns.call("ip", "-6", "route", "get", "fd05::9")
    with pytest.raises(OSError, match="unreachable"):
        netns.call("ip", "route", "get", "203.0.113.7")


def test_a_route_by_a_gateway_can_be_made(netns) -> None:
    netns.ip(_RULES)
    netns.ip("route add 10.5.0.0/24 dev lo\nroute add default via 10.5.0.9 dev lo\n")
    with pytest.raises(OSError, match="invalid gateway"):
        netns.ip("route add 10.6.0.0/24 via 10.7.0.9 dev lo\n")


@pytest.mark.parametrize(
    ("kind", "protocol"),
    [(socket.SOCK_STREAM, 0), (socket.SOCK_DGRAM, 0), (socket.SOCK_RAW, socket.IPPROTO_ICMP), (socket.SOCK_RAW, socket.IPPROTO_RAW)],
)
def test_a_socket_does_not_get_that_far(netns, kind: int, protocol: int) -> None:
    netns.ip(_RULES)
    netns.ip("route add 10.5.0.0/24 dev lo src 10.0.0.1\n")
    with netns.socket(socket.AF_INET, kind, protocol) as app:
        app.setblocking(False)
        app.connect_ex(("10.5.0.9", 7))
        assert app.getsockname()[0] == "10.0.3.7"

"""A verdict as an `ip rule`: prohibit is EACCES for TCP and UDP, by protocol and port; the rule's table chooses the source address."""

from __future__ import annotations

import errno
import socket

import pytest


def test_prohibit_is_permission_denied(netns) -> None:
    netns.ip("addr add 10.0.0.1/24 dev lo\nrule add pref 1000 to 10.9.0.0/16 prohibit\nroute add default dev lo\n")
    with netns.socket() as app:
        assert app.connect_ex(("10.9.0.1", 80)) == errno.EACCES
    with netns.socket(socket.AF_INET, socket.SOCK_DGRAM) as app:
        assert app.connect_ex(("10.9.0.1", 80)) == errno.EACCES


def test_a_port_of_one_protocol(netns) -> None:
    netns.ip("addr add 10.9.0.1/16 dev lo\nrule add pref 1 to 10.8.0.0/16 ipproto tcp dport 80-90 prohibit\nroute add 10.8.0.0/16 dev lo\n")
    with netns.socket() as app:
        assert app.connect_ex(("10.8.0.1", 85)) == errno.EACCES
    with netns.socket(socket.AF_INET, socket.SOCK_DGRAM) as app:
        assert app.connect_ex(("10.8.0.1", 85)) == 0


def test_port_65535_has_no_rule(netns) -> None:
    netns.ip("rule add pref 1 to 10.8.0.0/16 ipproto tcp dport 1-65534 prohibit\n")
    with pytest.raises(OSError, match="Invalid"):
        netns.ip("rule add pref 1 to 10.8.0.0/16 ipproto tcp dport 1024-65535 prohibit\n")
    with pytest.raises(OSError, match="Invalid"):
        netns.ip("rule add pref 1 to 10.8.0.0/16 ipproto tcp dport 65535 prohibit\n")


def test_the_table_chooses_the_source_address(netns) -> None:
    netns.ip(
        "addr add 10.0.0.1/24 dev lo\naddr add 10.0.3.7/32 dev lo\nroute add default dev lo src 10.0.0.1\n"
        "route add default dev lo src 10.0.3.7 table 77\nrule add pref 1000 to 10.9.0.0/16 lookup 77\n"
    )
    for address, source in (("10.9.0.1", "10.0.3.7"), ("10.8.0.1", "10.0.0.1")):
        with netns.socket(socket.AF_INET, socket.SOCK_DGRAM) as app:
            app.connect((address, 1))
            assert app.getsockname()[0] == source


def test_the_same_rule_twice_is_refused_and_another_of_its_priority_is_not(netns) -> None:
    netns.ip("rule add pref 1000 to 10.9.0.0/16 prohibit\nrule add pref 1000 to 10.8.0.0/16 prohibit\n")
    with pytest.raises(OSError, match="File exists"):
        netns.ip("rule add pref 1000 to 10.9.0.0/16 prohibit\n")


def test_unreachable_beneath_takes_over_when_the_route_above_goes(netns) -> None:
    netns.ip(
        "addr add 10.0.0.1/24 dev lo\nroute add default dev lo\nrule add pref 1000 lookup 77\n"
        "route add default dev lo table 77 metric 100\nroute add unreachable default table 77 metric 4096\n"
    )
    with netns.socket(socket.AF_INET, socket.SOCK_DGRAM) as app:
        assert app.connect_ex(("10.9.0.1", 1)) == 0
    netns.ip("route del default dev lo table 77 metric 100\n")
    with netns.socket(socket.AF_INET, socket.SOCK_DGRAM) as app:
        assert app.connect_ex(("10.9.0.1", 1)) in (errno.EHOSTUNREACH, errno.ENETUNREACH)

"""A session whose netns has IPv6 switched off, with a target that has it: IPv4 works, IPv6 is refused and goes nowhere."""

from __future__ import annotations

import socket

import pytest

IPV6 = False


def test_ipv4_works(world) -> None:
    with world.ses.connect("10.77.0.9", 7000) as app:
        assert app.recv(100) == b"cluster 10.77.0.3\n"
    assert world.app_run("getent", "ahostsv4", "db").stdout.split()[:1] == ["10.77.0.9"]


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_ipv6_is_refused_at_once(world, kind: int) -> None:
    with world.ses.socket(socket.AF_INET6, kind) as app, pytest.raises(OSError, match=r"unreachable|Cannot assign|No route"):
        app.connect(("fd77::9", 7000))

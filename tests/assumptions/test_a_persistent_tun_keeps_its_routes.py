"""A persistent tun outlives the process that held it, with its routes; another takes its routes with it, and packets fall through."""

from __future__ import annotations

import fcntl
import os
import struct

import pytest

TUNSETIFF, TUNSETPERSIST = 0x400454CA, 0x400454CB


def _tun(persist: int) -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", b"mb-t", 0x1001))
    fcntl.ioctl(fd, TUNSETPERSIST, persist)
    return fd


@pytest.mark.parametrize(("persist", "stays"), [(1, True), (0, False)])
def test_routes_after_the_holders_death(netns, persist: int, stays: bool) -> None:
    fd = netns.run(_tun, persist)
    netns.ip("link set mb-t up\naddr add 10.0.0.1/32 dev mb-t\nroute add 10.1.0.0/16 dev mb-t\n")
    os.close(fd)
    assert ("10.1.0.0/16 dev mb-t" in netns.call("ip", "route")) == stays


def test_the_largest_mtu_is_that_of_the_largest_ipv4_packet(netns) -> None:
    fd = netns.run(_tun, 0)
    netns.ip("link set mb-t mtu 65535\n")
    with pytest.raises(OSError, match="mtu"):
        netns.ip("link set mb-t mtu 65536\n")
    os.close(fd)

"""With arp_ignore=1 a host does not answer for an address that is on another device of it: the pod's, on the tun."""

from __future__ import annotations

import errno

import pytest


@pytest.mark.parametrize(("ignore", "found"), [(1, False), (0, True)])
def test_a_neighbour_asks_for_an_address_of_another_device(make_netns, ignore: int, found: bool) -> None:
    session, neighbour = make_netns(), make_netns()
    session.ip(f"link add eth0 type veth peer name eth0 netns {neighbour.tid}\n")
    session.ip("link set eth0 up\naddr add 172.30.0.2/24 dev eth0\naddr add 10.0.3.7/32 dev lo\n")
    session.call("sysctl", "-qw", f"net.ipv4.conf.all.arp_ignore={ignore}")
    neighbour.ip("link set eth0 up\naddr add 172.30.0.1/24 dev eth0\nroute add 10.0.3.7/32 dev eth0\n")
    with session.listen("0.0.0.0", 80), neighbour.socket() as app:
        assert app.connect_ex(("10.0.3.7", 80)) == (0 if found else errno.EHOSTUNREACH)

"""nft's redirect in the output hook: SO_ORIGINAL_DST tells whom the app meant, and getpeername() still says so to the app.

And conntrack's own limit: a source port that an older connection to the same listener has is changed.
"""

from __future__ import annotations

import socket

import pytest

RULES = "table ip t {\nchain out {\ntype nat hook output priority -110;\nip daddr 10.9.0.0/16 meta l4proto tcp redirect to :15001\n}\n}\n"

_CHAIN = "type filter hook input priority -10;\ntcp dport 15001 ct status & dnat == 0 reject with tcp reset"
CLOSED = f"table ip u {{\nchain in {{\n{_CHAIN}\n}}\n}}\n"


@pytest.fixture
def redirected(netns):
    netns.ip("addr add 10.0.0.1/24 dev lo\nroute add default dev lo\n")
    netns.call("nft", "-f", "-", text=RULES)
    return netns


def test_the_original_destination(redirected) -> None:
    with redirected.listen("127.0.0.1", 15001) as listener, redirected.socket() as app:
        app.connect(("10.9.0.1", 80))
        server, peer = listener.accept()
        raw = server.getsockopt(socket.SOL_IP, 80, 16)
        assert (socket.inet_ntoa(raw[4:8]), int.from_bytes(raw[2:4], "big")) == ("10.9.0.1", 80)
        assert app.getpeername() == ("10.9.0.1", 80)
        assert peer == app.getsockname()
        server.close()


def test_the_source_port_changes_when_another_flow_to_the_listener_has_it(redirected) -> None:
    with redirected.listen("127.0.0.1", 15001) as listener:
        apps, peers = [], []
        for address in ("10.9.0.1", "10.9.0.2"):
            app = redirected.socket()
            app.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            app.bind(("10.0.0.1", 40000))
            app.connect((address, 80))
            server, peer = listener.accept()
            apps += [app, server]
            peers.append(peer)
        assert peers[0] == ("10.0.0.1", 40000)
        assert peers[1][0] == "10.0.0.1"
        assert peers[1][1] != 40000
        for sock in apps:
            sock.close()


def test_a_connection_that_was_not_redirected_has_no_dnat_status(redirected) -> None:
    redirected.call("nft", "-f", "-", text=CLOSED)
    with redirected.listen("127.0.0.1", 15001), redirected.socket() as straight, redirected.socket() as app:
        app.connect(("10.9.0.1", 80))
        with pytest.raises(ConnectionRefusedError):
            straight.connect(("127.0.0.1", 15001))

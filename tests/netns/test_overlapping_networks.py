"""A39: the app's own network has the addresses of the target's. The target's view wins, and published ports work all the same."""

from __future__ import annotations

from bridge.model.facts import Facts

LINKS = ("fake",)  # which is told these facts; the real agent tells its own
FACTS = Facts(
    hostname="orders-1",
    addresses=("172.30.0.77/16", "fd77::3/64"),
    resolv_conf="nameserver 10.77.0.9\n",
    hosts="",
)


def test_A39_an_address_of_both_is_the_targets(world) -> None:
    world.clu.ip("addr add 172.30.0.1/32 dev lo\n")
    world.tgt.ip("route add 172.30.0.0/16 via 10.77.0.9\n")
    with world.ses.connect("172.30.0.1", 7000) as app:
        assert app.recv(100) == b"cluster 10.77.0.3\n"
        assert app.getsockname()[0] == "172.30.0.77"


def test_A39_a_published_port_still_answers_the_engines_gateway(world) -> None:
    with world.ses.listen("0.0.0.0", 8000) as listener, world.dev.socket() as client:
        client.connect(("172.30.0.2", 8000))
        server, peer = listener.accept()
        assert peer[0] == "172.30.0.1"
        server.sendall(b"welcome")
        assert client.recv(100) == b"welcome"
        server.close()

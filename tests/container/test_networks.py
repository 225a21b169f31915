"""`docker network connect` and `disconnect` of a session that runs: what its app reaches, by which names, and what stays the target's."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator

import docker.models.networks
import pytest

from tests.container.conftest import App, Bridge
from tests.lab.boxes import eventually
from tests.lab.dockerlab import Lab


@contextlib.contextmanager
def joined(network: docker.models.networks.Network, app: App) -> Iterator[None]:
    pause = app.part("pause")
    network.connect(pause)
    try:
        yield
    finally:
        network.disconnect(pause)


def the_targets(app: App) -> list[str]:
    """What the app and the target have in common, whatever networks the app's side has."""
    hosts = app.run("sed", "-n", "/the target's names/,$p", "/etc/hosts").out.splitlines()[1:]
    return [app.run("cat", "/etc/resolv.conf").out, *hosts]


def test_A28_a_session_of_the_default_network_finds_the_containers_of_one_that_it_joins_later(lab: Lab, bridge: Bridge) -> None:
    sibling, outside = lab.outsider.name, lab.networks["outside"]
    with bridge(f"docker/{lab.target.name}", "--network", "bridge") as own:
        before = the_targets(own)
        assert before[0] == lab.target.run("cat", "/etc/resolv.conf").out
        assert "errno" in own.probe("addresses", host=sibling)
        with joined(outside, own):
            address = lab.outsider.addresses()[lab.outside]
            assert eventually(lambda: own.probe("addresses", host=sibling).get("addresses")) == [address]
            listening = lab.outsider.probing("listen_once", port=18334)
            own_address = own.part("pause").attrs["NetworkSettings"]["Networks"][lab.outside]["IPAddress"]
            said = eventually(lambda: own.probe("who_said", host=sibling, port=18334), until=lambda said: isinstance(said, str))
            assert said == f"hello {own_address}"
            assert listening.answer() == own_address
            assert own.probe("who", host="server.lab.test")["peer"] in (lab.target_ip, lab.target_ip6)
            assert eventually(lambda: the_targets(own), until=lambda now: now == before)
        assert eventually(lambda: own.probe("addresses", host=sibling).get("errno"))
        assert eventually(lambda: the_targets(own), until=lambda now: now == before)
        assert own.probe("who", host="server.lab.test")["peer"] in (lab.target_ip, lab.target_ip6)


@pytest.fixture
def first_by_name(lab: Lab) -> Iterator[docker.models.networks.Network]:
    """Of several networks the engine takes the default gateway of the one whose name is first."""
    labels = {"mbridge.test": lab.networks["outside"].attrs["Labels"]["mbridge.test"]}
    network = lab.client.networks.create(f"a-{lab.outside}", labels=labels)
    yield network
    network.remove()


def test_a_network_that_becomes_the_default_gateway_can_be_joined_and_left(lab: Lab, bridge: Bridge, first_by_name) -> None:
    before = len(lab.strays())
    with bridge(f"docker/{lab.target.name}") as own:
        for _ in range(2):
            with joined(first_by_name, own):
                assert default_of(own) == gateway(own, first_by_name.name)
                assert own.probe("who", host="server.lab.test")["peer"] in (lab.target_ip, lab.target_ip6)
                assert own.probe("who_or_error", host=lab.address(98), port=80, timeout=3.0) != "connected"
            assert default_of(own) == gateway(own, lab.outside)
    assert lab.strays()[before:] == []


def default_of(app: App) -> str:
    """Where DIRECT goes (proc(5): hexadecimal words of the engine's byte order)."""
    routes = [line.split() for line in app.run("cat", "/proc/net/route").out.splitlines()[1:]]
    (found,) = (route[2] for route in routes if route[1] == "00000000")
    return socket.inet_ntoa(int(found, 16).to_bytes(4, sys.byteorder))


def gateway(app: App, network: str) -> str:
    return str(app.part("pause").attrs["NetworkSettings"]["Networks"][network]["Gateway"])

"""A14 to A18 and A47: UDP, ICMP echo, loopback and other protocols from a bridged app."""

from __future__ import annotations

import json

import pytest

from tests.container.conftest import App, Bridge
from tests.lab.dockerlab import Lab

SCTP = 132


@pytest.mark.parametrize("connected", [True, False])
@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_A14_udp_answers_come_from_whom_was_asked_and_the_server_sees_the_target(lab: Lab, app: App, family: str, connected: bool) -> None:
    host, target = (lab.server_ip, lab.target_ip) if family == "ipv4" else (lab.server_ip6, lab.target_ip6)
    seen = app.probe("udp", host=host, port=7002, connected=connected)
    assert (seen.get("from"), seen.get("port")) == (host, 7002), seen
    assert json.loads(seen["text"])["peer"] == target
    if connected:
        assert seen["own"] == target


def test_A14_one_socket_speaks_to_many_and_each_answers(lab: Lab, app: App) -> None:
    addresses = [lab.server_ip, lab.target_ip]
    assert app.probe("udp_to_many", addresses=[lab.server_ip, lab.address(10)], port=7001)[0] == [lab.server_ip, lab.server_ip]
    with lab.another_target(41):
        addresses = [lab.server_ip, lab.address(41)]
        assert app.probe("udp_to_many", addresses=addresses, port=7001) == sorted([one, one] for one in addresses)


def test_A14_from_a_bound_port_the_answer_comes_back_to_it(lab: Lab, app: App) -> None:
    seen = app.probe("udp", host=lab.server_ip, port=7001, source=18222)
    assert (seen["own_port"], seen["text"]) == (18222, "hello")


def test_A14_one_question_may_have_many_answers(lab: Lab, app: App) -> None:
    assert app.probe("udp_many_answers", host=lab.server_ip) == list("0123456")


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_A15_a_closed_udp_port_refuses_a_connected_socket(lab: Lab, app: App, family: str) -> None:
    host = lab.server_ip if family == "ipv4" else lab.server_ip6
    seen = app.probe("udp_closed", host=host, port=999)
    assert seen["errno"] == "ECONNREFUSED"
    assert seen["seconds"] < 1


@pytest.mark.parametrize("length", [1, 1472, 8000, 65507])
def test_A16_datagrams_of_every_size_come_back_whole(lab: Lab, app: App, length: int) -> None:
    seen = app.probe("udp", host=lab.server_ip, port=7001, length=length)
    assert (seen["same"], seen["length"]) == (True, length)


def test_A16_a_datagram_over_ipv6_of_every_size_comes_back_whole(lab: Lab, app: App) -> None:
    for length in (1, 1452, 8000):
        seen = app.probe("udp", host=lab.server_ip6, port=7001, length=length)
        assert (seen["same"], seen["length"]) == (True, length)


def _ping_served(app: App) -> bool:
    """Where the agent has no way to send an echo, status must say so, and the test cannot go on."""
    warnings = " ".join(str(one) for one in app.status().get("warnings") or ())
    return "ping" not in warnings and "ICMP" not in warnings


def test_A17_ping_of_the_targets_neighbour_answers_or_status_says_why_not(lab: Lab, app: App) -> None:
    ran = app.run("ping", "-c", "2", "-i", "0.2", "-W", "2", lab.server_ip)
    if _ping_served(app):
        assert ran.code == 0, ran.out
        assert "2 received" in ran.out
    else:
        assert "0 received" in ran.out


def test_A17_ping_of_a_silent_address_does_not_answer(lab: Lab, app: App) -> None:
    assert "0 received" in app.run("ping", "-c", "1", "-W", "1", lab.address(98)).out


def test_A18_loopback_is_the_apps_own(lab: Lab, app: App) -> None:
    seen = app.probe("connect_times", host="127.0.0.1", port=7021, times=1)  # the target listens there, the app does not
    assert seen[0][0] == "ECONNREFUSED"
    assert lab.target.run("python3", "-c", "import socket; socket.create_connection(('127.0.0.1', 7021), 2)").code == 0


def test_A18_a_mapped_port_reaches_the_targets_loopback(lab: Lab, bridge: Bridge, tmp_path) -> None:
    config = tmp_path / "mbridge.yaml"
    config.write_text("outgoing:\n  loopback: [7020]\n")
    with bridge(f"docker/{lab.target.name}", "--config", str(config)) as own:
        seen = own.probe("who", host="127.0.0.1", port=7020)
        assert seen["host"] == "target-host"
        assert seen["peer"] == "127.0.0.1"
        assert own.probe("connect_times", host="127.0.0.1", port=7021, times=1)[0][0] == "ECONNREFUSED"  # not mapped


def test_A47_other_protocols_go_nowhere(lab: Lab, bridge: Bridge) -> None:
    before = len(lab.strays())
    with bridge(f"docker/{lab.target.name}", "--cap-add", "NET_RAW") as own:
        for protocol in (SCTP, 253):
            own.probe("raw_packet", host=lab.server_ip, protocol=protocol, user="root")
    assert lab.strays()[before:] == []

"""A1 to A13: TCP from a bridged app, compared with what a container beside the target gets (`insider`)."""

from __future__ import annotations

import os

import pytest

from tests.container.conftest import App
from tests.lab.dockerlab import Lab


@pytest.mark.parametrize("host", ["server.lab.test", "server", "ipv4", "ipv6"])
def test_A01_a_port_that_only_the_targets_network_reaches_answers(lab: Lab, app: App, host: str) -> None:
    where = {"ipv4": lab.server_ip, "ipv6": lab.server_ip6}.get(host, host)
    assert app.probe("who", host=where)["host"] == "server-host"


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_A01_without_mbridge_the_same_port_is_out_of_reach(lab: Lab, family: str) -> None:
    host = lab.server_ip if family == "ipv4" else lab.server_ip6
    assert lab.outsider.probe("connect", host=host, port=7002, timeout=1) != "connected"


def test_A02_the_server_sees_the_target_and_so_does_getsockname(lab: Lab, app: App) -> None:
    seen = app.probe("who", host=lab.server_ip)
    assert (seen["peer"], seen["sockname"], seen["peername"]) == (lab.target_ip, lab.target_ip, lab.server_ip)
    seen = app.probe("who", host=lab.server_ip6)
    assert (seen["peer"], seen["sockname"], seen["peername"]) == (lab.target_ip6, lab.target_ip6, lab.server_ip6)


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_A03_a_closed_port_is_refused_within_50_ms(lab: Lab, app: App, family: str) -> None:
    host = lab.server_ip if family == "ipv4" else lab.server_ip6
    seen = app.probe("connect_times", host=host, port=9, times=10)
    assert {name for name, _ in seen} == {"ECONNREFUSED"}
    assert sorted(seconds for _, seconds in seen)[5] < 0.05


def test_A04_where_the_target_has_no_way_the_app_is_told_the_same(lab: Lab, app: App) -> None:
    nobody = lab.address(99)
    theirs = lab.insider.probe("connect_times", host=nobody, port=80, times=1)
    ours = app.probe("connect_times", host=nobody, port=80, times=1)
    assert ours[0][0] == theirs[0][0] == "EHOSTUNREACH"


def test_A05_a_silent_port_ends_with_the_apps_own_time_limit(lab: Lab, app: App) -> None:
    seen = app.probe("connect", host=lab.server_ip, port=7008, timeout=1.5)
    assert seen["errno"] == "timeout"
    assert 1.4 < seen["seconds"] < 2.0


def test_A05_a_non_blocking_connect_to_a_silent_port_stays_in_progress(lab: Lab, app: App) -> None:
    seen = app.probe("polled_connect", host=lab.server_ip, port=7008, wait=1.5)
    assert seen["first"] == "EINPROGRESS"
    assert not seen["events"]


def test_A05_a_non_blocking_connect_says_so_when_it_is_refused_or_done(lab: Lab, app: App) -> None:
    refused = app.probe("polled_connect", host=lab.server_ip, port=9, wait=5)
    assert (refused["first"], refused["events"], refused["error"]) == ("EINPROGRESS", True, "ECONNREFUSED")
    done = app.probe("polled_connect", host=lab.server_ip, port=7001, wait=5)
    assert (done["first"], done["events"], done["error"]) == ("EINPROGRESS", True, 0)


def test_A06_after_the_apps_end_the_answer_still_arrives(lab: Lab, app: App) -> None:
    got, want = app.probe("half_close_by_app", host=lab.server_ip)
    assert got == want


def test_A06_after_the_servers_end_the_app_may_still_speak(lab: Lab, app: App) -> None:
    word = f"spoken late {os.urandom(4).hex()}"
    assert app.probe("half_close_by_server", host=lab.server_ip, text=word) == "all I have to say\n"
    assert lab.event(port=7004, said=word)


def test_A07_a_reset_by_the_server_reaches_the_app_as_one(lab: Lab, app: App) -> None:
    assert app.probe("reset_by_server", host=lab.server_ip) == "reset"


@pytest.mark.parametrize("reset", [True, False])
def test_A07_a_reset_by_the_app_reaches_the_server_as_one_and_an_end_as_an_end(lab: Lab, app: App, reset: bool) -> None:
    key = f"end-{os.urandom(4).hex()}"
    assert app.probe("end_of_app", host=lab.server_ip, key=key, reset=reset) == "ready"
    seen = lab.event(port=7006, key=key)
    assert seen["end"] == ("reset" if reset else "eof")
    assert seen["length"] == 5 or reset


def test_A08_a_hundred_megabytes_each_way_at_once_arrive_whole(lab: Lab, app: App) -> None:
    seen = app.probe("both_ways", host=lab.server_ip, key="bulk", length=100_000_000, limit_s=110)
    assert seen["got"] == seen["want"]
    assert seen["theirs"] == seen["want"]


def test_A10_ten_thousand_connections_in_a_row_all_answer(lab: Lab, app: App) -> None:
    seen = app.probe("many_connects", host=lab.server_ip, port=7001, times=10_000, limit_s=110)
    assert seen == {"good": 10_000, "first": None}


def test_A10_a_source_port_can_be_used_again_at_once(lab: Lab, app: App) -> None:
    assert app.probe("reuse_port", host=lab.server_ip, port=7001, times=20) == ["ping"] * 20


def test_A11_a_thousand_connections_open_at_once_all_echo(lab: Lab, app: App) -> None:
    assert app.probe("many_open", host=lab.server_ip, port=7001, count=1000, limit_s=110) == 3 * 1000


def test_A12_either_side_may_speak_first_or_none(lab: Lab, app: App) -> None:
    assert app.probe("who", host=lab.server_ip)["host"] == "server-host"  # the server speaks first
    assert app.probe("echo", host=lab.server_ip, text="after you") == "after you"
    assert app.probe("nobody_speaks", host=lab.server_ip, port=7001, seconds=3) == [True, "now"]


def test_A13_an_urgent_byte_and_a_peek_leave_the_stream_in_order(lab: Lab, app: App) -> None:
    ours, theirs = (box.probe("out_of_band", host=lab.server_ip) for box in (app, lab.insider))
    assert ours["got"] == theirs["got"] == "before"
    assert ours["peeked"] == ours["rest"][:1]
    assert ours["rest"].replace("!", "") == "after"  # the urgent byte may stand in the stream, as RFC 6093 has it


def test_A23_the_app_reaches_its_own_listener_at_each_of_its_addresses(lab: Lab, app: App) -> None:
    addresses = ["127.0.0.1", "::1", lab.target_ip, lab.target_ip6]
    assert app.probe("self_connect", port=18111, addresses=addresses) == dict.fromkeys(addresses, "me")


def test_A46_more_than_two_gigabytes_pass_on_one_flow(lab: Lab, app: App) -> None:
    seen = app.probe("both_ways", host=lab.server_ip, key="rekey", length=1_150_000_000, limit_s=115)
    assert seen["got"] == seen["want"]
    assert seen["theirs"] == seen["want"]

"""DNS of the app, by real programs and by the wire: who is asked, and what the app's libc makes of it."""

from __future__ import annotations

import struct

import dns.message
import dns.query
import dns.rcode
import dns.rdatatype
import pytest


def test_A24_the_apps_libc_does_what_it_would_do_in_the_target(world) -> None:
    assert (world.folder / "resolv.conf").read_text() == world.facts.resolv_conf
    for name in ("db", "db.shop.svc", "db.shop.svc.", "DB.Shop.SVC"):
        assert world.app_run("getent", "ahostsv4", name).stdout.split()[:1] == ["10.77.0.9"], name


def test_A26_no_such_name_stays_no_such_name(world) -> None:
    answer = _ask(world, "nothing.shop.svc", "A")
    assert answer.rcode() == dns.rcode.NXDOMAIN
    assert world.app_run("getent", "hosts", "nothing.shop.svc").returncode == 2


def test_A27_names_of_the_targets_hosts_file_and_the_apps_own(world) -> None:
    assert world.app_run("getent", "hosts", "in-hosts").stdout.split()[0] == "10.77.0.9"
    assert world.app_run("getent", "hosts", "own-name").stdout.split()[0] == "172.30.0.2"


@pytest.mark.parametrize("over_tcp", [False, True])
def test_A25_questions_over_udp_and_tcp_reach_the_targets_nameserver(world, over_tcp: bool) -> None:
    answer = _ask(world, "db.shop.svc", "A", over_tcp)
    assert [item.address for record in answer.answer for item in record] == ["10.77.0.9"]


def test_A26_a_type_that_the_name_lacks_is_an_empty_answer(world) -> None:
    answer = _ask(world, "db.shop.svc", "AAAA")
    assert answer.rcode() == dns.rcode.NOERROR
    assert answer.answer == []


def test_rubbish_at_the_nameserver_does_no_harm(world) -> None:
    with world.ses.udp("10.77.0.9") as app:
        for rubbish in (b"", b"\0", b"\xff" * 12, struct.pack("!HHHHHH", 1, 0x100, 9, 9, 9, 9) + b"\xc0\x0c" * 50):
            app.sendto(rubbish, ("10.77.0.9", 53))
    assert _ask(world, "db.shop.svc", "A").answer


def _ask(world, name: str, kind: str, over_tcp: bool = False) -> dns.message.Message:
    query = dns.message.make_query(name, kind)
    ask = dns.query.tcp if over_tcp else dns.query.udp
    return world.ses.run(lambda: ask(query, "10.77.0.9", timeout=10))

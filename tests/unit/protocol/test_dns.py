"""Our reading of DNS messages, judged by dnspython's, and the two files that go with it."""

from __future__ import annotations

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from bridge.errors import RemoteProtocolError
from bridge.protocol.dns import (
    Cache,
    Query,
    ResolvConf,
    fit,
    malformed,
    merge_hosts,
    names_in_hosts,
    own_addresses,
    parse_resolv_conf,
    read_answer,
    read_query,
    refuse,
)


def asked(name: str, kind: str = "A", **options: object) -> tuple[bytes, Query]:
    wire = dns.message.make_query(name, kind, **options).to_wire()
    return wire, read_query(wire)


def answered(wire: bytes, *records: str, authority: str | None = None, rcode: int = 0) -> bytes:
    answer = dns.message.make_response(dns.message.from_wire(wire))
    answer.set_rcode(rcode)
    for line in records:
        owner, ttl, kind, rdata = line.split(" ", 3)
        answer.answer.append(dns.rrset.from_text(owner, int(ttl), "IN", kind, rdata))
    if authority:
        answer.authority.append(dns.rrset.from_text("shop.", int(authority.split()[0]), "IN", "SOA", authority.split(" ", 1)[1]))
    return answer.to_wire()


def test_a_query_is_read_with_its_edns_size() -> None:
    wire, query = asked("Orders.Shop", "SRV")
    assert (query.name, query.rdtype, query.rdclass, query.udp_bytes, query.edns) == ("orders.shop", 33, 1, 512, False)
    assert query.end == len(wire)
    assert asked("x", use_edns=0, payload=4096)[1].udp_bytes == 4096
    assert asked("x", use_edns=0, payload=100)[1].udp_bytes == 512
    assert asked(".", "NS")[1].name == ""


def test_a_dot_inside_a_label_is_no_dot_between_labels() -> None:
    assert asked("evil\\.corp.example")[1].name == "evil\\.corp.example"


def test_addresses_are_those_that_the_chain_of_aliases_leads_to() -> None:
    wire, query = asked("a.shop")
    answer = read_answer(
        answered(wire, "a.shop. 60 CNAME b.shop.", "c.shop. 30 A 10.1.0.1", "b.shop. 90 CNAME c.shop.", "other.shop. 5 A 10.9.9.9"), query
    )
    assert answer.addresses == ("10.1.0.1",)
    assert answer.addresses_ttl_s == 30
    assert answer.ttl_s == 5


def test_an_alias_of_itself_ends() -> None:
    wire, query = asked("a.shop")
    assert read_answer(answered(wire, "a.shop. 60 CNAME b.shop.", "b.shop. 60 CNAME a.shop."), query).addresses == ()


def test_a_negative_answer_holds_as_long_as_its_soa_says_at_most_half_a_minute() -> None:
    wire, query = asked("no.shop")
    soa = "ns.shop. root.shop. 1 2 3 4 "
    assert read_answer(answered(wire, authority=f"3600 {soa}8", rcode=dns.rcode.NXDOMAIN), query).ttl_s == 8
    assert read_answer(answered(wire, authority=f"7 {soa}8"), query).ttl_s == 7
    assert read_answer(answered(wire, authority=f"3600 {soa}600", rcode=dns.rcode.NXDOMAIN), query).ttl_s == 30
    assert read_answer(answered(wire, rcode=dns.rcode.NXDOMAIN), query).ttl_s == 0
    assert read_answer(answered(wire, "no.shop. 600 CNAME b.shop.", authority=f"3600 {soa}8"), query).ttl_s == 8


def test_servfail_and_truncated_answers_are_not_kept_yet_their_addresses_count() -> None:
    wire, query = asked("a.shop")
    assert read_answer(answered(wire, rcode=dns.rcode.SERVFAIL), query).ttl_s == 0
    message = bytearray(answered(wire, "a.shop. 60 A 10.1.0.1"))
    message[2] |= 0x02
    answer = read_answer(bytes(message), query)
    assert (answer.truncated, answer.ttl_s, answer.addresses) == (True, 0, ("10.1.0.1",))


@pytest.mark.parametrize("other", ["b.shop", "a.shop.other", ""])
def test_an_answer_to_another_question_is_refused(other: str) -> None:
    wire, query = asked("a.shop")
    with pytest.raises(RemoteProtocolError, match="another question"):
        read_answer(answered(asked(other)[0], "a.shop. 60 A 10.66.0.1"), query)
    with pytest.raises(RemoteProtocolError, match="another question"):
        read_answer(answered(asked("a.shop", "AAAA")[0], "a.shop. 60 A 10.66.0.1"), query)
    assert read_answer(answered(wire, "a.shop. 60 A 10.1.0.1"), query).addresses == ("10.1.0.1",)


def test_a_ttl_with_its_top_bit_set_is_none() -> None:
    """RFC 2181, 8."""
    wire, query = asked("a.shop")
    message = bytearray(answered(wire, "a.shop. 60 A 10.1.0.1"))
    message[read_answer(bytes(message), query).ttl_offsets[0]] |= 0x80
    answer = read_answer(bytes(message), query)
    assert (answer.ttl_s, answer.addresses_ttl_s, answer.addresses) == (0, 0, ("10.1.0.1",))


def test_the_opt_record_s_flags_are_taken_for_no_ttl() -> None:
    wire, query = asked("a.shop", use_edns=0, want_dnssec=True)
    answer = dns.message.make_response(dns.message.from_wire(wire))
    answer.answer.append(dns.rrset.from_text("a.shop.", 60, "IN", "A", "10.1.0.1"))
    assert read_answer(answer.to_wire(), query).ttl_s == 60


@pytest.mark.parametrize(
    "broken",
    [b"", bytes(11), bytes(12), bytes(12) + b"\xc0\x0c\0\1\0\1", bytes(5) + b"\2" + bytes(20), bytes(5) + b"\1" + bytes(6) + b"\x3fab"],
)
def test_what_is_no_query_is_refused(broken: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        read_query(broken)


def test_a_long_chain_of_pointers_is_refused() -> None:
    chain = b"".join((0xC000 | 12 + 2 * (i - 1)).to_bytes(2, "big") for i in range(1, 4000))
    message = b"\0\0\x80\0\0\0\0\0\0\0\0\0" + b"\0\0" + chain
    from bridge.protocol.dns import _name

    with pytest.raises(RemoteProtocolError):
        _name(message, len(message) - 2)


def test_an_answer_too_large_for_the_client_is_emptied_and_marked_and_keeps_its_question() -> None:
    wire, query = asked("a.shop")
    large = answered(wire, *[f"a.shop. 60 TXT {'x' * 200}{i}" for i in range(4)])
    cut = dns.message.from_wire(fit(large, wire, query))
    assert cut.flags & dns.flags.TC
    assert (cut.id, cut.answer, cut.question[0].to_text()) == (int.from_bytes(wire[:2], "big"), [], "a.shop. IN A")
    wire, query = asked("a.shop", use_edns=0, payload=4096)
    assert fit(large, wire, query) == large


def test_refused_and_formerr_are_answers_that_dnspython_reads() -> None:
    wire, query = asked("x.ads", use_edns=0)
    refused = dns.message.from_wire(refuse(wire, query))
    assert dns.message.from_wire(wire).is_response(refused)
    assert refused.rcode() == dns.rcode.REFUSED
    reply = malformed(wire[:12])
    assert reply is not None
    assert dns.message.from_wire(reply).rcode() == dns.rcode.FORMERR


def kept(cache: Cache, name: str, ttl: int, now: float, size: int = 0) -> bytes:
    wire, query = asked(name)
    message = answered(wire, f"{name}. {ttl} A 10.1.0.1") + bytes(size)
    cache.put("ns", wire, message, read_answer(message, query), now)
    return wire


def test_a_kept_answer_is_for_the_same_query_of_the_same_nameserver_only() -> None:
    cache = Cache()
    wire = kept(cache, "a.shop", 60, 0)
    other_id = b"\x42\x42" + wire[2:]
    found = cache.get("ns", other_id, 10.9)
    assert found is not None
    message = dns.message.from_wire(found[0])
    assert (message.id, message.answer[0].ttl) == (0x4242, 50)
    assert cache.get("other", wire, 10) is None
    assert cache.get("ns", asked("a.shop", use_edns=0)[0], 10) is None
    assert cache.get("ns", wire, 60) is None
    assert len(cache) == 0


def test_the_cache_is_bounded_by_entries_bytes_and_time() -> None:
    cache = Cache()
    wire = kept(cache, "old.shop", 86400, 0)
    assert cache.get("ns", wire, Cache.POSITIVE_S) is None
    wire, query = asked("n0000.shop")
    message = answered(wire, "n0000.shop. 60 A 10.1.0.1")
    answer = read_answer(message, query)
    for i in range(Cache.ENTRIES + 10):
        cache.put("ns", wire.replace(b"n0000", b"n%04d" % i), message, answer, 0)
    assert len(cache) == Cache.ENTRIES
    assert cache.get("ns", wire, 1) is None  # the first went first
    for i in range(2000):
        cache.put("ns", wire.replace(b"n0000", b"m%04d" % i), message + bytes(8000), answer, 0)
    assert len(cache) <= Cache.BYTES // 8000
    before = len(cache)
    kept(cache, "huge.shop", 60, 0, size=9000)
    assert len(cache) == before


def test_a_resolv_conf_is_read_as_libc_reads_it() -> None:
    text = """# x
nameserver 10.96.0.10 # cluster
nameserver fe80::1%eth0
nameserver rubbish
search a.b c
search shop.svc b
options ndots:5
options edns0 trust-ad
"""
    assert parse_resolv_conf(text) == ResolvConf(("10.96.0.10", "fe80::1"), ("shop.svc", "b"), ("ndots:5", "edns0", "trust-ad"))
    assert parse_resolv_conf("").nameservers == ("127.0.0.1",)


OWN = """127.0.0.1	localhost
::1	localhost ip6-localhost ip6-loopback
ff02::1	ip6-allnodes
172.19.0.5	gateway
10.1.2.3	mine mine.example
172.18.0.9	api
"""
TARGETS = "127.0.0.1\tlocalhost\n10.4.0.7\tapi\n10.4.0.8\tdb # the database\n"


def entries(text: str) -> list[list[str]]:
    return [line.split("#")[0].split() for line in text.splitlines() if line.split("#")[0].strip()]


def test_A27_hosts_are_the_targets_and_the_apps_own_added_names_which_win() -> None:
    found = entries(merge_hosts(TARGETS, OWN, "api"))
    assert found == [
        ["172.19.0.5", "gateway"],
        ["10.1.2.3", "mine", "mine.example"],
        ["127.0.0.1", "localhost"],
        ["10.4.0.7", "api"],
        ["10.4.0.8", "db"],
    ]


def test_merging_hosts_again_after_the_target_changed_keeps_only_the_apps_own() -> None:
    once = merge_hosts(TARGETS, OWN, "api")
    assert merge_hosts(TARGETS, once, "api") == once
    moved = entries(merge_hosts("10.4.0.9\tother\n", once, "other"))
    assert moved == [["172.19.0.5", "gateway"], ["10.1.2.3", "mine", "mine.example"], ["127.0.0.1", "localhost"], ["10.4.0.9", "other"]]


def test_names_of_hosts_have_all_their_addresses_in_order() -> None:
    found = names_in_hosts("10.0.0.1 a b # c\n\n# 10.0.0.2 d\n10.0.0.3\n \tfd00::1\ta\n")
    assert found == {"a": ["10.0.0.1", "fd00::1"], "b": ["10.0.0.1"]}


def test_addresses_of_the_apps_own_names_are_never_taken_from_the_targets_lines() -> None:
    once = merge_hosts("10.4.0.9\tmine\nfd00::9\tmine\n", OWN, "api")
    for hosts in (OWN, once):
        assert own_addresses(hosts, {"mine"}) == ["10.1.2.3"]
        assert own_addresses(hosts, {"mine", "gateway"}) == ["172.19.0.5", "10.1.2.3"]
    assert own_addresses(once, {"db"}) == []

"""Parsers under hypothesis: whatever comes in, the answer is a value or the error that is documented, and nothing else."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path

import dns.exception
import dns.message
import dns.name
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bridge.errors import BridgeError, RemoteProtocolError, SpecError
from bridge.model.config import load
from bridge.model.environ import FORMS, EnvWish, choose, envfile, parse_environ, render
from bridge.model.rules import RuleSet, Verdict, _glob, parse_rule
from bridge.model.session import SessionStatus
from bridge.model.target import parse_target
from bridge.model.yaml_lines import Document, Fault
from bridge.protocol.dns import Cache, fit, malformed, merge_hosts, parse_resolv_conf, read_answer, read_query, refuse

LABEL = st.from_regex(r"\A[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?\Z")
NAME = st.lists(LABEL, min_size=1, max_size=4).map(".".join)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
_WORDS = """target app image ports env set outgoing rules to verdict loopback link via agent ttl incoming http any not path
prefix apps web files"""
KEYS = st.sampled_from(_WORDS.split())
SETTINGS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | KEYS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=15,
)


@given(st.text(max_size=60))
@example("docker/a\n")
def test_any_text_is_a_target_that_reads_back_or_a_spec_error(text: str) -> None:
    with contextlib.suppress(SpecError):
        target = parse_target(text)
        assert parse_target(str(target)) == target


@given(st.dictionaries(st.sampled_from(["to", "verdict", "protocol", "x"]), JSON, max_size=4))
@example({"to": "[::1]:1"})
@example({"to": "::1/129"})
@example({"to": "1" * 5000})
def test_any_mapping_is_a_rule_or_a_spec_error(value: dict[str, object]) -> None:
    with contextlib.suppress(SpecError):
        RuleSet((parse_rule(value),)).routes()


@given(
    st.from_regex(r"\A(\*\.)?([a-z*]{1,5}\.){0,2}[a-z*]{1,5}(:\d{1,5})?(/udp)?\Z"),
    st.sampled_from(list(Verdict)),
    NAME,
    st.lists(st.ip_addresses().map(str), max_size=3),
)
def test_what_is_learned_is_forgotten_again_without_a_rest(to: str, verdict: Verdict, name: str, addresses: list[str]) -> None:
    try:
        rule = parse_rule({"to": to, "verdict": verdict.value})
    except SpecError:
        return
    rules = RuleSet((rule,))
    wanted = rules.learn(name, addresses, 60, 0) + rules.learn("other." + name, addresses, 60, 0)
    assert len(set(wanted)) == len(wanted)
    assert set(rules.expire(1e9)) == set(wanted)


@given(st.text("ab*", max_size=8), st.text("ab", max_size=8))
def test_a_star_matches_as_a_regular_expression_does(pattern: str, name: str) -> None:
    assert _glob(pattern, name) == bool(re.fullmatch(pattern.replace("*", ".*"), name))


@given(st.binary(max_size=300))
def test_any_environment_is_taken_apart_and_every_form_can_be_written(raw: bytes) -> None:
    found = parse_environ(raw)
    assert all(name and b"=" not in name and b"\0" not in name + value for name, value in found.items())
    chosen = choose(found, EnvWish(include=("*",)))
    assert chosen == found
    assert parse_environ(envfile(found).removeprefix(b"+\0")) == found
    for form in FORMS:
        render(chosen, form).encode()


@given(JSON)
def test_any_json_is_a_status_or_an_expected_error(value: object) -> None:
    with contextlib.suppress(BridgeError):
        SessionStatus.from_json(value)


def line_of_fault(text: str) -> int | None:
    try:
        Document.read(text)
    except Fault as fault:
        return fault.line
    return None


@settings(deadline=None)
@given(st.text(max_size=200) | st.text("{}[]:,-&*!'\"|>#%@`? \n\tab01", max_size=60))
@example("%YAML 1.1\n---\noff: 1\n")
@example('"\\U00110000"')
@example("? [a]\n: b")
@example("!!int x")
def test_any_text_is_yaml_or_a_fault_with_a_line(text: str) -> None:
    fault = line_of_fault(text)
    assert fault is None or 1 <= fault <= text.count("\n") + text.count("\r") + 2


def faults_of(path: Path) -> list[str]:
    try:
        load(path, {}, {})
    except SpecError as exc:
        return exc.message.splitlines()
    return []


@settings(deadline=None)
@given(SETTINGS)
def test_any_settings_are_a_configuration_or_faults_with_a_place(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.getbasetemp() / "mbridge.yaml"
    path.write_text(json.dumps(value))
    assert all("mbridge.yaml:1: " in line for line in faults_of(path))


QUERY = dns.message.make_query("a.shop", "A", use_edns=0).to_wire()
ANSWER = dns.message.make_response(dns.message.from_wire(QUERY))
ANSWER.answer.append(dns.rrset.from_text("a.shop.", 60, "IN", "CNAME", "b.shop."))
ANSWER.answer.append(dns.rrset.from_text("b.shop.", 60, "IN", "A", "10.1.0.1"))
ANSWER_WIRE = ANSWER.to_wire()


@st.composite
def mutated(draw: st.DrawFn, wire: bytes) -> bytes:
    message = bytearray(wire)
    for _ in range(draw(st.integers(0, 4))):
        message[draw(st.integers(0, len(message) - 1))] = draw(st.integers(0, 255))
    return bytes(message[: draw(st.integers(0, len(message)))]) if draw(st.booleans()) else bytes(message)


@given(mutated(QUERY) | st.binary(max_size=80))
def test_any_bytes_are_a_query_or_an_expected_error(message: bytes) -> None:
    try:
        query = read_query(message)
    except RemoteProtocolError:
        reply = malformed(message)
        assert reply is None or reply[:2] == message[:2]
        return
    for reply in (refuse(message, query), fit(ANSWER_WIRE + bytes(70000), message, query)):
        assert len(reply) <= max(query.udp_bytes, 512)
        assert read_answer(reply, query).ttl_s == 0


@given(mutated(ANSWER_WIRE) | st.binary(max_size=80))
def test_any_bytes_are_an_answer_that_can_be_kept_or_an_expected_error(message: bytes) -> None:
    query = read_query(QUERY)
    try:
        answer = read_answer(message, query)
    except RemoteProtocolError:
        return
    cache = Cache()
    cache.put("ns", QUERY, message, answer, 0)
    aged = cache.get("ns", QUERY, 1.5)
    if answer.ttl_s > 1:
        assert aged is not None
        ttls = {offset + i for offset in answer.ttl_offsets for i in range(4)} | {0, 1}
        changed = {i for i, (old, new) in enumerate(zip(message, aged[0], strict=True)) if old != new}
        assert changed <= ttls


@given(
    st.lists(st.tuples(NAME, NAME, st.integers(0, 2**31 - 1)), max_size=4),
    st.lists(st.ip_addresses(v=4).map(str), max_size=3),
    st.integers(0, 1000),
)
def test_a_chain_is_read_as_dnspython_reads_it(links: list[tuple[str, str, int]], addresses: list[str], ttl: int) -> None:
    names = ["a.shop", *dict.fromkeys(name for name, _, _ in links)]
    answer = dns.message.make_response(dns.message.make_query("a.shop", "A"))
    for owner, target, (_, _, link_ttl) in zip(names, names[1:], links, strict=False):
        answer.answer.append(dns.rrset.from_text(owner + ".", link_ttl, "IN", "CNAME", target + "."))
    if addresses:
        answer.answer.append(dns.rrset.from_text(names[-1] + ".", ttl, "IN", "A", *addresses))
    wire = answer.to_wire()
    query = read_query(dns.message.make_query("a.shop", "A").to_wire())
    try:
        theirs = dns.message.from_wire(wire).resolve_chaining()
    except dns.exception.DNSException:
        read_answer(wire, query)
        return
    ours = read_answer(wire, query)
    assert set(ours.addresses) == {item.address for item in theirs.answer or ()}
    if theirs.answer:
        assert ours.addresses_ttl_s == theirs.minimum_ttl
        assert ours.ttl_s == min(theirs.minimum_ttl, Cache.POSITIVE_S)


@given(st.text(max_size=200), st.text(max_size=200), NAME)
def test_any_text_is_a_resolv_conf_and_a_hosts_file(text: str, own: str, hostname: str) -> None:
    assert parse_resolv_conf(text).nameservers
    once = merge_hosts(text, own, hostname)
    assert merge_hosts(text, once, hostname) == once

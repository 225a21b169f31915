"""Names of `--add-host` under the user's rules."""

from __future__ import annotations

import pytest

from bridge.cli.own_hosts import with_hosts
from bridge.model.rules import RuleSet, parse_rule

HOSTS = "127.0.0.1\tlocalhost\n172.17.0.1\tme.example\nfd00:17::1\tme.example\n10.9.9.9\tother\n172.18.0.3\tab12\n"


def test_host_gateway_is_direct_and_another_address_goes_where_its_like_go() -> None:
    told = with_hosts((), ("me.example:host-gateway", "other:10.9.9.9"), HOSTS)
    assert told == ({"to": "172.17.0.1", "verdict": "direct"}, {"to": "fd00:17::1", "verdict": "direct"})
    assert [str(rule.network) for rule in map(parse_rule, told)] == ["172.17.0.1/32", "fd00:17::1/128"]


def test_a_rule_by_name_holds_for_the_address_too_at_its_place() -> None:
    rules = (
        {"to": "10.0.0.0/8:22", "verdict": "deny"},
        {"to": "*.example:443/tcp", "verdict": "direct"},
        {"to": "*", "verdict": "cluster"},
    )
    told = with_hosts(rules, ("db.example:10.1.2.3", "six.example=[fd00::7]", "db.test:10.1.2.4"), "")
    networks = [(str(rule.network), rule.ports, rule.protocol, rule.verdict.value) for rule in map(parse_rule, told)]
    assert networks == [
        ("10.0.0.0/8", (22, 22), None, "deny"),
        ("None", (443, 443), "tcp", "direct"),
        ("10.1.2.3/32", (443, 443), "tcp", "direct"),
        ("fd00::7/128", (443, 443), "tcp", "direct"),
        ("None", None, None, "cluster"),
    ]


def test_the_users_own_rule_for_the_gateway_comes_first() -> None:
    told = with_hosts(({"to": "me.example", "verdict": "deny"},), ("me.example:host-gateway",), HOSTS)
    routes = RuleSet(tuple(map(parse_rule, told))).routes()
    first = min((route for route in routes if route.network == "172.17.0.1/32"), key=lambda route: route.priority)
    assert first.verdict.value == "deny"


@pytest.mark.parametrize("rules", [(), ({"to": "a.example"}, {"to": "10.0.0.0/8", "verdict": "deny"})])
def test_without_names_rules_are_what_they_were(rules: tuple[dict[str, str], ...]) -> None:
    assert with_hosts(rules, (), "") == rules

"""Names of `--add-host` that stand for the developer's own machine."""

from __future__ import annotations

import pytest

from bridge.cli.host_gateway import with_direct
from bridge.model.rules import parse_rule

HOSTS = "127.0.0.1\tlocalhost\n172.17.0.1\tme.example\nfd00:17::1\tme.example\n10.9.9.9\tother\n172.18.0.3\tab12\n"


def test_host_gateway_is_direct_after_the_users_own_rules_and_another_address_goes_where_its_like_go() -> None:
    rules = ({"to": "me.example", "verdict": "deny"},)
    told = with_direct(rules, ("me.example:host-gateway", "other:10.9.9.9"), HOSTS)
    assert told == (*rules, {"to": "172.17.0.1", "verdict": "direct"}, {"to": "fd00:17::1", "verdict": "direct"})
    assert [str(rule.network) for rule in map(parse_rule, told)] == ["None", "172.17.0.1/32", "fd00:17::1/128"]


@pytest.mark.parametrize("rules", [(), ({"to": "a.example"}, {"to": "10.0.0.0/8", "verdict": "deny"})])
def test_without_names_rules_are_what_they_were(rules: tuple[dict[str, str], ...]) -> None:
    assert with_direct(rules, (), "") == rules

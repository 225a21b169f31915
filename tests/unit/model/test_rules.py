from __future__ import annotations

import pytest

from bridge.errors import SpecError
from bridge.model.rules import KEEP_S, MAX_HOSTS, MAX_LEARNED, MAX_PINNED, Route, RuleSet, Verdict, parse_rule


def rules(*entries: tuple[str, str]) -> RuleSet:
    return RuleSet(tuple(parse_rule({"to": to, "verdict": verdict}) for to, verdict in entries))


def kernel(rule_set: RuleSet, learned: list[Route], address: str) -> Verdict:
    """The verdict as the kernel finds it: the rule of the lowest priority that covers the address."""
    covering = [route for route in [*rule_set.routes(), *learned] if route.network in (f"{address}/32", "0.0.0.0/0")]
    return min(covering, key=lambda route: route.priority).verdict if covering else Verdict.CLUSTER


def test_A20_the_first_rule_that_matches_wins_by_its_priority() -> None:
    found = rules(("10.1.0.0/16", "direct"), ("10.0.0.0/8", "deny")).routes()
    assert found == [
        Route(1000, "10.1.0.0/16", Verdict.DIRECT, None, None),
        Route(1008, "10.0.0.0/8", Verdict.DENY, None, None),
    ]


def test_A20_a_port_range_without_a_protocol_is_for_tcp_and_udp() -> None:
    found = rules(("10.0.0.0/8:8000-8100", "direct")).routes()
    assert found == [Route(1000, "10.0.0.0/8", Verdict.DIRECT, protocol, (8000, 8100)) for protocol in ("tcp", "udp")]


@pytest.mark.parametrize(
    ("to", "network", "ports", "protocol"),
    [
        ("169.254.169.254", "169.254.169.254/32", None, None),
        ("fd00::1", "fd00::1/128", None, None),
        ("[fd00::/8]:443", "fd00::/8", (443, 443), None),
        ("10.0.0.0/8:53/udp", "10.0.0.0/8", (53, 53), "udp"),
        ("10.1.2.3/8", "10.0.0.0/8", None, None),
        ("10.1.2.3/tcp", "10.1.2.3/32", None, "tcp"),
    ],
)
def test_networks_and_addresses_are_read_with_port_and_protocol(to: str, network: str, ports: object, protocol: object) -> None:
    rule = parse_rule({"to": to, "verdict": "deny"})
    assert (str(rule.network), rule.ports, rule.protocol) == (network, ports, protocol)


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ({"to": "10.0.0.0/33", "verdict": "deny"}, "no network"),
        ({"to": "300.1.2.3"}, "no network"),
        ({"to": "x:0"}, "no port"),
        ({"to": "x:70000"}, "no port"),
        ({"to": "x:90-80"}, "no port"),
        ({"to": "10.0.0.0/8:1024-65535"}, "up to 65534 only"),
        ({"to": "x:65535"}, "up to 65534 only"),
        ({"to": "a b"}, "no host name"),
        ({"to": "-x.example"}, "no host name"),
        ({"to": "x", "verdict": "dirct"}, "did you mean 'direct'"),
        ({"to": "x", "verdikt": "deny"}, "did you mean 'verdict'"),
        ({"to": "x", "protocol": "tpc"}, "did you mean 'tcp'"),
        ({"to": "x:53/udp", "protocol": "tcp"}, "says udp"),
        ({"verdict": "deny"}, "needs 'to'"),
    ],
)
def test_a_bad_rule_is_told_with_what_is_wrong(rule: dict[str, str], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        parse_rule(rule)


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("*.corp.example", "git.corp.example", True),
        ("*.corp.example", "a.b.corp.example.", True),
        ("*.corp.example", "corp.example", False),
        ("*.corp.example", "evilcorp.example", False),
        ("Db.Corp.Example", "DB.corp.example", True),
        ("db-*.shop", "db-1.shop", True),
        ("a*b*c", "axbxbxc", True),
        ("a*a", "a", False),
        ("*", "anything", True),
        ("bücher.example", "xn--bcher-kva.example", True),
    ],
)
def test_A20_a_star_is_any_run_of_characters_and_case_does_not_matter(pattern: str, name: str, matches: bool) -> None:
    assert (rules((pattern, "direct")).verdict_of(name) is Verdict.DIRECT) is matches


def test_a_name_without_a_rule_has_no_verdict_and_a_network_rule_says_nothing_about_names() -> None:
    assert rules(("10.0.0.0/8", "direct"), ("x.example", "deny")).verdict_of("y.example") is None


def test_A21_the_address_of_a_direct_name_is_learned_once_at_the_rules_own_priority() -> None:
    found = rules(("10.0.0.0/8", "deny"), ("*.corp.example", "direct"))
    assert found.learn("git.corp.example", ["192.0.2.7", "2001:db8::7"], 60, 0) == [
        Route(1008, "192.0.2.7/32", Verdict.DIRECT, None, None),
        Route(1008, "2001:db8::7/128", Verdict.DIRECT, None, None),
    ]
    assert found.learn("git.corp.example.", ["192.0.2.7"], 60, 1) == []


def test_a_names_rules_for_single_ports_are_learned_up_to_the_first_for_all_of_it() -> None:
    found = rules(("x.example:25", "deny"), ("x.example", "direct"), ("*.example", "cluster"))
    learned = found.learn("x.example", ["192.0.2.7"], 60, 0)
    assert [(route.priority, route.verdict, route.ports) for route in learned] == [
        (1000, Verdict.DENY, (25, 25)),
        (1000, Verdict.DENY, (25, 25)),
        (1008, Verdict.DIRECT, None),
    ]


@pytest.mark.parametrize("order", [("git.corp.example", "orders.shop"), ("orders.shop", "git.corp.example")])
def test_two_names_with_one_address_and_different_verdicts_go_to_the_cluster_with_a_warning(order: tuple[str, str]) -> None:
    found = rules(("*.corp.example", "direct"))
    learned = [route for name in order for route in found.learn(name, ["192.0.2.7"], 60, 0)]
    assert kernel(found, learned, "192.0.2.7") is Verdict.CLUSTER
    assert found.warnings == ["git.corp.example (direct) and orders.shop (cluster) have one address, 192.0.2.7/32: cluster wins"]


def test_a_conflict_does_not_overrule_an_earlier_rule_of_the_users() -> None:
    found = rules(("192.0.2.7", "deny"), ("*.corp.example", "direct"))
    learned = [route for name in ("git.corp.example", "orders.shop") for route in found.learn(name, ["192.0.2.7"], 60, 0)]
    assert kernel(found, learned, "192.0.2.7") is Verdict.DENY


def test_two_names_of_one_verdict_are_no_conflict() -> None:
    found = rules(("*.corp.example", "direct"))
    for name in ("a.corp.example", "b.corp.example"):
        found.learn(name, ["192.0.2.7"], 60, 0)
    assert found.warnings == []


def test_an_address_outlives_its_ttl_by_a_day_and_each_answer_renews_it() -> None:
    found = rules(("*.corp.example", "direct"))
    wanted = found.learn("a.corp.example", ["192.0.2.7"], 60, 0)
    assert found.expire(60 + KEEP_S - 1) == []
    found.learn("a.corp.example", ["192.0.2.7"], 60, 1000)
    assert found.expire(60 + KEEP_S + 1) == []
    assert found.expire(1060 + KEEP_S) == wanted
    assert found.expire(1060 + KEEP_S) == []


def test_the_end_of_a_conflict_ends_its_route() -> None:
    found = rules(("*.corp.example", "direct"))
    found.learn("orders.shop", ["192.0.2.7"], 60, 0)
    learned = found.learn("git.corp.example", ["192.0.2.7"], 60, 1000)
    gone = found.expire(60 + KEEP_S)
    assert kernel(found, [route for route in learned if route not in gone], "192.0.2.7") is Verdict.DIRECT


def test_learned_addresses_are_bounded_and_the_oldest_go_first() -> None:
    found = rules(("*.corp.example", "direct"))
    wanted = []
    for number in range(5 * MAX_LEARNED):
        wanted += found.learn("a.corp.example", [f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"], 60, number)
    assert len(wanted) <= 2 * MAX_LEARNED
    gone = found.expire(0)
    assert len(wanted) - len(gone) == MAX_LEARNED
    assert gone[0] == wanted[0]


def test_names_of_no_rule_do_not_crowd_out_those_of_a_rule() -> None:
    found = rules(("*.corp.example", "direct"))
    for number in range(3 * MAX_LEARNED):
        found.learn("x.shop", [f"10.0.{number >> 8}.{number & 255}"], 60, 0)
    assert found.learn("a.corp.example", ["192.0.2.7"], 60, 0) == [Route(1000, "192.0.2.7/32", Verdict.DIRECT, None, None)]


def test_a_new_bridge_keeps_what_an_earlier_one_can_have_learned_by_the_same_rules_and_nothing_else() -> None:
    words = (("10.0.0.0/8", "deny"), ("*.corp.example", "direct"), ("db.shop:5432", "deny"))
    earlier, later = rules(*words), rules(*words)
    learned = [route for name in ("orders.shop", "git.corp.example", "db.shop") for route in earlier.learn(name, ["192.0.2.7"], 60, 0)]
    assert {route.priority for route in learned} == {1007, 1008, 1015, 1016}
    strange = [
        Route(1000, "10.0.0.1/32", Verdict.DENY, None, None),  # a network's rule learns nothing
        Route(1008, "192.0.2.7/32", Verdict.DENY, None, None),  # another verdict
        Route(1016, "192.0.2.7/32", Verdict.DENY, None, (22, 22)),
        Route(1008, "192.0.2.0/24", Verdict.DIRECT, None, None),
        Route(1024, "192.0.2.7/32", Verdict.DIRECT, None, None),  # no such rule
        Route(1010, "192.0.2.7/32", Verdict.DIRECT, None, None),
    ]
    assert later.adopt([*strange, *learned], 1000) == learned


def test_what_was_taken_over_ends_after_a_day_unless_it_was_learned_again() -> None:
    words = (("db.shop", "deny"),)
    learned = rules(*words).learn("db.shop", ["192.0.2.7", "192.0.2.8"], 60, 0)
    later = rules(*words)
    later.adopt(learned, 0)
    later.learn("other.shop", ["192.0.2.7"], 60, 0)
    assert kernel(later, learned, "192.0.2.7") is Verdict.DENY
    later.learn("db.shop", ["192.0.2.8"], 60, 1000)
    assert later.expire(KEEP_S - 1) == []
    assert later.expire(KEEP_S) == [learned[0]]
    assert later.expire(1060 + KEEP_S) == [learned[1]]


def test_an_answer_of_loopback_or_multicast_teaches_nothing() -> None:
    assert rules(("*", "cluster"), ("x", "direct")).learn("x", ["127.0.0.1", "::1", "224.0.0.1", "0.0.0.0", "nonsense"], 60, 0) == []


def test_a_star_alone_is_every_address_from_the_start() -> None:
    found = rules(("*", "direct"))
    assert [route.network for route in found.routes()] == ["0.0.0.0/0", "::/0"]
    assert found.verdict_of("x") is Verdict.DIRECT


def test_names_of_the_hosts_file_have_their_rules_routes_from_the_start() -> None:
    found = rules(("10.0.0.0/8", "deny"), ("*.corp.example", "direct"), ("db.corp.example:5432/tcp", "deny"))
    hosts = {"Git.corp.example": ["192.0.2.7", "2001:db8::7", "fe80::1%eth0"], "other": ["192.0.2.8"], "x.corp.example": ["127.0.0.1"]}
    assert found.pin(hosts, 0) == [
        Route(1008, "192.0.2.7/32", Verdict.DIRECT, None, None),
        Route(1008, "2001:db8::7/128", Verdict.DIRECT, None, None),
    ]
    assert found.pin(hosts, 1) == []
    assert found.pin({**hosts, "db.corp.example": ["192.0.2.9"]}, 2) == [Route(1008, "192.0.2.9/32", Verdict.DIRECT, None, None)]


def test_an_alias_in_the_hosts_file_that_no_rule_names_is_no_conflict() -> None:
    found = rules(("db.example", "deny"))
    pinned = found.pin({"db.example": ["192.0.2.7"], "db": ["192.0.2.7"]}, 0)
    assert kernel(found, pinned, "192.0.2.7") is Verdict.DENY
    assert found.warnings == []


def test_two_names_of_the_hosts_file_with_rules_that_differ_go_to_the_cluster_with_a_warning() -> None:
    found = rules(("db.example", "deny"), ("db", "cluster"))
    pinned = found.pin({"db.example": ["192.0.2.7"], "db": ["192.0.2.7"]}, 0)
    assert kernel(found, pinned, "192.0.2.7") is Verdict.CLUSTER
    assert len(found.warnings) == 1


def test_an_answer_for_a_name_of_the_hosts_file_does_not_end_it() -> None:
    found = rules(("db.example", "deny"))
    found.pin({"db.example": ["192.0.2.7"]}, 0)
    assert found.learn("db.example", ["192.0.2.7"], 60, 0) == []
    assert found.expire(10 * KEEP_S) == []


def test_a_name_that_has_left_the_hosts_file_ends_a_day_later() -> None:
    found = rules(("db.example", "deny"))
    pinned = found.pin({"db.example": ["192.0.2.7"]}, 0)
    moved = found.pin({"db.example": ["192.0.2.8"]}, 1000)
    assert [route.network for route in moved] == ["192.0.2.8/32"]
    assert found.expire(1000 + KEEP_S - 1) == []
    assert found.expire(1000 + KEEP_S) == pinned
    assert found.pin({"db.example": ["192.0.2.7"]}, 2000 + KEEP_S) == pinned


def test_names_of_the_hosts_file_outlast_any_number_of_answers() -> None:
    found = rules(("*.example", "deny"))
    pinned = found.pin({"db.example": ["192.0.2.7"]}, 0)
    for number in range(3 * MAX_LEARNED):
        found.learn("a.example", [f"10.0.{number >> 8}.{number & 255}"], 60, number)
    for number in range(20):
        found.learn(f"b{number}.example", ["192.0.2.7"], 60, 0)
    gone = found.expire(0)
    assert len(gone) == MAX_LEARNED
    assert pinned[0] not in gone


def test_a_route_that_could_not_be_made_for_an_answer_leaves_the_hosts_files_own() -> None:
    found = rules(("db.example:1", "deny"), ("x.example:2", "deny"))
    pinned = found.pin({"db.example": ["192.0.2.7"]}, 0)
    wanted = found.learn("x.example", ["192.0.2.7"], 60, 0)
    found.unlearn(wanted)
    assert found.learn("x.example", ["192.0.2.7"], 60, 0) == wanted
    assert found.expire(61 + KEEP_S) == wanted
    assert found.pin({}, 0) == []
    assert found.expire(KEEP_S) == pinned


def test_a_hosts_file_is_bounded_and_says_so() -> None:
    found = rules(("*.example", "deny"))
    many = {f"{number}.example": [f"10.0.{number >> 8}.{number & 255}"] for number in range(MAX_PINNED + 1)}
    assert len(found.pin(many, 0)) == MAX_PINNED
    found.pin({f"{number}.test": ["10.0.0.1"] for number in range(MAX_HOSTS)} | {"last.example": ["192.0.2.7"]}, 0)
    assert [warning.split(":")[0] for warning in found.warnings] == [
        "rules by name hold for the first 1024 addresses that /etc/hosts gives to their names",
        "/etc/hosts has 4097 names",
    ]

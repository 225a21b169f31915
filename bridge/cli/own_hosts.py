"""Where connections to the names of `--add-host NAME:ADDRESS` go: what the user's rules say of that name, as for any other.

Theory of operation: such a name is in the app's /etc/hosts, so no resolver hears of it, and a rule for it (`{to: db.example,
verdict: direct}`) would never learn an address. But its address is known from the start: each rule that names it gets a twin
for the address, right behind it. Where no rule does, an address goes where the others go, to the target (CLUSTER); the
engine's `host-gateway` is by its meaning the developer's own machine, and DIRECT. Which address that is the engine alone
knows: it writes it into the file of the container that has the names.

Limits: names of the target's own /etc/hosts are not matched by rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bridge.adapters.docker import options
from bridge.model.rules import fold, parse_rule
from bridge.protocol.dns import own_addresses

Rule = Mapping[str, Any]


def gateways(add_hosts: Iterable[str]) -> list[str]:
    """The names whose address the engine fills in."""
    return [name for name, address in map(options.host, add_hosts) if address == options.HOST_GATEWAY]


def with_hosts(rules: Sequence[Rule], add_hosts: Sequence[str], hosts_file: str) -> tuple[dict[str, Any], ...]:
    """`rules` as the bridge needs them; `hosts_file` is the engine's, read where `gateways` has names."""
    known = [(fold(name), address) for name, address in map(options.host, add_hosts) if address != options.HOST_GATEWAY]
    machine = own_addresses(hosts_file, gateways(add_hosts))
    known += [(fold(name), address) for name in gateways(add_hosts) for address in machine]
    told: list[dict[str, Any]] = []
    for rule in rules:
        told.append(dict(rule))
        parsed = parse_rule(rule)
        if parsed.pattern is not None:
            ports = f":{parsed.ports[0]}-{parsed.ports[1]}" if parsed.ports else ""
            protocol = {"protocol": parsed.protocol} if parsed.protocol else {}
            twins = dict.fromkeys(address for name, address in known if parsed.matches_name(name))
            told += [{"to": f"[{address}]{ports}", "verdict": parsed.verdict.value, **protocol} for address in twins]
    return (*told, *({"to": address, "verdict": "direct"} for address in machine))

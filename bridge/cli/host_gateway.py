"""`--add-host NAME:host-gateway` is by its meaning the developer's own machine, so connections to it are DIRECT.

Theory of operation: the engine alone knows which address that is: it writes it into the file of the container that has the names.
A rule for that address stands behind all of the user's, which may say otherwise. What they say of names in /etc/hosts, those of
`--add-host` among them, is the bridge's affair (model/rules.py, `pin`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bridge.adapters.docker import options
from bridge.protocol.dns import own_addresses

Rule = Mapping[str, Any]


def names(add_hosts: Iterable[str]) -> list[str]:
    """The names whose address the engine fills in."""
    return [name for name, address in map(options.host, add_hosts) if address == options.HOST_GATEWAY]


def with_direct(rules: Sequence[Rule], add_hosts: Sequence[str], hosts_file: str) -> tuple[dict[str, Any], ...]:
    """`rules` as the bridge needs them; `hosts_file` is the engine's, read where `names` has names."""
    machine = own_addresses(hosts_file, names(add_hosts))
    return (*map(dict, rules), *({"to": address, "verdict": "direct"} for address in machine))

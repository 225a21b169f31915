"""Rules of outgoing traffic: the user's list, first match wins, by network, host name, port and protocol.

    {to: "*.corp.example:443", verdict: direct}   {to: "10.0.0.0/8", verdict: deny, protocol: udp}   {to: "[fd00::/8]:53"}

Theory of operation: a rule is carried out as an `ip rule` at priority 1000 + 8·i (Route), so TCP, UDP and ICMP agree. A rule
for a network is a Route from the start; a rule for a name becomes Routes as the resolver answers for that name (`learn`),
before the app sees the answer, and for the names of the app's /etc/hosts, of which no resolver hears, before the app sees that
file (`pin`). DNS itself follows `verdict_of`. `*` in a name stands for any characters, dots too, so
"*.corp.example" covers every name beneath corp.example but not itself; "*" alone is every name and every address.

Two names with one address and different verdicts: CLUSTER wins, by a Route just before the rule that says otherwise (the
slot 1000 + 8·i − 1), and `warnings` says so.

Limits: 2,000 rules (priorities up to 20,000 are theirs). A learned address is kept for a day past its TTL, because an open
connection, or an app that looks up once, needs its route for longer than DNS needs its answer; of more than 1,024 addresses
the oldest go first. Past 2,048 between two `expire` nothing more is learned: such an address goes where its network says.
Of /etc/hosts the first 4,096 names count, and 1,024 addresses that rules name; these stand beside the learned ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import Enum
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any

from bridge.errors import SpecError


class Verdict(Enum):
    """Where a flow goes: through the agent, over the app's own network, nowhere."""

    CLUSTER = "cluster"
    DIRECT = "direct"
    DENY = "deny"


PRIORITY_RULES, PRIORITY_STEP = 1000, 8
MAX_RULES = 2000
LAST_PORT = 65534  # fib_rule_port_range_valid() of the kernel: a range ends before 0xffff
KEEP_S = 24 * 3600.0
MAX_LEARNED = 1024
MAX_HOSTS, MAX_PINNED = 4096, 1024
_MAX_NAMES = 8  # of one address: a CDN's has thousands
_MAX_WARNINGS = 32

PROTOCOLS = ("tcp", "udp")
_KEYS = ("to", "verdict", "protocol")
_TAIL = re.compile(r"(?P<host>.*?)(?::(?P<low>\d{1,6})(?:-(?P<high>\d{1,6}))?)?(?:/(?P<protocol>tcp|udp))?")
_NAME = re.compile(r"[a-z0-9_*]([a-z0-9_*-]*[a-z0-9_*])?(\.[a-z0-9_*]([a-z0-9_*-]*[a-z0-9_*])?)*")
_NUMERIC = re.compile(r"[0-9./]+")


@dataclass(frozen=True, slots=True)
class Route:
    """One `ip rule`: packets to `network` (CIDR), of `protocol` and to `ports` (first, last) where given, get `verdict`."""

    priority: int
    network: str
    verdict: Verdict
    protocol: str | None
    ports: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Rule:
    """One entry of the user's list. Either `network` or `pattern` (a lower-case name, maybe with `*`) is set; for "*" both are None."""

    verdict: Verdict
    network: IPv4Network | IPv6Network | None = None
    pattern: str | None = None
    ports: tuple[int, int] | None = None
    protocol: str | None = None

    @property
    def whole(self) -> bool:
        """It is about all traffic to its host, not one port or protocol."""
        return self.ports is None and self.protocol is None

    def matches_name(self, name: str) -> bool:
        """Whether the host name `name` (as `fold` writes it) is one of this rule's."""
        if self.network is not None:
            return False
        return self.pattern is None or _glob(self.pattern, name)

    def routes(self, priority: int, networks: Iterable[str], verdict: Verdict | None = None) -> list[Route]:
        """This rule for `networks`. A port without a protocol is TCP's and UDP's: to the kernel ICMP has "ports" as well."""
        protocols: tuple[str | None, ...] = (self.protocol,) if self.protocol or self.ports is None else PROTOCOLS
        chosen = verdict or self.verdict
        return [Route(priority, network, chosen, protocol, self.ports) for network in networks for protocol in protocols]


def fold(name: str) -> str:
    """A host name as it is compared: lower case, no dot at its end."""
    return name.removesuffix(".").lower()


def parse_rule(value: Mapping[str, Any]) -> Rule:
    """The rule that a mapping of mbridge.yaml says. Raises SpecError: unknown key, bad network, port, name or word."""
    if unknown := [str(key) for key in value if key not in _KEYS]:
        raise SpecError(f"unknown key {unknown[0]!r} in a rule{_near(unknown[0], _KEYS)}")
    to, word, protocol = value.get("to"), value.get("verdict", "cluster"), value.get("protocol")
    if not isinstance(to, str) or not to.strip():
        raise SpecError("a rule needs 'to': a network, an address or a host name")
    words = [verdict.value for verdict in Verdict]
    if not isinstance(word, str) or word not in words:
        raise SpecError(f"{word!r} is no verdict{_near(str(word), words)}", hint=f"verdicts are {', '.join(words)}")
    if protocol is not None and protocol not in PROTOCOLS:
        raise SpecError(f"{protocol!r} is no protocol of a rule{_near(str(protocol), PROTOCOLS)}", hint="tcp or udp; leave it out for all")
    host, ports, suffix = _split(to.strip())
    if suffix and protocol and suffix != protocol:
        raise SpecError(f"{to!r} says {suffix}, its rule says {protocol}")
    network, pattern = _host(host, to)
    return Rule(Verdict(word), network, pattern, ports, protocol or suffix)


def _split(to: str) -> tuple[str, tuple[int, int] | None, str | None]:
    """host, ports and protocol of "host:443", "[fd00::/8]:53/udp", "10.0.0.0/8:8000-8100", "fd00::1"."""
    bare_v6 = to.count(":") > 1 and not to.startswith("[")
    found = _TAIL.fullmatch(to if not bare_v6 else "")
    if bare_v6 or found is None:
        return to, None, None
    host, low, high = found["host"], found["low"], found["high"]
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if low is None:
        return host, None, found["protocol"]
    ports = int(low), int(high or low)
    if not 0 < ports[0] <= ports[1] <= 65535:
        raise SpecError(f"{to!r}: {low + ('-' + high if high else '')} is no port", hint="ports go from 1 to 65535; a range is 8000-8100")
    if ports[1] > LAST_PORT:
        hint = f"write {low}-{LAST_PORT}" if ports[0] < LAST_PORT else "write the rule without a port"
        raise SpecError(f"{to!r}: the kernel's routing rules have ports up to {LAST_PORT} only", hint=hint)
    return host, ports, found["protocol"]


def _host(host: str, to: str) -> tuple[IPv4Network | IPv6Network | None, str | None]:
    if host in ("*", ""):
        return None, None
    if ":" in host or "/" in host or _NUMERIC.fullmatch(host):
        try:
            return ip_network(host, strict=False), None
        except ValueError as exc:
            raise SpecError(f"{to!r} is no network or address", hint="write 10.0.0.0/8, 10.1.2.3, [fd00::/8]:443 or a name") from exc
    try:
        name = fold(host if host.isascii() else host.encode("idna").decode())
    except UnicodeError:
        name = ""
    if not _NAME.fullmatch(name) or len(name) > 253:
        raise SpecError(f"{to!r} is no host name or network", hint="write db.corp.example:5432, *.corp.example or 10.0.0.0/8")
    return None, name


def _near(word: str, valid: Iterable[str]) -> str:
    near = get_close_matches(word.lower(), list(valid), 1)
    return f", did you mean {near[0]!r}" if near else ""


def _glob(pattern: str, name: str) -> bool:
    """`*` is any run of characters. Linear in the name for each `*`: names come from outside."""
    head, *middle = pattern.split("*")
    if not middle:
        return name == head
    *middle, tail = middle
    if not name.startswith(head) or len(name) < len(head) + len(tail) or not name.endswith(tail):
        return False
    at, end = len(head), len(name) - len(tail)
    for part in middle:
        found = name.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True


@dataclass(slots=True)
class _Learned:
    """What is known of one address: which names have it by an answer, until when, or by /etc/hosts; the Routes that stand for it."""

    names: dict[str, float] = field(default_factory=dict)
    routes: list[Route] = field(default_factory=list)
    pinned: set[str] = field(default_factory=set)


class RuleSet:
    """The user's rules in their order, and what the resolver has taught them. Times are monotonic seconds.

    `teaches`: there are name rules, so `learn` has a use.
    """

    def __init__(self, rules: tuple[Rule, ...] = ()) -> None:
        if len(rules) > MAX_RULES:
            raise SpecError(f"{len(rules)} rules are too many: at most {MAX_RULES}")
        self.rules = rules
        self.warnings: list[str] = []
        self._learned: dict[str, _Learned] = {}  # by CIDR; the least recently learned first
        self._adopted: dict[Route, float] = {}  # stand though no name wants them: an earlier bridge's, each with its end
        self._room = MAX_LEARNED  # and as many more as /etc/hosts has
        self.teaches = any(rule.pattern is not None for rule in rules)

    def routes(self) -> list[Route]:
        """The Routes that hold from the start: those of networks and of "*"."""
        found: list[Route] = []
        for index, rule in enumerate(self.rules):
            if rule.network is not None:
                found += rule.routes(_priority(index), [str(rule.network)])
            elif rule.pattern is None:
                found += rule.routes(_priority(index), ["0.0.0.0/0", "::/0"])
        return found

    def verdict_of(self, name: str) -> Verdict | None:
        """The first name rule's verdict, by which DNS goes; None without one.

        A `deny` of one port or protocol denies no look-up: it is passed over here.
        """
        folded = fold(name)
        for rule in self.rules:
            if rule.matches_name(folded) and (rule.whole or rule.verdict is not Verdict.DENY):
                return rule.verdict
        return None

    def learn(self, name: str, addresses: Iterable[str], ttl_s: float, now: float) -> list[Route]:
        """`name` was answered with `addresses`. Returns the Routes newly wanted; they must stand before the app hears of it."""
        if not self.teaches:
            return []
        folded, wanted = fold(name), list[Route]()
        for network in _networks(addresses):
            learned = self._learned.pop(network, None)
            if learned is None:
                if len(self._learned) >= self._room and not self._make_room():
                    continue
                learned = _Learned()
            self._learned[network] = learned
            known = learned.names.pop(folded, None) is not None
            learned.names[folded] = now + max(ttl_s, 0.0)
            if known:
                continue
            while len(learned.names) > _MAX_NAMES:
                del learned.names[next(iter(learned.names))]
            new = [route for route in self._routes_for(network, learned) if route not in learned.routes]
            learned.routes += new
            wanted += new
        return wanted

    def pin(self, hosts: Mapping[str, Sequence[str]], now: float) -> list[Route]:
        """The app's /etc/hosts has these names, each with its addresses, and no others any more. Returns the Routes newly wanted.

        Of such names only what rules say counts: an alias that none names says nothing against the rule of the name beside it.
        What an earlier file had stands for another day, as an answer does.
        """
        pinned = self._named_in(hosts) if self.teaches else {}
        wanted: list[Route] = []
        for network in {**{known: None for known, learned in self._learned.items() if learned.pinned}, **pinned}:
            learned = self._learned.setdefault(network, _Learned())
            learned.pinned = pinned.get(network, set())
            before, learned.routes = learned.routes, self._routes_for(network, learned)
            wanted += [route for route in learned.routes if route not in before]
            self._adopted.update((route, now + KEEP_S) for route in before if route not in learned.routes)
            if not learned.names and not learned.pinned:
                del self._learned[network]
        self._room = MAX_LEARNED + len(pinned)
        return wanted

    def _named_in(self, hosts: Mapping[str, Sequence[str]]) -> dict[str, set[str]]:
        """The addresses of those names that rules by name are about, each with these names."""
        found: dict[str, set[str]] = {}
        if len(hosts) > MAX_HOSTS:
            self._warn(f"/etc/hosts has {len(hosts)} names: rules by name hold for the first {MAX_HOSTS} of them")
        for name in list(hosts)[:MAX_HOSTS]:
            folded = fold(name)
            if all(self.rules[index].pattern is None for index in self._reached(folded)):
                continue
            for network in _networks(hosts[name]):
                if network in found or len(found) < MAX_PINNED:
                    found.setdefault(network, set()).add(folded)
                else:
                    self._warn(f"rules by name hold for the first {MAX_PINNED} addresses that /etc/hosts gives to their names")
        return found

    def adopt(self, standing: Iterable[Route], now: float) -> list[Route]:
        """Of `standing`, which an earlier bridge of this netns left, what it can have learned by these rules; kept for a day.

        Which name taught it is not known any more, so it stands whatever else is learned of its address: a deny by name holds
        although the app does not ask for the name again.
        """
        kept = [route for route in standing if self._may_be_learned(route)]
        self._adopted.update(dict.fromkeys(kept, now + KEEP_S))
        return kept

    def _may_be_learned(self, route: Route) -> bool:
        index, place = divmod(route.priority - PRIORITY_RULES + 1, PRIORITY_STEP)  # place 0: a CLUSTER that wins over this rule
        if not (0 <= index < len(self.rules) and ip_network(route.network).num_addresses == 1):
            return False
        rule, networks = self.rules[index], [route.network]
        if place == 0:
            return rule.verdict is not Verdict.CLUSTER and route in rule.routes(route.priority, networks, Verdict.CLUSTER)
        return place == 1 and rule.pattern is not None and route in rule.routes(route.priority, networks)

    def unlearn(self, routes: Iterable[Route]) -> None:
        """`routes` could not be made: the next answer wants them again."""
        failed = list(routes)
        for network in {route.network for route in failed}:
            learned = self._learned.pop(network, None)
            if learned is not None and learned.pinned:
                self._learned[network] = _Learned({}, [route for route in learned.routes if route not in failed], learned.pinned)

    def keep(self, routes: Iterable[Route], now: float) -> None:
        """`routes`, which `expire` returned, could not be taken away: it returns them again, but for those that are wanted by then."""
        self._adopted.update(dict.fromkeys(routes, now))

    def expire(self, now: float) -> list[Route]:
        """The Routes to forget: addresses that no answer has named for a day past its TTL, and the oldest beyond the bound."""
        gone: list[Route] = []
        for network, learned in list(self._learned.items()):
            excess = len(self._learned) > self._room
            for name, until in list(learned.names.items()):
                if excess or until + KEEP_S <= now:
                    del learned.names[name]
            if not learned.names and not learned.pinned:
                gone += learned.routes
                del self._learned[network]
                continue
            kept = self._routes_for(network, learned)
            gone += [route for route in learned.routes if route not in kept]
            learned.routes = [route for route in learned.routes if route in kept]
        over = [route for route, until in self._adopted.items() if until <= now]
        for route in over:
            del self._adopted[route]
        gone += [route for route in over if route.network not in self._learned or route not in self._learned[route.network].routes]
        return [route for route in gone if route not in self._adopted]

    def _make_room(self) -> bool:
        """Forget the oldest address that no Route stands for; those with Routes are `expire`'s."""
        for network, learned in self._learned.items():
            if not learned.routes:
                del self._learned[network]
                return True
        return len(self._learned) < self._room + MAX_LEARNED

    def _routes_for(self, network: str, learned: _Learned) -> list[Route]:
        """Each name rule that one of its names reaches, at its own priority; before it a CLUSTER of another name's, if any."""
        found: list[Route] = []
        reached = {name: self._reached(name) for name in (*learned.names, *sorted(learned.pinned))}
        cluster = {name for name in reached if self._is_cluster(name, by_default=name in learned.names)}
        for index in sorted(set().union(*reached.values())):
            rule = self.rules[index]
            if rule.verdict is not Verdict.CLUSTER:
                other = next((name for name, indices in reached.items() if index not in indices and name in cluster), None)
                if other is not None:
                    one = next(name for name, indices in reached.items() if index in indices)
                    self._warn(f"{one} ({rule.verdict.value}) and {other} (cluster) have one address, {network}: cluster wins")
                    found += rule.routes(_priority(index) - 1, [network], Verdict.CLUSTER)
            if rule.pattern is not None:
                found += rule.routes(_priority(index), [network])
        return found

    def _reached(self, name: str) -> set[int]:
        """Indices of the name rules that decide for some flow to `name`: up to the first that is about all of its traffic."""
        indices: set[int] = set()
        for index, rule in enumerate(self.rules):
            if rule.matches_name(name):
                indices.add(index)
                if rule.whole:
                    break
        return indices

    def _is_cluster(self, name: str, *, by_default: bool) -> bool:
        return self.verdict_of(name) in (Verdict.CLUSTER, None if by_default else Verdict.CLUSTER)

    def _warn(self, text: str) -> None:
        if text not in self.warnings and len(self.warnings) < _MAX_WARNINGS:
            self.warnings.append(text)


def _priority(index: int) -> int:
    return PRIORITY_RULES + PRIORITY_STEP * index


def _networks(addresses: Iterable[str]) -> list[str]:
    """Each address as a network of one; those that no route can be for are left out."""
    found = []
    for text in addresses:
        try:
            address = ip_address(text)
        except ValueError:
            continue
        if not (address.is_loopback or address.is_multicast or address.is_unspecified or "%" in text):
            found.append(str(ip_network(address)))
    return found

"""Addresses, routes and rules of the session's netns, by rtnetlink (pyroute2).

Theory of operation: routing decides every verdict (docs/design/001-spine.md, "Routing decides"). A verdict is an `ip rule`
whose priority is its place in the user's list, so TCP, UDP and ICMP agree, `connect()` picks the right source address and
the first match wins. Wiring may be done again over an earlier bridge's, with the app running: what is wanted is added first,
what is not is taken away after, so there is no moment in which a packet finds no rule or a `connect()` no route.

When a network is joined that becomes the default gateway, the engine asks the kernel which device leads there. The question has no
protocol and no port, so for it alone stands a rule that finds what is connected (PRIORITY_ENGINE): what sends has been told CLUSTER
before that, and so has all of the main table that is not the app's own network (PRIORITY_CLOSED).

pyroute2 brings an event loop of asyncio's own kind, and cannot use the bridge's (uvloop knows no netlink sockets): `SessionRoutes`
makes each call in one thread that has the netlink socket to itself. A call takes 0.1 ms for that; none is on a flow's way.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Callable, Container, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface, ip_network
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from bridge.errors import KernelLacks, MissingCapability
from bridge.model.rules import Route, Verdict

log = logging.getLogger(__name__)

TABLE = 0x6D62
MARK_SELF, MARK_REPLY, MARK_ACCEPTED = 0x6D620010, 0x6D620011, 0x6D620012
PRIORITY_FIRST, PRIORITY_LAST = 100, 20200
PRIORITY_NETWORKS, PRIORITY_NAMES, PRIORITY_MACHINE = 20000, 20010, 20011
PRIORITY_CLOSED, PRIORITY_ENGINE, PRIORITY_CLUSTER = 20080, 20090, 20100

_MAIN = 254
_FR_ACT_TO_TBL, _FR_ACT_UNREACHABLE, _FR_ACT_PROHIBIT = 1, 7, 8
_IFA_F_NODAD = 0x02  # linux/if_addr.h
_RTN_UNREACHABLE = 7
_METRIC, _METRIC_BENEATH = 100, 4096
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_NO_IPV6 = (errno.EACCES, errno.EAFNOSUPPORT, errno.EOPNOTSUPP)
_PROTOCOLS = {"tcp": 6, "udp": 17}
# All that sends, by the protocol of its socket; a raw one that writes its own header is IPPROTO_RAW, whatever it sends. A question
# for a route is one of UDP and without ports over IPv4 (inet_rtm_getroute() in net/ipv4/route.c); 65535 is no end of a rule's range.
_SENT: dict[int, tuple[dict[str, Any], ...]] = {
    socket.AF_INET: (
        {"ip_proto": socket.IPPROTO_TCP},
        {"ip_proto": socket.IPPROTO_UDP, "dport_range": "1:65534"},
        {"ip_proto": socket.IPPROTO_ICMP},
        {"ip_proto": socket.IPPROTO_RAW},
    ),
    socket.AF_INET6: (
        {"ip_proto": socket.IPPROTO_TCP},
        {"ip_proto": socket.IPPROTO_UDP},
        {"ip_proto": socket.IPPROTO_ICMPV6},
        {"ip_proto": socket.IPPROTO_RAW},
    ),
}
_NOT_SUPPRESSED = 0xFFFFFFFF
_PROTOCOL_NAMES = {number: name for name, number in _PROTOCOLS.items()}
_P = ParamSpec("_P")
_R = TypeVar("_R")


@dataclass(frozen=True, slots=True)
class Reached:
    """Where the main table leads, but for its default: devices (indices), networks (CIDR) that they connect to, and others."""

    devices: tuple[int, ...] = ()
    connected: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


class SessionRoutes:
    """Wires routes and rules of the netns that this process is in. `async with` opens and closes the netlink socket only.

    Each call raises KernelLacks or MissingCapability, whatever failed.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "netlink")
        self._routes = _Routes()

    async def __aenter__(self) -> Self:
        await self._call(self._routes.open)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        await self._call(self._routes.close)
        self._thread.shutdown(wait=False)

    async def reached(self, tun: str) -> Reached:
        """What the app's own devices lead to; link-local networks are among the others, loopback and our tun are left out."""
        return await self._call(self._routes.reached, tun)

    async def standing(self) -> list[Route]:
        """Verdicts for one address each that an earlier bridge of this netns learned: they outlive it."""
        return await self._call(self._routes.standing)

    async def wire(self, tun: str, mtu: int, addresses: Sequence[str], routes: Iterable[Route]) -> None:
        """Give the tun the target's `addresses` ("10.0.3.7/24"), send CLUSTER to it, and keep `routes`' verdicts.

        Called again, new flows have these addresses; those of before, and rules that are not wanted any more, stand until
        `take_away_stale`. What was learned stays, for open flows go by it; of the app's own networks' rules only what `routes` has.
        """
        await self._call(self._routes.wire, tun, mtu, addresses, list(routes))

    async def take_away_stale(self) -> None:
        """The netns has what `wire` was last told, and what was learned since, and nothing else of ours."""
        await self._call(self._routes.take_away_stale)

    async def learn(self, routes: Iterable[Route]) -> None:
        """Add rules; one that stands already is left as it is."""
        await self._call(self._routes.learn, list(routes))

    async def forget(self, routes: Iterable[Route]) -> None:
        """Take rules away, in this order, up to the first that cannot be; one that is away already is fine."""
        await self._call(self._routes.forget, list(routes))

    async def _call(self, function: Callable[_P, _R], *arguments: _P.args, **named: _P.kwargs) -> _R:
        def call() -> _R:
            try:
                return function(*arguments, **named)
            except (NetlinkError, OSError) as exc:  # of a listing, or of the socket; a change that is refused has words of its own
                reason = exc.code if isinstance(exc, NetlinkError) else exc.errno
                raise KernelLacks(f"the kernel does not answer about routes: {os.strerror(reason or 0)}") from exc

        return await asyncio.get_running_loop().run_in_executor(self._thread, call)


class _Routes:
    """The same, blocking, for one thread."""

    def __init__(self) -> None:
        self._ip: Any = None
        self._added: set[_Rule] = set()
        self._wired: tuple[int, set[str]] = 0, set()  # the tun's index, its addresses

    def open(self) -> None:
        self._ip = IPRoute()

    def close(self) -> None:
        self._ip.close()

    def reached(self, tun: str) -> Reached:
        devices: dict[int, None] = {}
        connected: dict[str, None] = {}
        ours = {link["index"] for link in self._ip.link("dump") if link.get("ifname") in ("lo", tun)}
        for message in self._ip.addr("dump"):
            address = message.get("address") or message.get("local")
            if address is None or message["index"] in ours:
                continue
            interface = ip_interface(f"{address}/{message['prefixlen']}")
            if not interface.is_link_local:
                devices[message["index"]] = None
                connected[str(interface.network)] = None
        found = [route for family in _FAMILIES for route in self._ip.route("dump", family=family, table=_MAIN)]
        others = (f"{route.get('dst')}/{route['dst_len']}" for route in found if route["dst_len"] and route.get("oif") not in ours)
        return Reached(tuple(devices), tuple(connected), tuple(other for other in dict.fromkeys(others) if other not in connected))

    def standing(self) -> list[Route]:
        found: list[Route] = []
        for family, bits in zip(_FAMILIES, (32, 128), strict=True):
            for message in self._ip.rule("dump", family=family):
                rule = _Rule.of(family, message)
                learned = PRIORITY_FIRST + 10 < rule.priority < PRIORITY_NETWORKS or rule.priority in (PRIORITY_NAMES, PRIORITY_MACHINE)
                if learned and rule.dst_len == bits and (verdict := rule.verdict) is not None:
                    low, _, high = (rule.dport_range or "").partition(":")
                    ports = (int(low), int(high)) if low else None
                    found.append(Route(rule.priority, f"{rule.dst}/{bits}", verdict, _PROTOCOL_NAMES.get(rule.ip_proto), ports))
        return found

    def wire(self, tun: str, mtu: int, addresses: Sequence[str], routes: Iterable[Route]) -> None:
        self._added = {rule for rule in self._added if rule.priority not in (PRIORITY_NETWORKS, PRIORITY_CLOSED)}
        found = list(self._ip.link_lookup(ifname=tun))
        index = found[0]
        # the kernel's own router solicitations have no business in the target's network
        _write(f"/proc/sys/net/ipv6/conf/{tun}/router_solicitations", "0")
        self._do("link", "set", index=index, state="up", mtu=mtu)
        self._do("link", "set", index=1, state="up")
        interfaces = [interface for interface in map(ip_interface, addresses) if self._address(index, interface)]
        for family, version in zip(_FAMILIES, (4, 6), strict=True):
            own = [str(interface.ip) for interface in interfaces if interface.version == version]
            self._table(family, index, own[0] if own else None)
            self._rule(family, PRIORITY_FIRST, fwmark=MARK_SELF, table=_MAIN)
            # What the listener accepted may be in the agent's hands: the app, by the local table, is all that it ever leads to
            self._rule(family, PRIORITY_FIRST + 5, fwmark=MARK_ACCEPTED, action=_FR_ACT_UNREACHABLE)
            self._rule(family, PRIORITY_FIRST + 10, fwmark=MARK_REPLY, table=_MAIN)
            for sent in _SENT[family]:
                self._rule(family, PRIORITY_CLOSED, table=TABLE, **sent)
            self._rule(family, PRIORITY_ENGINE, table=_MAIN, suppress_prefixlen=0)
            self._rule(family, PRIORITY_CLUSTER, table=TABLE)
            self._rule(family, PRIORITY_LAST, action=_FR_ACT_UNREACHABLE)
        self.learn(routes)
        self._wired = index, {str(interface.ip) for interface in interfaces}

    def _address(self, index: int, interface: IPv4Interface | IPv6Interface) -> bool:
        """Whether the tun has the address now: not where IPv6 is switched off in this netns; then that family is unreachable."""
        if interface.version == 4:
            return self._do("addr", "add", index=index, address=str(interface.ip), prefixlen=32)
        # No duplicate detection, which ends later: till then the address is no source for a route (EINVAL), one time in five.
        fields: dict[str, Any] = {"index": index, "address": str(interface.ip), "prefixlen": 128, "flags": _IFA_F_NODAD}
        if self._do("addr", "add", tolerated=_NO_IPV6, **fields):
            return True
        log.warning("IPv6 is switched off here: %s is left out", interface.ip)
        return False

    def learn(self, routes: Iterable[Route]) -> None:
        for route in routes:
            self._route_rule("add", route)

    def forget(self, routes: Iterable[Route]) -> None:
        for route in routes:
            self._route_rule("del", route)

    def _route_rule(self, verb: str, route: Route) -> None:
        network = ip_network(route.network, strict=False)
        family = socket.AF_INET if network.version == 4 else socket.AF_INET6
        fields: dict[str, Any] = {}
        if network.prefixlen:
            fields |= {"dst": str(network.network_address), "dst_len": network.prefixlen}
        if route.protocol is not None:
            fields["ip_proto"] = _PROTOCOLS[route.protocol]
        if route.ports is not None:
            fields["dport_range"] = f"{route.ports[0]}:{route.ports[1]}"
        match route.verdict:
            case Verdict.CLUSTER:
                fields["table"] = TABLE
            case Verdict.DIRECT:
                fields["table"] = _MAIN
                if route.priority in (PRIORITY_NETWORKS, PRIORITY_NAMES):  # a network that was left is not beyond the default gateway
                    fields["suppress_prefixlen"] = 0
            case Verdict.DENY:
                fields["action"] = _FR_ACT_PROHIBIT
        self._rule(family, route.priority, verb=verb, **fields)

    def _table(self, family: int, index: int, source: str | None) -> None:
        everywhere: dict[str, Any] = {
            "family": family,
            "dst": "0.0.0.0" if family == socket.AF_INET else "::",
            "dst_len": 0,
            "table": TABLE,
        }
        self._do("route", "add", type=_RTN_UNREACHABLE, priority=_METRIC_BENEATH, **everywhere)
        if source is not None:
            self._do("route", "replace", oif=index, prefsrc=source, priority=_METRIC, **everywhere)
        else:
            self._do("route", "del", oif=index, priority=_METRIC, **everywhere)

    def _rule(self, family: int, priority: int, verb: str = "add", **fields: Any) -> None:
        if verb == "add":
            self._added.add(_Rule.of(family, {"action": _FR_ACT_TO_TBL, **fields, "priority": priority}))
        self._do("rule", verb, family=family, priority=priority, **fields)

    def _do(self, what: str, verb: str, *, tolerated: Container[int] = (), **fields: Any) -> bool:
        """Whether it is so now. Absence and presence are fine where they are what was asked for."""
        try:
            getattr(self._ip, what)(verb, **fields)
        except NetlinkError as exc:
            if exc.code in tolerated:
                return False
            if exc.code == errno.EPERM:
                raise MissingCapability("changing routes is not allowed", hint="the bridge needs NET_ADMIN") from exc
            if verb == "add" and exc.code == errno.EEXIST:
                return True
            if verb == "del" and exc.code in (errno.ENOENT, errno.ESRCH):
                return True
            if fields.get("family") == socket.AF_INET6 and exc.code in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
                log.debug("= no IPv6 in this kernel: %s %s left out", what, verb)
                return False
            told = " ".join(f"{name} {value}" for name, value in fields.items())
            raise KernelLacks(f"the kernel refused {what} {verb} ({told}): {os.strerror(exc.code)}") from exc
        return True

    def take_away_stale(self) -> None:
        index, addresses = self._wired
        for family in _FAMILIES:
            standing = [_Rule.of(family, rule) for rule in self._ip.rule("dump", family=family)]
            for rule in standing:
                if PRIORITY_FIRST <= rule.priority <= PRIORITY_LAST and rule not in self._added:
                    self._do("rule", "del", family=family, **rule.fields())
        own = list(self._ip.addr("dump", index=index))
        for message in own:
            address = message.get("local") or message.get("address")
            if message["index"] == index and address not in addresses and not ip_address(address).is_link_local:
                self._do("addr", "del", index=index, address=address, prefixlen=message["prefixlen"])


@dataclass(frozen=True, slots=True)
class _Rule:
    """All by which the kernel tells our rules apart."""

    family: int
    priority: int
    action: int
    dst: str | None
    dst_len: int
    table: int
    fwmark: int
    ip_proto: int
    dport_range: str | None
    suppress_prefixlen: int | None

    @classmethod
    def of(cls, family: int, fields: Any) -> Self:
        """From what was asked for, or what the kernel lists; a field that is not there is 0."""
        table = fields.get("table") if fields["action"] == _FR_ACT_TO_TBL else None
        numbers = (fields.get("fwmark"), fields.get("ip_proto"))
        mark, protocol = (number or 0 for number in numbers)
        dst_len = fields.get("dst_len") or 0
        dst = fields.get("dst") if dst_len else None
        priority, suppressed = fields.get("priority") or 0, fields.get("suppress_prefixlen")
        if suppressed == _NOT_SUPPRESSED:
            suppressed = None
        return cls(family, priority, fields["action"], dst, dst_len, table or 0, mark, protocol, fields.get("dport_range"), suppressed)

    @property
    def verdict(self) -> Verdict | None:
        if self.action == _FR_ACT_PROHIBIT:
            return Verdict.DENY
        return {TABLE: Verdict.CLUSTER, _MAIN: Verdict.DIRECT}.get(self.table) if self.action == _FR_ACT_TO_TBL else None

    def fields(self) -> dict[str, Any]:
        named = {name: getattr(self, name) for name in ("action", "dst", "dst_len", "table", "fwmark", "ip_proto", "dport_range")}
        named = {name: value for name, value in named.items() if value}
        if self.suppress_prefixlen is not None:
            named["suppress_prefixlen"] = self.suppress_prefixlen
        return {"priority": self.priority, **named}


def _write(path: str, value: str) -> None:
    try:
        Path(path).write_text(value)
    except OSError as exc:  # read-only /proc/sys in an unprivileged container: the reader of the tun skips such packets
        log.debug("! %s: %s", path, exc)

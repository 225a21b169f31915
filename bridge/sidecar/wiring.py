"""One session's netns, wired: where the bridge's engine and its adapters meet.

Order: the tun and its routes come before the netfilter rules, these before `/etc/resolv.conf` and `/etc/hosts`; only then may
the app start. So the user's rules for names of that hosts file, which the app looks up by itself, stand before it can.
Each step can be made again over what an earlier bridge of the same netns left (kill -9, restart), and none is undone here:
a netns that outlives its bridge must stay closed. All of it goes with the pause container.

A target that moved (another pod, another address) is wired again by `rewire()`, under the running app: its addresses,
resolvers and files change, listeners and queue stay, and there is no moment in which a packet could leave by another way.

What an earlier bridge learned of names stands in the kernel's rules and is taken over from there: a `deny` by name holds
although the app does not ask for the name again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Sequence
from ipaddress import ip_interface, ip_network
from pathlib import Path

from bridge.adapters import nft
from bridge.adapters.engine_dns import RESOLVER, EngineDns, resolver_is_here
from bridge.adapters.listeners import Listener, ResolverSockets, arrival, reset, resolver_sockets
from bridge.adapters.netlink import (
    MARK_ACCEPTED,
    MARK_REPLY,
    MARK_SELF,
    PRIORITY_CLOSED,
    PRIORITY_MACHINE,
    PRIORITY_NAMES,
    PRIORITY_NETWORKS,
    Reached,
    SessionRoutes,
)
from bridge.adapters.nfqueue import MARK_HOST_UNREACHABLE, MARK_NET_UNREACHABLE, MARK_REFUSE, SynQueue
from bridge.adapters.tun import MTU, open_tun
from bridge.engine.accepting import Accepting
from bridge.engine.datagrams import Datagrams
from bridge.engine.needs import Link
from bridge.engine.outgoing import Outgoing
from bridge.engine.relay import prepare
from bridge.engine.resolver import DnsServer, Resolver
from bridge.model.facts import BridgeConfig, Facts
from bridge.model.kernel import unmet
from bridge.model.rules import Route, RuleSet, Verdict, parse_rule
from bridge.protocol.dns import merge_hosts, names_in_hosts, parse_resolv_conf
from bridge.sidecar.expiring import expire
from bridge.sidecar.networks import follow
from bridge.sidecar.probe import read_setting

log = logging.getLogger(__name__)

_QUEUE = 0x6D62
_RESOLV_CONF, _HOSTS = Path("/etc/resolv.conf"), Path("/etc/hosts")
_PACKETS_PER_WAKE = 64
_NO_HOLD = "this kernel holds no connections (module nfnetlink_queue): connect() succeeds first and is reset where the target refuses"


class Wired:
    """The session's netns under our rules. Make it with `wire()`."""

    def __init__(self, config: BridgeConfig, link: Link, group: asyncio.TaskGroup) -> None:
        self.config = config
        self.link = link
        self.engine_resolv_conf = config.engine_resolv_conf or _RESOLV_CONF.read_text(errors="replace")
        self._hosts = _HOSTS.read_text(errors="replace")  # from here on ours: the engine may be writing that file whenever we look
        self.rules = RuleSet(tuple(parse_rule(dict(rule)) for rule in config.rules))
        self.names = set(config.names)
        self.holder: nft.Hold | None = None
        self.tun = f"mb-{config.session}"
        self._group = group
        self._routes = SessionRoutes()
        self._routing = asyncio.Lock()
        self._addresses: Sequence[str] = ()  # the target's, as they are routed
        self._reached = Reached()  # by the app's own devices
        self._engine_nameservers = parse_resolv_conf(self.engine_resolv_conf).nameservers
        self._containers_dns = EngineDns(self._engine_nameservers, MARK_SELF)
        self._kept: list[Route] = []  # of an earlier bridge of this netns
        self._unmet = tuple(unmet(read_setting))
        self._loop = asyncio.get_running_loop()
        self._listener = Listener()
        self._queue: SynQueue | None = None
        self._resolver: Resolver | None = None
        self._resolvers: dict[str, tuple[ResolverSockets, asyncio.Task[None]]] = {}
        self.facts: Facts | None = None
        self.outgoing: Outgoing | None = None
        self.datagrams: Datagrams | None = None

    async def wire(self, facts: Facts) -> None:
        """Wire the netns after the target's `facts`; the app may start when this returns."""
        await self._routes.__aenter__()
        standing = await self._routes.standing()
        names = (route for route in standing if route.priority in (PRIORITY_NAMES, PRIORITY_MACHINE))
        self._kept = [*self.rules.adopt(standing, time.monotonic()), *names]
        tun_fd = open_tun(self.tun)
        await self._route(facts)
        self._listener.open(MARK_ACCEPTED)
        self._start_outgoing(self._listener)
        self._start_dns()
        await self._redirect(facts)
        if self._queue is not None:  # not before: the table of an earlier bridge sends what is accepted to a port where nobody is now
            self._queue.start()
        self._start_datagrams(tun_fd, self._own_networks())
        self._group.create_task(follow(self._look_at_networks), name="networks")
        self.facts = facts
        self._write_files(facts)

    async def rewire(self, facts: Facts) -> None:
        """The target is another one, or has other addresses, nameservers or hosts."""
        assert self.datagrams is not None
        assert self._resolver is not None
        await self._route(facts)
        self.datagrams.app_networks(self._own_networks())
        self.datagrams.forget_all()
        self._resolver.forget()
        await self._redirect(facts)
        self.facts = facts
        self._write_files(facts)

    async def _route(self, facts: Facts) -> None:
        """Addresses, routes and rules, those of the names that /etc/hosts is to have too."""
        async with self._routing:
            left = _ips(self._addresses) - _ips(facts.addresses)
            self._addresses, self._reached = facts.addresses, await self._routes.reached(self.tun)
            self._hosts = merge_hosts(facts.hosts, self._hosts, facts.hostname)
            pinned = self.rules.pin(names_in_hosts(self._hosts), time.monotonic())
            routes = [*self.rules.routes(), *pinned, *self._kept, *_own_routes(self._reached, facts.addresses)]
            await self._routes.wire(self.tun, MTU, facts.addresses, routes)
            self._kept = []  # these stand; from here on they end as what is learned does
            if self.outgoing is not None:
                self.outgoing.leave(left)
                await self.outgoing.until_left(left)
            await self._routes.take_away_stale()

    async def _look_at_networks(self) -> None:
        """The session has joined a network, or left one: its own networks are DIRECT from now on."""
        if resolver_is_here():
            self._containers_dns.nameservers = tuple(dict.fromkeys((RESOLVER, *self._engine_nameservers)))
        if self.facts is not None:
            self._write_files(self.facts)  # the engine has written its own nameserver and names into them
        async with self._routing:
            reached = await self._routes.reached(self.tun)
            if reached == self._reached:
                return
            before, now = _own_routes(self._reached, self._addresses), _own_routes(reached, self._addresses)
            await self._routes.learn([route for route in now if route not in before])
            await self._routes.forget([route for route in before if route not in now])
            await asyncio.to_thread(nft.judge, reached.devices)
            self._reached = reached
        log.info("the app's own networks are now %s", ", ".join(self._own_networks()) or "none")
        if self.datagrams is not None:
            self.datagrams.app_networks(self._own_networks())

    def _own_networks(self) -> list[str]:
        return [route.network for route in _own_routes(self._reached, self._addresses) if route.verdict is Verdict.DIRECT]

    async def _redirect(self, facts: Facts) -> None:
        """A resolver for each nameserver of the target, then the nft table that sends the app there, then no other resolver."""
        assert self.outgoing is not None
        nameservers = parse_resolv_conf(facts.resolv_conf).nameservers
        for nameserver in nameservers:
            if nameserver not in self._resolvers:
                self._resolvers[nameserver] = self._serve_dns(nameserver)
        self.outgoing.bypass = frozenset((nameserver, 53) for nameserver in nameservers)
        async with self._routing:  # a device that is found meanwhile is judged in the new table, not in the old one
            redirects = nft.Redirects(
                self.tun,
                self._listener.port,
                tuple((nameserver, self._resolvers[nameserver][0].port) for nameserver in nameservers),
                tuple(self.config.loopback),
                MARK_SELF,
                MARK_REPLY,
                (MARK_REFUSE, MARK_HOST_UNREACHABLE, MARK_NET_UNREACHABLE),
                self._reached.devices,
            )
            await asyncio.to_thread(nft.apply, redirects)
        for nameserver in [known for known in self._resolvers if known not in nameservers]:
            sockets, task = self._resolvers.pop(nameserver)
            task.cancel()
            await asyncio.wait([task])
            for sock in (*sockets.udp, *sockets.tcp):
                sock.close()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What works less well than it might, in the user's words."""
        return (*self.rules.warnings, *self._unmet, *(() if self.holder else (_NO_HOLD,)))

    def change_names(self, names: Sequence[str]) -> None:
        """Containers on the app's networks came or went."""
        self.names.clear()
        self.names.update(names)

    def agent_is_new(self) -> None:
        if self.datagrams is not None:
            self.datagrams.forget_all()

    def _start_outgoing(self, listener: Listener) -> None:
        self.holder = nft.hold_syns(self.tun, _QUEUE, tuple(self.config.loopback))
        queue = self._queue = SynQueue(_QUEUE, lambda syn: outgoing.on_syn(syn)) if self.holder else None
        outgoing = self.outgoing = Outgoing(self.link, self._group, queue, lambda arrival: reset(arrival.sock))
        if queue is not None:
            queue.open()
        for sock in listener.sockets:
            prepare(sock)  # what it accepts is born so
            Accepting(sock, self._on_connection).start()

    def _on_connection(self, sock: socket.socket, app: tuple[str, int]) -> None:
        assert self.outgoing is not None
        arrived = arrival(sock, app)
        if arrived is not None:
            self.outgoing.on_arrival(arrived)

    def _start_datagrams(self, tun_fd: int, app_networks: Sequence[str]) -> None:
        def write(packet: bytes) -> None:
            try:
                os.write(tun_fd, packet)
            except OSError as exc:  # the device's queue is full, or the packet odd: a network would drop it as well
                log.debug("! tun: %s", exc)

        datagrams = self.datagrams = Datagrams(write, self.link.send, app_networks)
        self.link.on_datagram = datagrams.on_message
        buffer = bytearray(MTU + 1)
        view = memoryview(buffer)

        def read() -> None:
            for _ in range(_PACKETS_PER_WAKE):
                try:
                    size = os.readv(tun_fd, [buffer])
                except BlockingIOError:
                    return
                datagrams.on_packet(bytes(view[:size]))

        self._loop.add_reader(tun_fd, read)

    def _start_dns(self) -> None:
        engine = EngineDns(self._engine_nameservers, MARK_SELF)
        self._resolver = Resolver(
            rules=self.rules,
            names=self.names,
            ask_cluster=self.link.ask,
            ask_engine=engine.ask,
            ask_containers=self._containers_dns.ask,
            learn=self._learn,
            learn_container=self._learn_container,
            now=time.monotonic,
        )
        self._group.create_task(expire(self.rules, self._routes.forget, time.monotonic), name="routes-expiry")

    def _serve_dns(self, nameserver: str) -> tuple[ResolverSockets, asyncio.Task[None]]:
        assert self._resolver is not None
        sockets = resolver_sockets(nameserver)
        server = DnsServer(self._resolver, nameserver, sockets.udp, sockets.tcp)
        return sockets, self._group.create_task(server.serve(), name=f"resolver-{nameserver}")

    async def _learn(self, routes: Sequence[Route]) -> None:
        await self._routes.learn(routes)

    async def _learn_container(self, addresses: Sequence[str], machine: bool) -> None:
        priority = PRIORITY_MACHINE if machine else PRIORITY_NAMES
        await self._routes.learn([Route(priority, address, Verdict.DIRECT, None, None) for address in addresses])

    def _write_files(self, facts: Facts) -> None:
        _rewrite(_RESOLV_CONF, facts.resolv_conf)
        _rewrite(_HOSTS, self._hosts)


def _rewrite(path: Path, text: str) -> None:
    """In place, without a rename: the app's container has the same file mounted."""
    data = text.encode(errors="replace")
    with path.open("r+b") as file:
        if file.read() != data:
            file.seek(0)
            file.write(data)
            file.truncate()


def _own_routes(reached: Reached, addresses: Sequence[str]) -> list[Route]:
    """The networks of the app's own devices are DIRECT, but for those that overlap one of the target's: there the target's view wins.

    These, and what else the main table leads to, are closed to every protocol.
    """
    targets = [ip_interface(address).network for address in addresses]

    def is_own(text: str) -> bool:
        network = ip_network(text)
        return not any(network.version == target.version and network.overlaps(target) for target in targets)

    own = [network for network in reached.connected if is_own(network)]
    closed = [network for network in (*reached.connected, *reached.others) if network not in own]
    return [
        *(Route(PRIORITY_NETWORKS, network, Verdict.DIRECT, None, None) for network in own),
        *(Route(PRIORITY_CLOSED, network, Verdict.CLUSTER, None, None) for network in closed),
    ]


def _ips(addresses: Sequence[str]) -> set[str]:
    return {str(ip_interface(address).ip) for address in addresses}

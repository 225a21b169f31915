"""One session's netns, wired: where the bridge's engine and its adapters meet.

Order: the tun and its routes come before the netfilter rules, these before `/etc/resolv.conf` and `/etc/hosts`; only then may
the app start. So the user's rules for names of that hosts file, which the app looks up by itself, stand before it can.
Each step can be made again over what an earlier bridge of the same netns left (kill -9, restart), and none is undone here:
a netns that outlives its bridge must stay closed. All of it goes with the pause container.

A target that moved (another pod, another address) is wired again by `rewire()`, under the running app: its addresses,
resolvers and files change, listeners and queue stay, and there is no moment in which a packet could leave by another way.

What an earlier bridge learned of names stands in the kernel's rules and is taken over from there: a `deny` by name holds
although the app does not ask for the name again.

Limits: where the engine's resolver came with a network that was joined later, it is not asked for containers' names.
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
from bridge.adapters.engine_dns import EngineDns
from bridge.adapters.listeners import Listener, ResolverSockets, arrival, reset, resolver_sockets
from bridge.adapters.netlink import MARK_REPLY, MARK_SELF, PRIORITY_NAMES, PRIORITY_NETWORKS, SessionRoutes
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
from bridge.sidecar.networks import follow
from bridge.sidecar.probe import read_setting

log = logging.getLogger(__name__)

_QUEUE = 0x6D62
_RESOLV_CONF, _HOSTS = Path("/etc/resolv.conf"), Path("/etc/hosts")
_PACKETS_PER_WAKE = 64
_EXPIRE_EVERY_S = 30.0
_NO_HOLD = "this kernel holds no connections (module nfnetlink_queue): connect() succeeds first and is reset where the target refuses"


class Wired:
    """The session's netns under our rules. Make it with `wire()`."""

    def __init__(self, config: BridgeConfig, link: Link, group: asyncio.TaskGroup) -> None:
        self.config = config
        self.link = link
        self.engine_resolv_conf = config.engine_resolv_conf or _RESOLV_CONF.read_text()
        self.rules = RuleSet(tuple(parse_rule(dict(rule)) for rule in config.rules))
        self.names = set(config.names)
        self.holder: nft.Hold | None = None
        self.tun = f"mb-{config.session}"
        self._group = group
        self._routes = SessionRoutes()
        self._routing = asyncio.Lock()
        self._routed: tuple[Sequence[str], list[str]] = (), []  # the target's addresses, the app's own networks
        self._kept: list[Route] = []  # of an earlier bridge of this netns
        self._unmet = tuple(unmet(read_setting))
        self._loop = asyncio.get_running_loop()
        self._listener = Listener()
        self._resolver: Resolver | None = None
        self._resolvers: dict[str, tuple[ResolverSockets, asyncio.Task[None]]] = {}
        self.facts: Facts | None = None
        self.outgoing: Outgoing | None = None
        self.datagrams: Datagrams | None = None

    async def wire(self, facts: Facts) -> None:
        """Wire the netns after the target's `facts`; the app may start when this returns."""
        await self._routes.__aenter__()
        standing = await self._routes.standing()
        self._kept = [*self.rules.adopt(standing, time.monotonic()), *(route for route in standing if route.priority == PRIORITY_NAMES)]
        tun_fd = open_tun(self.tun)
        hosts = _hosts_for(facts)
        app_networks = await self._route(facts, hosts)
        self._listener.open()
        self._start_outgoing(self._listener)
        self._start_dns()
        await self._redirect(facts)
        self._start_datagrams(tun_fd, app_networks)
        self._group.create_task(follow(self._look_at_networks), name="networks")
        _write_files(facts, hosts)
        self.facts = facts

    async def rewire(self, facts: Facts) -> None:
        """The target is another one, or has other addresses, nameservers or hosts."""
        assert self.datagrams is not None
        assert self._resolver is not None
        hosts = _hosts_for(facts)
        self.datagrams.app_networks(await self._route(facts, hosts))
        self.datagrams.forget_all()
        self._resolver.forget()
        await self._redirect(facts)
        _write_files(facts, hosts)
        self.facts = facts

    async def _route(self, facts: Facts, hosts: str) -> list[str]:
        """Addresses, routes and rules, those of the names in `hosts` too; the app's own networks, which are left alone."""
        async with self._routing:
            app_networks = _not_the_targets(await self._routes.app_networks(self.tun), facts.addresses)
            pinned = self.rules.pin(names_in_hosts(hosts), time.monotonic())
            await self._routes.wire(self.tun, MTU, facts.addresses, app_networks, [*self.rules.routes(), *pinned, *self._kept])
            self._kept = []  # these stand; from here on they end as what is learned does
            if self.outgoing is not None:
                self.outgoing.leave(_ips(self._routed[0]) - _ips(facts.addresses))
            await self._routes.take_away_stale()
            self._routed = facts.addresses, app_networks
        return app_networks

    async def _look_at_networks(self) -> None:
        """The session has joined a network, or left one: its own networks are DIRECT from now on."""
        async with self._routing:
            addresses, before = self._routed
            now = _not_the_targets(await self._routes.app_networks(self.tun), addresses)
            for networks, change in ((set(now) - set(before), self._routes.learn), (set(before) - set(now), self._routes.forget)):
                await change([Route(PRIORITY_NETWORKS, network, Verdict.DIRECT, None, None) for network in networks])
            self._routed = addresses, now
        if self.datagrams is not None and now != before:
            log.info("the app's own networks are now %s", ", ".join(now) or "none")
            self.datagrams.app_networks(now)

    async def _redirect(self, facts: Facts) -> None:
        """A resolver for each nameserver of the target, then the nft table that sends the app there, then no other resolver."""
        assert self.outgoing is not None
        nameservers = parse_resolv_conf(facts.resolv_conf).nameservers
        for nameserver in nameservers:
            if nameserver not in self._resolvers:
                self._resolvers[nameserver] = self._serve_dns(nameserver)
        self.outgoing.bypass = frozenset((nameserver, 53) for nameserver in nameservers)
        redirects = nft.Redirects(
            self.tun,
            self._listener.port,
            tuple((nameserver, self._resolvers[nameserver][0].port) for nameserver in nameservers),
            tuple(self.config.loopback),
            MARK_SELF,
            MARK_REPLY,
            (MARK_REFUSE, MARK_HOST_UNREACHABLE, MARK_NET_UNREACHABLE),
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
        queue = SynQueue(_QUEUE, lambda syn: outgoing.on_syn(syn)) if self.holder else None
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
        engine = EngineDns(list(parse_resolv_conf(self.engine_resolv_conf).nameservers), MARK_SELF)
        self._resolver = Resolver(
            rules=self.rules,
            names=self.names,
            ask_cluster=self.link.ask,
            ask_engine=engine.ask,
            learn=self._learn,
            learn_container=self._learn_container,
            now=time.monotonic,
        )
        self._group.create_task(self._expire(), name="routes-expiry")

    def _serve_dns(self, nameserver: str) -> tuple[ResolverSockets, asyncio.Task[None]]:
        assert self._resolver is not None
        sockets = resolver_sockets(nameserver)
        server = DnsServer(self._resolver, nameserver, sockets.udp, sockets.tcp)
        return sockets, self._group.create_task(server.serve(), name=f"resolver-{nameserver}")

    async def _learn(self, routes: Sequence[Route]) -> None:
        await self._routes.learn(routes)

    async def _learn_container(self, addresses: Sequence[str]) -> None:
        await self._routes.learn([Route(PRIORITY_NAMES, address, Verdict.DIRECT, None, None) for address in addresses])

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(_EXPIRE_EVERY_S)
            await self._routes.forget(self.rules.expire(time.monotonic()))


def _hosts_for(facts: Facts) -> str:
    """The app's /etc/hosts as it is to be."""
    return merge_hosts(facts.hosts, _HOSTS.read_text(), facts.hostname)


def _write_files(facts: Facts, hosts: str) -> None:
    """In place, without a rename: the app's container has the same files mounted."""
    _rewrite(_RESOLV_CONF, facts.resolv_conf)
    _rewrite(_HOSTS, hosts)


def _rewrite(path: Path, text: str) -> None:
    with path.open("r+") as file:
        file.write(text)
        file.truncate()


def _ips(addresses: Sequence[str]) -> set[str]:
    return {str(ip_interface(address).ip) for address in addresses}


def _not_the_targets(app_networks: Sequence[str], addresses: Sequence[str]) -> list[str]:
    """The app's own networks but for those that overlap one of the target's: there the target's view wins."""
    targets = [ip_interface(address).network for address in addresses]
    return [
        network
        for network in app_networks
        if not any(ip_network(network).version == target.version and ip_network(network).overlaps(target) for target in targets)
    ]

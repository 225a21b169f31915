"""The app's nameserver: takes its DNS queries, decides who is asked, and teaches the routes before the app hears the answer.

Theory of operation: the verdict comes first, by name; then whoever that verdict trusts is asked.

    query --> rule of the name? --deny--> REFUSED
                  |   |  +--direct--> the engine's nameservers   (the cluster's DNS must not steer a DIRECT connection)
                  |   +--cluster----> the target's nameserver, from inside the target
                  +--none--> a container on the app's networks? --yes--> the engine's resolver
                                                                +--no--> the target's nameserver

The query's bytes go on as they are and the answer's come back, so all types and EDNS work. One question that several ask at
once is put once. No answer from there is no answer to the app: its own resolver knows when to give up and whom to ask next.

Limits: 4,096 queries under way; 256 TCP connections with 64 queries each, closed after 30 s of silence. A query waits 10 s.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field

from bridge.engine.accepting import Accepting
from bridge.errors import BridgeError, LinkError, RemoteProtocolError
from bridge.model.rules import Route, RuleSet, Verdict
from bridge.protocol import dns

log = logging.getLogger(__name__)

MAX_UNDER_WAY = 4096
ANSWER_S = 10.0
# glibc asks again after 5 s (resolv.conf(5)): the first datagram may be lost, so this one must not wait for it
JOIN_S = 2.0
IDLE_S = 30.0
_MAX_CONNECTIONS, _MAX_PIPELINED = 256, 64
_PACKETS_PER_WAKE = 64
_ENGINE = "engine"
_HOST_NAMES = frozenset(("host.docker.internal", "gateway.docker.internal"))

AskCluster = Callable[[str, bytes, bool], Awaitable[bytes]]
AskEngine = Callable[[bytes, bool], Awaitable[bytes]]


@dataclass(slots=True)
class _UnderWay:
    since: float
    answer: asyncio.Future[bytes | None]


@dataclass(slots=True)
class Counts:
    """What `mbridge status` shows of the resolver."""

    asked: int = 0
    cached: int = 0
    refused: int = 0
    unanswered: int = 0


@dataclass(slots=True)
class Resolver:
    """Answers queries. `names` (the containers' names) may change at any time; it is the caller's.

    `learn_container(addresses, machine)`: of a container on the app's networks, or of the machine that the engine runs on.
    """

    rules: RuleSet
    names: Collection[str]
    ask_cluster: AskCluster
    ask_engine: AskEngine
    ask_containers: AskEngine
    learn: Callable[[Sequence[Route]], Awaitable[None]]
    learn_container: Callable[[Sequence[str], bool], Awaitable[None]]
    now: Callable[[], float]
    counts: Counts = field(default_factory=Counts)
    _cache: dns.Cache = field(default_factory=dns.Cache)
    _under_way: dict[tuple[str, bytes, bool], _UnderWay] = field(default_factory=dict)
    _learning: asyncio.Lock = field(default_factory=asyncio.Lock)
    _containers: set[str] = field(default_factory=set)  # addresses whose routes stand already

    async def ask(self, nameserver: str, message: bytes, over_tcp: bool) -> bytes | None:
        """The answer to the app's `message`, which it sent to `nameserver`; None where there is none to give."""
        if (answer := self.ask_now(nameserver, message)) is not None:
            return answer
        try:
            query = dns.read_query(message)
        except RemoteProtocolError:
            return dns.malformed(message)
        self.counts.asked += 1
        verdict = self.rules.verdict_of(query.name)
        if verdict is Verdict.DENY:
            self.counts.refused += 1
            return dns.refuse(message, query)
        by_engine = verdict is Verdict.DIRECT or (verdict is None and self._is_container(query.name))
        asked = _ENGINE if by_engine else nameserver
        if (kept := self._cache.get(asked, message, self.now())) is not None:
            self.counts.cached += 1
            return kept[0] if await self._teach(query, kept[1], is_container=verdict is None and by_engine) else None
        answer = await self._ask_once(asked, nameserver, query, message, over_tcp, is_container=verdict is None and by_engine)
        if answer is None:
            self.counts.unanswered += 1
            return None
        return dns.with_id(answer, message)

    def ask_now(self, nameserver: str, message: bytes) -> bytes | None:
        """The answer where it is in the cache and no route is missing: no task, no waiting. Else None."""
        try:
            query = dns.read_query(message)
        except RemoteProtocolError:
            return None
        verdict = self.rules.verdict_of(query.name)
        if verdict is Verdict.DENY:
            return None
        is_container = verdict is None and self._is_container(query.name)
        kept = self._cache.get(_ENGINE if is_container or verdict is Verdict.DIRECT else nameserver, message, self.now())
        if kept is None:
            return None
        answer, read = kept
        if is_container:
            if not self._containers.issuperset(read.addresses):
                return None
        elif read.addresses and self.rules.teaches:
            return None
        self.counts.asked += 1
        self.counts.cached += 1
        return answer

    def forget(self) -> None:
        """Drop what the cache holds: the target, or its nameservers, are others now."""
        self._cache.clear()

    def _is_container(self, name: str) -> bool:
        return name in self.names or name in _HOST_NAMES

    async def _ask_once(
        self, asked: str, nameserver: str, query: dns.Query, message: bytes, over_tcp: bool, is_container: bool
    ) -> bytes | None:
        key = asked, message[2:], over_tcp
        under_way = self._under_way.get(key)
        if under_way is not None and self.now() - under_way.since < JOIN_S:
            return await asyncio.shield(under_way.answer)
        mine = self._under_way[key] = _UnderWay(self.now(), asyncio.get_running_loop().create_future())
        answer: bytes | None = None
        try:
            answer = await self._ask_upstream(asked, nameserver, query, message, over_tcp, is_container)
        finally:
            if self._under_way.get(key) is mine:
                del self._under_way[key]
            mine.answer.set_result(answer)
        return answer

    async def _ask_upstream(
        self, asked: str, nameserver: str, query: dns.Query, message: bytes, over_tcp: bool, is_container: bool
    ) -> bytes | None:
        try:
            async with asyncio.timeout(ANSWER_S):
                if asked is _ENGINE:
                    of_network = is_container and query.name not in _HOST_NAMES
                    answer = await (self.ask_containers if of_network else self.ask_engine)(message, over_tcp)
                else:
                    answer = await self.ask_cluster(nameserver, message, over_tcp)
            read = dns.read_answer(answer, query)
        except (TimeoutError, LinkError, RemoteProtocolError, OSError) as exc:
            log.debug("! dns %s of %s by %s: %s", query.rdtype, query.name, asked, exc or "no answer")
            return None
        if not await self._teach(query, read, is_container):
            return None
        self._cache.put(asked, message, answer, read, self.now())
        return answer

    async def _teach(self, query: dns.Query, read: dns.Answer, is_container: bool) -> bool:
        """Whether the routes to the answer's addresses stand; without them the app must not hear of these."""
        try:
            if is_container:
                if new := [address for address in read.addresses if address not in self._containers]:
                    await self.learn_container(new, query.name in _HOST_NAMES)
                    self._containers.update(new)
            elif read.addresses and self.rules.teaches:
                await self._learn_name(query.name, read)
        except BridgeError as exc:
            log.warning("! dns %s: its answer is withheld, no route can be made: %s", query.name, exc)
            return False
        return True

    async def _learn_name(self, name: str, read: dns.Answer) -> None:
        async with self._learning:  # who finds a route already wanted must not be faster than it is made
            routes = self.rules.learn(name, read.addresses, read.addresses_ttl_s, self.now())
            if not routes:
                return
            made = False
            try:
                await self.learn(routes)
                made = True
            finally:
                if not made:
                    self.rules.unlearn(routes)


class DnsServer:
    """Serves the sockets that stand for one nameserver of the app's."""

    def __init__(self, resolver: Resolver, nameserver: str, udp_socks: Sequence[socket.socket], tcp_socks: Sequence[socket.socket]) -> None:
        self._resolver = resolver
        self._nameserver = nameserver
        self._udp = udp_socks
        self._tcp = tcp_socks
        self._under_way = 0
        self._connections = 0

    async def serve(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            accepting = [Accepting(sock, lambda connection, _: self._on_connection(connection, group)) for sock in self._tcp]
            for one in accepting:
                one.start()
            for sock in self._udp:
                loop.add_reader(sock.fileno(), self._on_datagrams, sock, group)
            try:
                await loop.create_future()
            finally:
                for one in accepting:
                    one.stop()
                for sock in self._udp:
                    loop.remove_reader(sock.fileno())

    def _on_datagrams(self, sock: socket.socket, group: asyncio.TaskGroup) -> None:
        for _ in range(_PACKETS_PER_WAKE):
            try:
                message, app = sock.recvfrom(dns.MAX_MESSAGE_BYTES)
            except OSError:  # nothing left, or the error of an answer sent earlier
                return
            if (answer := self._resolver.ask_now(self._nameserver, message)) is not None:
                _send(sock, answer, message, app)
            elif self._under_way < MAX_UNDER_WAY:  # past it: dropped, as a full network would
                self._under_way += 1
                group.create_task(self._answer_datagram(sock, message, app), name="dns-query")

    async def _answer_datagram(self, sock: socket.socket, message: bytes, app: object) -> None:
        try:
            answer = await self._resolver.ask(self._nameserver, message, over_tcp=False)
        finally:
            self._under_way -= 1
        if answer is not None:
            _send(sock, answer, message, app)

    def _on_connection(self, connection: socket.socket, group: asyncio.TaskGroup) -> None:
        if self._connections >= _MAX_CONNECTIONS:
            connection.close()
            return
        self._connections += 1
        group.create_task(self._serve_connection(connection), name="dns-connection")

    async def _serve_connection(self, connection: socket.socket) -> None:
        """Queries may be pipelined; each is answered as soon as its answer is there (RFC 7766, 6.2.1.1)."""
        room = asyncio.Semaphore(_MAX_PIPELINED)
        reader, writer = await asyncio.open_connection(sock=connection)
        try:
            async with asyncio.TaskGroup() as queries:
                while (message := await _next_message(reader)) is not None:
                    await room.acquire()
                    queries.create_task(self._answer_on(writer, message, room), name="dns-query")
            writer.close()
        except* OSError as group:
            log.debug("x dns connection: %s", group.exceptions[0])
        finally:
            self._connections -= 1
            if not writer.is_closing():
                writer.transport.abort()

    async def _answer_on(self, writer: asyncio.StreamWriter, message: bytes, room: asyncio.Semaphore) -> None:
        try:
            answer = await self._resolver.ask(self._nameserver, message, over_tcp=True)
            if answer is not None:
                writer.write(len(answer).to_bytes(2, "big") + answer)
                async with asyncio.timeout(IDLE_S):
                    await writer.drain()
        finally:
            room.release()


async def _next_message(reader: asyncio.StreamReader) -> bytes | None:
    """None at the end of the stream, or of our patience; what was asked before is still answered."""
    try:
        async with asyncio.timeout(IDLE_S):
            return await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
    except (TimeoutError, asyncio.IncompleteReadError):
        return None


def _send(sock: socket.socket, answer: bytes, message: bytes, app: object) -> None:
    if len(answer) > 512:  # only then can it be too large for anyone
        answer = dns.fit(answer, message, dns.read_query(message))
    try:
        sock.sendto(answer, app)  # type: ignore[call-overload]  # the address is what recvfrom gave
    except OSError as exc:  # the app's socket is gone, or the queue is full: it asks again
        log.debug("! dns answer: %s", exc)

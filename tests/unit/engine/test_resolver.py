"""The resolver as the app sees it: who is asked, what comes back, and that routes stand before the answer is out."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Coroutine, Sequence

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from bridge.engine.resolver import DnsServer, Resolver
from bridge.errors import LinkLost, MissingCapability
from bridge.model.rules import Route, RuleSet, parse_rule

NAMESERVER = "10.96.0.10"


class World:
    """Both resolvers of the far side, and what the netns was taught; `events` is the order in which it all happened."""

    def __init__(self, *rules: dict[str, str], names: Sequence[str] = ()) -> None:
        self.now = 1000.0
        self.events: list[tuple[str, object]] = []
        self.records: dict[str, list[str]] = {}
        self.silent = False
        self.begun = asyncio.Event()  # somebody was asked
        self.gate: asyncio.Event | None = None
        self.rules = RuleSet(tuple(parse_rule(rule) for rule in rules))
        self.resolver = Resolver(
            rules=self.rules,
            names=set(names),
            ask_cluster=self._ask_cluster,
            ask_engine=self._ask_engine,
            ask_containers=self._ask_containers,
            learn=self._learn,
            learn_container=self._learn_container,
            now=lambda: self.now,
        )

    def asked(self, who: str) -> list[object]:
        return [what for kind, what in self.events if kind == who]

    async def _ask_cluster(self, nameserver: str, query: bytes, over_tcp: bool) -> bytes:
        assert nameserver == NAMESERVER
        return await self._answer("cluster", query)

    async def _ask_engine(self, query: bytes, over_tcp: bool) -> bytes:
        return await self._answer("engine", query)

    async def _ask_containers(self, query: bytes, over_tcp: bool) -> bytes:
        return await self._answer("containers", query)

    async def _answer(self, who: str, wire: bytes) -> bytes:
        query = dns.message.from_wire(wire)
        name = query.question[0].name.to_text(omit_final_dot=True)
        self.events.append((who, name))
        self.begun.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.silent:
            raise TimeoutError
        answer = dns.message.make_response(query)
        for line in self.records.get(name, []):
            owner, ttl, kind, rdata = line.split(" ", 3)
            section = answer.authority if kind == "SOA" else answer.answer
            section.append(dns.rrset.from_text(owner, int(ttl), "IN", kind, rdata))
        if name.startswith("broken"):
            answer.set_rcode(dns.rcode.SERVFAIL)
        elif name not in self.records:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        return answer.to_wire()

    async def _learn(self, routes: Sequence[Route]) -> None:
        self.events.append(("learned", [(route.network, route.verdict.value) for route in routes]))

    async def _learn_container(self, addresses: Sequence[str], machine: bool) -> None:
        self.events.append(("machine" if machine else "container", list(addresses)))

    async def ask(self, name: str, kind: str = "A", **options: object) -> dns.message.Message | None:
        wire = dns.message.make_query(name, kind, **options).to_wire()
        answer = await self.resolver.ask(NAMESERVER, wire, over_tcp=False)
        if answer is None:
            return None
        assert answer[:2] == wire[:2]
        return dns.message.from_wire(answer)


def texts(answer: dns.message.Message | None) -> list[str]:
    assert answer is not None
    return [item.to_text() for rrset in answer.answer for item in rrset]


def run(test: Callable[[], Coroutine[object, object, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(5):
            await test()

    asyncio.run(bounded())


def test_A28_compose_sibling_cluster_name_and_direct_name_are_each_asked_where_they_belong() -> None:
    async def scenario() -> None:
        world = World({"to": "*.corp.example", "verdict": "direct"}, names=["redis"])
        world.records = {
            "redis": ["redis. 600 A 172.19.0.2"],
            "orders.shop": ["orders.shop. 5 A 10.1.0.4"],
            "git.corp.example": ["git.corp.example. 60 A 192.0.2.7"],
        }
        assert texts(await world.ask("redis")) == ["172.19.0.2"]
        assert texts(await world.ask("orders.shop")) == ["10.1.0.4"]
        assert texts(await world.ask("git.corp.example")) == ["192.0.2.7"]
        assert world.asked("containers") == ["redis"]
        assert world.asked("engine") == ["git.corp.example"]
        assert world.asked("cluster") == ["orders.shop"]

    run(scenario)


def test_A21_the_route_of_a_direct_name_stands_before_the_app_hears_the_address() -> None:
    async def scenario() -> None:
        world = World({"to": "*.corp.example", "verdict": "direct"})
        world.records = {"git.corp.example": ["git.corp.example. 60 CNAME lb.other.example.", "lb.other.example. 30 A 192.0.2.7"]}
        await world.ask("git.corp.example")
        assert world.events == [("engine", "git.corp.example"), ("learned", [("192.0.2.7/32", "direct")])]

    run(scenario)


def test_the_route_of_a_container_stands_before_its_answer_and_is_asked_for_once() -> None:
    async def scenario() -> None:
        world = World(names=["redis"])
        world.records = {"redis": ["redis. 0 A 172.19.0.2"]}
        await world.ask("redis")
        await world.ask("redis")
        assert world.events == [("containers", "redis"), ("container", ["172.19.0.2"]), ("containers", "redis")]

    run(scenario)


def test_the_machine_that_the_engine_runs_on_is_no_container_of_a_network() -> None:
    async def scenario() -> None:
        world = World()
        world.records = {"host.docker.internal": ["host.docker.internal. 0 A 192.168.65.254"]}
        await world.ask("host.docker.internal")
        assert world.events == [("engine", "host.docker.internal"), ("machine", ["192.168.65.254"])]

    run(scenario)


def test_a_containers_name_under_the_targets_search_list_is_the_clusters() -> None:
    async def scenario() -> None:
        world = World(names=["redis"])
        answer = await world.ask("redis.shop.svc.cluster.local")
        assert answer is not None
        assert answer.rcode() == dns.rcode.NXDOMAIN
        assert world.events == [("cluster", "redis.shop.svc.cluster.local")]

    run(scenario)


def test_a_denied_name_is_refused_with_the_reason_and_nobody_is_asked() -> None:
    async def scenario() -> None:
        world = World({"to": "*.ads.example", "verdict": "deny"})
        answer = await world.ask("x.ads.example", use_edns=0)
        assert answer is not None
        assert answer.rcode() == dns.rcode.REFUSED
        assert [option.code for option in answer.options if isinstance(option, dns.edns.EDEOption)] == [18]
        plain = await world.ask("x.ads.example")
        assert plain is not None
        assert (plain.rcode(), plain.edns) == (dns.rcode.REFUSED, -1)
        assert world.events == []

    run(scenario)


def test_a_deny_of_one_port_leaves_the_name_resolvable() -> None:
    async def scenario() -> None:
        world = World({"to": "mail.example:25", "verdict": "deny"})
        world.records = {"mail.example": ["mail.example. 60 A 10.1.0.9"]}
        assert texts(await world.ask("mail.example")) == ["10.1.0.9"]
        assert world.asked("learned") == [[("10.1.0.9/32", "deny"), ("10.1.0.9/32", "deny")]]

    run(scenario)


@pytest.mark.parametrize(
    ("kind", "rdata"),
    [("SRV", "0 5 5432 db.shop."), ("TXT", '"a" "b"'), ("MX", "10 mail.shop."), ("AAAA", "fd00::7"), ("CAA", '0 issue "ca.example"')],
)
def test_A25_every_record_type_comes_back_as_it_is(kind: str, rdata: str) -> None:
    async def scenario() -> None:
        world = World()
        world.records = {"x.shop": [f"x.shop. 60 {kind} {rdata}"]}
        assert texts(await world.ask("x.shop", kind)) == [rdata]

    run(scenario)


def test_A26_nxdomain_and_servfail_stay_what_they_are_and_silence_stays_silence() -> None:
    async def scenario() -> None:
        world = World()
        missing, broken = await world.ask("missing.shop"), await world.ask("broken.shop")
        assert missing is not None
        assert broken is not None
        assert (missing.rcode(), broken.rcode()) == (dns.rcode.NXDOMAIN, dns.rcode.SERVFAIL)
        world.silent = True
        assert await world.ask("silent.shop") is None

    run(scenario)


def test_a_lost_link_is_no_answer() -> None:
    async def scenario() -> None:
        world = World()

        async def lost(nameserver: str, query: bytes, over_tcp: bool) -> bytes:
            raise LinkLost("the link is down")

        world.resolver.ask_cluster = lost
        assert await world.ask("orders.shop") is None
        assert world.resolver.counts.unanswered == 1

    run(scenario)


def test_A29_a_ttl_is_honoured_counts_down_and_a_changed_record_is_seen_after_it() -> None:
    async def scenario() -> None:
        world = World()
        world.records = {"x.shop": ["x.shop. 20 A 10.1.0.1"]}
        await world.ask("x.shop")
        world.records = {"x.shop": ["x.shop. 20 A 10.1.0.2"]}
        world.now += 15
        answer = await world.ask("x.shop")
        assert texts(answer) == ["10.1.0.1"]
        assert answer is not None
        assert answer.answer[0].ttl == 5
        world.now += 5
        assert texts(await world.ask("x.shop")) == ["10.1.0.2"]
        assert len(world.asked("cluster")) == 2

    run(scenario)


def test_servfail_is_asked_again_and_a_negative_answer_is_kept_as_long_as_its_soa_says() -> None:
    async def scenario() -> None:
        world = World()
        await world.ask("broken.shop")
        await world.ask("broken.shop")
        assert len(world.asked("cluster")) == 2
        world.records = {"empty.shop": ["shop. 3600 SOA ns.shop. root.shop. 1 2 3 4 8"]}
        await world.ask("empty.shop")
        world.now += 7
        await world.ask("empty.shop")
        assert len(world.asked("cluster")) == 3
        world.now += 2
        await world.ask("empty.shop")
        assert len(world.asked("cluster")) == 4

    run(scenario)


def test_one_question_that_two_ask_at_once_is_put_once_and_each_gets_its_own_id() -> None:
    async def scenario() -> None:
        world = World()
        world.records = {"x.shop": ["x.shop. 0 A 10.1.0.1"]}
        world.gate = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            asking = [group.create_task(world.ask("x.shop")) for _ in range(3)]
            await world.begun.wait()
            world.gate.set()
        assert [texts(task.result()) for task in asking] == [["10.1.0.1"]] * 3
        assert world.events == [("cluster", "x.shop")]

    run(scenario)


def test_a_question_asked_again_after_seconds_does_not_wait_for_a_lost_one() -> None:
    async def scenario() -> None:
        world = World()
        world.records = {"x.shop": ["x.shop. 0 A 10.1.0.1"]}
        lost, world.gate = asyncio.Event(), None
        world.gate = lost
        async with asyncio.TaskGroup() as group:
            first = group.create_task(world.ask("x.shop"))
            await world.begun.wait()
            world.gate = None
            world.now += 5
            assert texts(await world.ask("x.shop")) == ["10.1.0.1"]
            assert not first.done()
            lost.set()

    run(scenario)


def test_an_answer_whose_route_cannot_be_made_is_withheld_and_others_go_on() -> None:
    async def scenario() -> None:
        world = World({"to": "*.corp.example", "verdict": "direct"})
        world.records = {"git.corp.example": ["git.corp.example. 60 A 192.0.2.7"], "x.shop": ["x.shop. 60 A 10.1.0.1"]}

        async def fails(routes: Sequence[Route]) -> None:
            raise MissingCapability("changing routes is not allowed")

        learn, world.resolver.learn = world.resolver.learn, fails
        assert await world.ask("git.corp.example") is None
        assert texts(await world.ask("x.shop")) == ["10.1.0.1"]
        world.resolver.learn = learn
        assert texts(await world.ask("git.corp.example")) == ["192.0.2.7"]
        assert world.asked("learned") == [[("192.0.2.7/32", "direct")]]

    run(scenario)


def test_of_two_questions_with_one_address_neither_is_answered_before_the_route_stands() -> None:
    async def scenario() -> None:
        world = World({"to": "*.corp.example", "verdict": "direct"})
        world.records = {"git.corp.example": ["git.corp.example. 60 A 192.0.2.7"]}
        making, made = asyncio.Event(), asyncio.Event()

        async def slow(routes: Sequence[Route]) -> None:
            making.set()
            await made.wait()
            world.events.append(("learned", len(routes)))

        async def ask(**options: object) -> None:
            assert texts(await world.ask("git.corp.example", **options)) == ["192.0.2.7"]
            world.events.append(("answered", None))

        world.resolver.learn = slow
        async with asyncio.TaskGroup() as group:
            group.create_task(ask())
            await making.wait()
            second = group.create_task(ask(use_edns=0))
            await asyncio.wait([second], timeout=0.02)
            assert not second.done()
            made.set()
        assert [kind for kind, _ in world.events] == ["engine", "engine", "learned", "answered", "answered"]

    run(scenario)


def test_an_answer_to_another_question_never_reaches_the_app() -> None:
    async def scenario() -> None:
        world = World()

        async def other(nameserver: str, query: bytes, over_tcp: bool) -> bytes:
            answer = dns.message.make_response(dns.message.make_query("evil.example", "A"))
            return answer.to_wire()

        world.resolver.ask_cluster = other
        assert await world.ask("x.shop") is None

    run(scenario)


def test_what_is_no_query_is_answered_formerr_or_not_at_all() -> None:
    async def scenario() -> None:
        world = World()
        answer = await world.resolver.ask(NAMESERVER, b"\x12\x34\x01\x00" + bytes(8), over_tcp=False)
        assert answer is not None
        assert (answer[:2], answer[3] & 0xF) == (b"\x12\x34", 1)
        assert await world.resolver.ask(NAMESERVER, b"short", over_tcp=False) is None
        response = dns.message.make_response(dns.message.make_query("x.shop", "A")).to_wire()
        assert await world.resolver.ask(NAMESERVER, response, over_tcp=False) is None

    run(scenario)


def test_after_the_target_moved_the_old_answers_are_gone() -> None:
    async def scenario() -> None:
        world = World()
        world.records = {"x.shop": ["x.shop. 60 A 10.1.0.1"]}
        await world.ask("x.shop")
        world.resolver.forget()
        await world.ask("x.shop")
        assert len(world.asked("cluster")) == 2

    run(scenario)


class Served:
    """A DnsServer on real sockets of loopback."""

    def __init__(self, world: World) -> None:
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.tcp.setblocking(False)
        self.port = self.tcp.getsockname()[1]
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", self.port))
        self.udp.setblocking(False)
        self._server = DnsServer(world.resolver, NAMESERVER, (self.udp,), (self.tcp,))

    async def __aenter__(self) -> Served:
        self._group = await asyncio.TaskGroup().__aenter__()
        self._task = self._group.create_task(self._server.serve())
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._task.cancel()
        await self._group.__aexit__(None, None, None)
        self.tcp.close()
        self.udp.close()

    async def by_udp(self, wire: bytes) -> dns.message.Message:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            await loop.sock_connect(sock, ("127.0.0.1", self.port))
            await loop.sock_sendall(sock, wire)
            return dns.message.from_wire(await loop.sock_recv(sock, 65535))


def _big(world: World) -> None:
    world.records = {"big.shop": [f"big.shop. 60 A 10.1.1.{i}" for i in range(100)]}


def test_A25_an_answer_over_512_bytes_is_truncated_for_a_plain_client_and_whole_with_edns() -> None:
    async def scenario() -> None:
        world = World()
        _big(world)
        async with Served(world) as served:
            for _ in range(2):  # asked, then out of the cache
                plain = await served.by_udp(dns.message.make_query("big.shop", "A").to_wire())
                assert plain.flags & dns.flags.TC
                assert not plain.answer
                large = await served.by_udp(dns.message.make_query("big.shop", "A", use_edns=0, payload=4096).to_wire())
                assert not large.flags & dns.flags.TC
                assert len(large.answer[0]) == 100
        assert world.resolver.counts.cached == 2

    run(scenario)


def test_A25_tcp_serves_pipelined_queries_and_answers_those_asked_before_the_client_ended_its_side() -> None:
    async def scenario() -> None:
        world = World()
        _big(world)
        world.records["small.shop"] = ["small.shop. 60 A 10.1.0.1"]
        async with Served(world) as served:
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            wires = [dns.message.make_query(name, "A").to_wire() for name in ("big.shop", "small.shop", "missing.shop")]
            writer.write(b"".join(struct.pack("!H", len(wire)) + wire for wire in wires))
            writer.write_eof()
            found = {}
            while head := await reader.read(2):
                answer = dns.message.from_wire(await reader.readexactly(int.from_bytes(head, "big")))
                found[answer.question[0].name.to_text()] = sum(len(rrset) for rrset in answer.answer)
            assert found == {"big.shop.": 100, "small.shop.": 1, "missing.shop.": 0}
            writer.close()

    run(scenario)


def test_a_client_that_goes_away_half_way_harms_nobody_else() -> None:
    async def scenario() -> None:
        world = World()
        world.records = {"small.shop": ["small.shop. 60 A 10.1.0.1"]}
        async with Served(world) as served:
            for sent in (b"", b"\0", b"\0\x40half", b"\0\0"):
                _, writer = await asyncio.open_connection("127.0.0.1", served.port)
                writer.write(sent)
                await writer.drain()
                writer.transport.abort()
            assert texts(await served.by_udp(dns.message.make_query("small.shop", "A").to_wire())) == ["10.1.0.1"]

    run(scenario)

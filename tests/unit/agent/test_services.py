"""UDP, ICMP echo, DNS, facts and the agent's own life."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import asyncssh
import pytest

from bridge.adapters.resumable import ResumableTransport
from bridge.adapters.ssh import connect_ssh
from bridge.adapters.ssh.messages import Messages
from bridge.agent import echoes, inside
from bridge.agent.datagrams import Associations
from bridge.errors import LinkError, LinkLost
from bridge.protocol import control, preamble, udp
from bridge.protocol.dns import parse_resolv_conf
from tests.unit.agent.running import Running, run

QUERY = bytes.fromhex("abcd01000001000000000000") + b"\x02db\x00\x00\x01\x00\x01"


@asynccontextmanager
async def udp_server(answer: Callable[[bytes], bytes], family: int = socket.AF_INET) -> AsyncIterator[int]:
    """Its port. By hand, since asyncio's datagram transports send nothing for an empty datagram."""
    loop = asyncio.get_running_loop()
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))

        def serve() -> None:
            data, place = sock.recvfrom(65535)
            sock.sendto(answer(data), place)

        loop.add_reader(sock, serve)
        try:
            yield sock.getsockname()[1]
        finally:
            loop.remove_reader(sock)


@asynccontextmanager
async def silent() -> AsyncIterator[int]:
    """A port at which UDP and TCP are taken and nothing is said."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, socket.socket() as listener:
        sock.bind(("127.0.0.1", 0))
        listener.bind(sock.getsockname())
        listener.listen()
        yield sock.getsockname()[1]


@pytest.mark.parametrize("size", [0, 1, 1472, 65507])
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_datagrams_of_any_size_come_back_whole(tmp_path: Path, size: int, address: str) -> None:
    async def test() -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        async with Running(tmp_path) as running, udp_server(lambda data: data[::-1], family) as port:
            channel, messages = await running.udp()
            data = bytes(range(256)) * 256
            channel.send(udp.Datagram(7, address, port, data[:size]))
            assert await messages.get() == udp.Datagram(7, address, port, data[:size][::-1])

    run(test())


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_closed_udp_port_is_told_as_unreachable(tmp_path: Path, address: str) -> None:
    async def test() -> None:
        async with Running(tmp_path) as running:
            async with udp_server(bytes, socket.AF_INET6 if ":" in address else socket.AF_INET) as port:
                pass
            channel, messages = await running.udp()
            channel.send(udp.Datagram(7, address, port, b"anyone?"))
            assert await messages.get() == udp.Unreachable(7, address, port, "ECONNREFUSED")

    run(test())


def test_one_peers_error_loses_no_datagram_to_another() -> None:
    """The kernel tells an error at the next send, to whomever that goes."""

    async def test() -> None:
        sent: list[udp.Message] = []
        associations = Associations(asyncio.get_running_loop(), sent.append)
        async with udp_server(bytes) as closed:
            pass
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.bind(("127.0.0.1", 0))
            peer.settimeout(2)
            associations.on_datagram(udp.Datagram(7, "127.0.0.1", closed, b"anyone?"))
            associations.on_datagram(udp.Datagram(7, *peer.getsockname(), b"hello"))
            assert peer.recv(100) == b"hello"
        assert sent == [udp.Unreachable(7, "127.0.0.1", closed, "ECONNREFUSED")]
        associations.close()

    run(test())


def test_one_association_speaks_with_many_peers_from_one_port(tmp_path: Path) -> None:
    async def test() -> None:
        seen: set[tuple[str, int]] = set()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            async with Running(tmp_path) as running:
                loop = asyncio.get_running_loop()
                channel, _ = await running.udp()
                for peer in (one, other):
                    peer.bind(("127.0.0.1", 0))
                    peer.setblocking(False)
                    channel.send(udp.Datagram(7, *peer.getsockname(), b"hello"))
                    _, place = await loop.sock_recvfrom(peer, 100)
                    seen.add(place)
        assert len(seen) == 1

    run(test())


def test_an_idle_association_is_forgotten_and_the_bridge_told() -> None:
    async def test() -> None:
        sent: list[udp.Message] = []
        loop = asyncio.get_running_loop()
        associations = Associations(loop, sent.append)
        async with udp_server(bytes) as port:
            associations.on_datagram(udp.Datagram(7, "127.0.0.1", port, b"x"))
            associations._open[7].used_at -= 301
            associations._sweep()
            assert sent[-1] == udp.Forget(7)
            assert len(associations) == 0
            associations.close()

    run(test())


def test_past_the_bound_the_longest_idle_association_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.agent.datagrams.MOST_ASSOCIATIONS", 2)

    async def test() -> None:
        sent: list[udp.Message] = []
        associations = Associations(asyncio.get_running_loop(), sent.append)
        async with udp_server(bytes) as port:
            for number in (1, 2, 1, 3):
                associations.on_datagram(udp.Datagram(number, "127.0.0.1", port, b"x"))
        assert [message for message in sent if isinstance(message, udp.Forget)] == [udp.Forget(2)]
        associations.close()

    run(test())


@pytest.mark.skipif(echoes.why_not() is not None, reason="no ping socket here: net.ipv4.ping_group_range")
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_an_echo_comes_back_with_the_apps_own_identifier(tmp_path: Path, address: str) -> None:
    async def test() -> None:
        async with Running(tmp_path) as running:
            channel, messages = await running.udp()
            channel.send(udp.Echo(99, address, 4242, 7, b"payload of ping"))
            assert await messages.get() == udp.EchoReply(99, address, 4242, 7, b"payload of ping")

    run(test())


def test_where_no_ping_socket_opens_the_facts_say_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> socket.socket:
        raise PermissionError(errno.EPERM, "not permitted")

    monkeypatch.setattr(echoes.socket, "socket", refuse)
    assert "ping_group_range" in str(echoes.why_not())


@pytest.mark.parametrize("over_tcp", [False, True])
def test_a_dns_question_is_answered_from_inside_the_target(tmp_path: Path, over_tcp: bool) -> None:
    async def test() -> None:
        async def serve_tcp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            query = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
            writer.write((len(query) + 4).to_bytes(2, "big") + query + b"tcp!")
            writer.close()

        async with udp_server(lambda query: query + b"udp!") as port:
            server = await asyncio.start_server(serve_tcp, "127.0.0.1", port)
            async with Running(tmp_path, dns_port=port) as running:
                channel, messages = await running.control()
                await messages.get()
                channel.send(control.Ask(5, "127.0.0.1", QUERY, over_tcp))
                assert await messages.get() == control.Answer(5, QUERY + (b"tcp!" if over_tcp else b"udp!"))
            server.close()

    run(test())


@pytest.mark.parametrize(("nameserver", "error"), [("127.0.0.1", "ECONNREFUSED"), ("127.0.0.2", "EACCES"), ("8.8.8.8", "EACCES")])
def test_only_the_targets_own_nameservers_are_asked(tmp_path: Path, nameserver: str, error: str) -> None:
    async def test() -> None:
        async with udp_server(bytes) as port:
            pass
        async with Running(tmp_path, dns_port=port) as running:
            channel, messages = await running.control()
            await messages.get()
            channel.send(control.Ask(5, nameserver, QUERY))
            assert await messages.get() == control.Answer(5, b"", error)

    run(test())


def test_whichever_nameserver_the_bridge_read_in_resolv_conf_is_asked(tmp_path: Path) -> None:
    """libc asks three; other resolvers, and so the app, ask all."""
    conf = "".join(f"nameserver 127.0.0.{last} # stub\n" for last in (2, 3, 4, 1))

    async def test() -> None:
        async with udp_server(bytes) as port, Running(tmp_path, nameservers=conf, dns_port=port) as running:
            channel, messages = await running.control()
            told = await messages.get()
            assert isinstance(told, control.FactsTold)
            last = parse_resolv_conf(told.facts.resolv_conf).nameservers[-1]
            channel.send(control.Ask(5, last, QUERY))
            assert await messages.get() == control.Answer(5, QUERY)

    run(test())


def test_questions_past_the_bound_and_what_is_no_question_are_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.agent.asking.MOST_UNDER_WAY", 1)

    async def test() -> None:
        async with silent() as port, Running(tmp_path, dns_port=port) as running:
            channel, messages = await running.control()
            await messages.get()
            channel.send(control.Ask(1, "127.0.0.1", QUERY[:11]))
            assert await messages.get() == control.Answer(1, b"", "EINVAL")
            channel.send(control.Ask(2, "127.0.0.1", QUERY))
            channel.send(control.Ask(3, "127.0.0.1", QUERY))
            assert await messages.get() == control.Answer(3, b"", "EAGAIN")

    run(test())


@pytest.mark.parametrize("over_tcp", [False, True])
def test_a_nameserver_that_says_nothing_is_a_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, over_tcp: bool) -> None:
    monkeypatch.setattr("bridge.agent.asking.TIMEOUT_S", 0.05)

    async def test() -> None:
        async with silent() as port, Running(tmp_path, dns_port=port) as running:
            channel, messages = await running.control()
            await messages.get()
            channel.send(control.Ask(1, "127.0.0.1", QUERY, over_tcp))
            assert await messages.get() == control.Answer(1, b"", "ETIMEDOUT")

    run(test())


def test_a_nameserver_that_hangs_up_in_its_answer_is_a_reset(tmp_path: Path) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(2 + len(QUERY))
        writer.write(b"\0\x20half")
        writer.close()

    async def test() -> None:
        server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
        async with server, Running(tmp_path, dns_port=server.sockets[0].getsockname()[1]) as running:
            channel, messages = await running.control()
            await messages.get()
            channel.send(control.Ask(1, "127.0.0.1", QUERY, True))
            assert await messages.get() == control.Answer(1, b"", "ECONNRESET")

    run(test())


def test_an_answer_with_another_id_is_not_taken(tmp_path: Path) -> None:
    async def test() -> None:
        answers = iter([b"\0\0" + QUERY[2:], QUERY])
        async with udp_server(lambda query: next(answers)) as port, Running(tmp_path, dns_port=port) as running:
            channel, messages = await running.control()
            await messages.get()
            channel.send(control.Ask(1, "127.0.0.1", QUERY))
            channel.send(control.Ask(2, "127.0.0.1", QUERY))
            assert await messages.get() == control.Answer(2, QUERY)

    run(test())


def test_the_facts_are_the_targets(tmp_path: Path) -> None:
    async def test() -> None:
        async with Running(tmp_path, nameservers="search shop\nnameserver 127.0.0.11\n") as running:
            _, messages = await running.control()
            told = await messages.get()
            assert isinstance(told, control.FactsTold)
            assert (told.facts.hostname, told.facts.resolv_conf) == ("shop-api", "search shop\nnameserver 127.0.0.11\n")
            assert "172.18.0.3 shop-api" in told.facts.hosts
            assert not any(address.startswith(("127.", "::1", "fe80")) for address in told.facts.addresses)

    run(test())


def test_addresses_are_those_that_the_kernel_lists() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.77", 9))
        except OSError:
            pytest.skip("no route from here")
        own = sock.getsockname()[0]
    assert own in [address.partition("/")[0] for address in inside.addresses()]


def test_the_first_line_and_the_preamble_name_the_same_agent(tmp_path: Path) -> None:
    async def test() -> None:
        async with Running(tmp_path) as running:
            word, version, agent_id, port, algorithm, key = running.agent.line().split(" ")
            assert (word, version, algorithm) == ("mbridge-agent", "1", "ssh-ed25519")
            assert f"{algorithm} {key}" == running.agent.host_key
            loop = asyncio.get_running_loop()
            with socket.socket(socket.AF_UNIX) as sock:
                sock.setblocking(False)
                await loop.sock_connect(sock, str(tmp_path / "run/agent.sock"))
                preamble.check(await loop.sock_recv(sock, 16), agent_id)
            assert int(port) == running.agent.port

    run(test())


def test_a_bridge_of_another_major_version_gets_no_facts(tmp_path: Path) -> None:
    async def test() -> None:
        async with Running(tmp_path) as running:
            channel = await (await running.link())._subsystem(control.SUBSYSTEM_CONTROL)
            bodies: list[bytes] = []
            lost = asyncio.Event()
            messages = Messages(channel, control.MAX_FRAME, bodies.append, lost.set)
            messages.send(control.encode(control.Hello((9, 0), "9.0")))
            await lost.wait()
            assert [type(control.decode(body)) for body in bodies] == [control.Hello]

    run(test())


def test_who_asks_before_hello_is_cut_off(tmp_path: Path) -> None:
    async def test() -> None:
        async with Running(tmp_path) as running:
            link = await running.link()
            lost = asyncio.Event()
            bodies: list[bytes] = []
            messages = Messages(await link._subsystem(control.SUBSYSTEM_CONTROL), control.MAX_FRAME, bodies.append, lost.set)
            messages.send(control.encode(control.Ask(1, "127.0.0.1", QUERY)))
            await lost.wait()
            assert [type(control.decode(body)) for body in bodies] in ([], [control.Hello])
            assert "hello" in await link.closed

    run(test())


def test_an_unknown_key_gets_nowhere(tmp_path: Path) -> None:
    async def test() -> None:
        async with Running(tmp_path) as running:
            stranger = asyncssh.generate_private_key("ssh-ed25519").export_private_key().decode()
            transport = ResumableTransport.client(asyncio.get_running_loop())
            transport.carry(await running.carrier())
            with pytest.raises(LinkError, match="did not accept"):
                await connect_ssh(transport, private_key=stranger, host_key=running.agent.host_key)

    run(test())


def test_the_agent_ends_when_its_link_has_been_gone_for_the_ttl(tmp_path: Path) -> None:
    async def test() -> None:
        async with Running(tmp_path, ttl_s=0.1) as running:
            link = await running.link()
            await asyncio.sleep(0.3)  # three lives long: a link that idles keeps it
            assert not running.agent.ended.is_set()
            link.close()
            await asyncio.wait_for(running.agent.ended.wait(), 2)

    run(test())


def test_with_flows_open_the_agent_waits_longer_for_its_bridge(tmp_path: Path) -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        async with Running(tmp_path, ttl_s=0.3) as running, await asyncio.start_server(lambda *_: None, "127.0.0.1", 0) as server:
            link = await running.link()
            running.transports[0].set_secret(await link.agree_secret())
            await link.open_flow(*server.sockets[0].getsockname(), ("172.18.0.9", 1))
            began = loop.time()
            carrier = running.transports[0]._carrier
            assert carrier is not None
            carrier.close()  # cut: the stream above it is not ended
            await running.agent.ended.wait()
            assert 0.9 < loop.time() - began < 5

    run(test())


def test_the_agents_socket_is_its_own_alone(tmp_path: Path) -> None:
    async def test() -> None:
        async with Running(tmp_path):
            assert (tmp_path / "run/agent.sock").stat().st_mode & 0o777 == 0o600

    run(test())


def test_a_stranger_who_only_connects_does_not_keep_the_agent_alive(tmp_path: Path) -> None:
    async def test() -> None:
        async with Running(tmp_path, ttl_s=0.1) as running:
            with await running.carrier():
                await asyncio.wait_for(running.agent.ended.wait(), 2)

    run(test())


def test_a_secret_of_a_wrong_size_is_not_taken(tmp_path: Path) -> None:
    async def test() -> None:
        async with Running(tmp_path) as running:
            link = await running.link()
            channel = await link._subsystem(control.SUBSYSTEM_SECRET)
            lost: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

            class Sink:
                def on_data(self, data: bytes | memoryview) -> None:
                    lost.set_exception(AssertionError("a byte came back"))

                def on_eof(self) -> None: ...
                def on_writable(self, writable: bool) -> None: ...
                def on_lost(self, reset: bool) -> None:
                    lost.set_result(reset)

            channel.attach(Sink())
            channel.write(bytes(33))
            assert await lost is True
            assert not running.agent._server.streams[0].resumable

    run(test())


def test_closing_the_agent_ends_every_link(tmp_path: Path) -> None:
    async def test() -> None:
        async with Running(tmp_path) as running:
            link = await running.link()
        await link.closed
        with pytest.raises(LinkLost):
            await link.open_flow("127.0.0.1", 1, ("172.18.0.9", 1))
        assert not (tmp_path / "run/agent.sock").exists()

    run(test())

"""The engine's resolver asked over real sockets of loopback."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from bridge.adapters import engine_dns
from bridge.adapters.engine_dns import EngineDns, resolver_is_here

QUERY = b"\x12\x34\x01\x00" + bytes(8)
ANSWER = b"\x12\x34\x81\x80" + bytes(8)
SERVFAIL = b"\x12\x34\x81\x82" + bytes(8)
OTHERS_ID = b"\x43\x21\x81\x80" + bytes(8)


class Nameserver(asyncio.DatagramProtocol):
    """Answers each datagram with `answers`."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = answers
        self.asked = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport  # asyncio's own datagram transport is no DatagramTransport before 3.12

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        assert data == QUERY
        self.asked += 1
        for answer in self.answers:
            self.transport.sendto(answer, addr)


def run(test: Callable[[], Coroutine[object, object, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(5):
            await test()

    asyncio.run(bounded())


async def serve(*servers: tuple[str, Nameserver]) -> int:
    """Each nameserver at its own address of loopback, all at one port."""
    port = 0
    for address, protocol in servers:
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda given=protocol: given, (address, port))
        port = transport.get_extra_info("sockname")[1]
    return port


def test_the_first_nameserver_answers_and_the_second_is_left_alone() -> None:
    async def scenario() -> None:
        first, second = Nameserver(ANSWER), Nameserver(ANSWER)
        port = await serve(("127.0.0.1", first), ("127.0.0.2", second))
        assert await EngineDns(["127.0.0.1", "127.0.0.2"], 0, port).ask(QUERY, False) == ANSWER
        assert (first.asked, second.asked) == (1, 0)

    run(scenario)


def test_a_refused_and_a_failing_nameserver_give_way_to_the_next() -> None:
    async def scenario() -> None:
        failing, good = Nameserver(SERVFAIL), Nameserver(ANSWER)
        port = await serve(("127.0.0.2", failing), ("127.0.0.3", good))
        assert await EngineDns(["127.0.0.1", "127.0.0.2", "127.0.0.3"], 0, port).ask(QUERY, False) == ANSWER
        assert failing.asked == 1

    run(scenario)


def test_servfail_of_all_is_servfail() -> None:
    async def scenario() -> None:
        port = await serve(("127.0.0.1", Nameserver(SERVFAIL)))
        assert await EngineDns(["127.0.0.1"], 0, port).ask(QUERY, False) == SERVFAIL

    run(scenario)


def test_an_answer_to_another_query_is_passed_over() -> None:
    async def scenario() -> None:
        port = await serve(("127.0.0.1", Nameserver(OTHERS_ID, b"short", QUERY, ANSWER)))
        assert await EngineDns(["127.0.0.1"], 0, port).ask(QUERY, False) == ANSWER

    run(scenario)


def test_a_lost_datagram_is_sent_again_and_silence_is_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_dns, "UDP_S", 0.02)

    async def scenario() -> None:
        silent = Nameserver()
        port = await serve(("127.0.0.1", silent))
        with pytest.raises(TimeoutError):
            await EngineDns(["127.0.0.1"], 0, port).ask(QUERY, False)
        assert silent.asked == 2

    run(scenario)


def test_without_a_listener_it_is_a_timeout_as_well() -> None:
    async def scenario() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as unused:
            unused.bind(("127.0.0.1", 0))
            for over_tcp in (False, True):
                with pytest.raises(TimeoutError):
                    await EngineDns(["127.0.0.1"], 0, unused.getsockname()[1]).ask(QUERY, over_tcp)

    run(scenario)


def test_over_tcp_the_length_prefix_is_ours_to_write_and_read() -> None:
    large = ANSWER + bytes(30_000)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readexactly(14) == b"\x00\x0c" + QUERY
        writer.write(len(large).to_bytes(2, "big") + large)
        writer.close()

    async def scenario() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            assert await EngineDns(["127.0.0.1"], 0, port).ask(QUERY, True) == large

    run(scenario)


def test_the_engines_resolver_is_seen_by_its_socket() -> None:
    assert not resolver_is_here()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as theirs, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("0.0.0.0", 0))
        assert not resolver_is_here()
        theirs.bind(("127.0.0.11", 0))
        assert resolver_is_here()

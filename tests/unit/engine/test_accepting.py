"""Accepting where there are descriptors, where there are none, and where there are again."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from bridge.engine.accepting import AGAIN_S, Accepting
from tests.unit.descriptors import no_descriptors


class Accepted:
    """A listener of loopback, and the connections that were handed on."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.come: asyncio.Queue[socket.socket] = asyncio.Queue()

    def client(self) -> socket.socket:
        return socket.create_connection(self.listener.getsockname(), 5)

    def on_connection(self, sock: socket.socket, address: Any) -> None:
        assert address == sock.getpeername()
        assert not sock.getblocking()
        self.come.put_nowait(sock)


@contextlib.asynccontextmanager
async def accepting() -> AsyncIterator[Accepted]:
    made = Accepted()
    accepting = Accepting(made.listener, made.on_connection)
    accepting.start()
    try:
        async with asyncio.timeout(10):
            yield made
    finally:
        accepting.stop()
        made.listener.close()


def test_connections_come_in_their_order() -> None:
    async def play() -> None:
        async with accepting() as made:
            for client in [made.client() for _ in range(3)]:
                with client, await made.come.get() as accepted:
                    assert accepted.getpeername() == client.getsockname()

    asyncio.run(play())


def test_without_descriptors_the_loop_rests_and_who_waited_is_served_when_there_are_some(caplog: pytest.LogCaptureFixture) -> None:
    async def play() -> None:
        async with accepting() as made:
            with made.client() as waiting:
                with no_descriptors():
                    used = time.process_time()
                    await asyncio.sleep(4.5 * AGAIN_S)
                    used = time.process_time() - used
                    assert made.come.empty()
                with await made.come.get() as accepted:
                    assert accepted.getpeername() == waiting.getsockname()
            assert used < AGAIN_S, "of 0.45 s, all would be used by a loop that asks again at once"
            with made.client() as later, await made.come.get() as accepted:
                assert accepted.getpeername() == later.getsockname()

    asyncio.run(play())
    assert [record.message for record in caplog.records] == ["! accept: Too many open files; who connects now has to wait"]


def test_a_stop_while_it_rests_is_for_good() -> None:
    async def play() -> None:
        made = Accepted()
        accepting = Accepting(made.listener, made.on_connection)
        accepting.start()
        with made.client():
            with no_descriptors():
                await asyncio.sleep(0.5 * AGAIN_S)
                accepting.stop()
            made.listener.close()
            await asyncio.sleep(2 * AGAIN_S)
        assert made.come.empty()

    asyncio.run(play())

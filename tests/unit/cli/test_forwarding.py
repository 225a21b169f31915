"""`mbridge forward`: connections at this machine's listeners, dialled by a fake agent."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from bridge.cli.cmd_forward import Forward
from bridge.cli.forwarding import listen, serve, until_ended
from bridge.engine.needs import FlowRefused
from bridge.errors import HostError, LinkLost


class Echo:
    """A needs.Channel that gives back what it gets, and ends when its user ends."""

    def __init__(self) -> None:
        self.kept: list[bytes] = []
        self.sink: Any = None

    def attach(self, sink: Any) -> None:
        self.sink = sink
        for data in self.kept:
            sink.on_data(data)

    def write(self, data: bytes | memoryview) -> None:
        self.sink.on_data(bytes(data))

    def write_eof(self) -> None:
        self.sink.on_eof()

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...


class Agent:
    def __init__(self) -> None:
        self.dialled: list[tuple[str, int]] = []
        self.refuses: str | None = None

    async def open_flow(self, address: str, port: int, app: tuple[str, int]) -> Any:
        self.dialled.append((address, port))
        if self.refuses:
            raise FlowRefused(self.refuses)
        return Echo()


@contextlib.asynccontextmanager
async def forwarded(agent: Any, host: str = "127.0.0.1") -> AsyncIterator[int]:
    listener = listen(Forward(host, 0, "db", 5432))
    try:
        async with asyncio.timeout(5), asyncio.TaskGroup() as group:
            task = group.create_task(serve([listener], agent))
            try:
                yield listener.forward.listen_port
            finally:
                task.cancel()
    finally:
        for sock in listener.socks:
            sock.close()


def test_a_connection_here_is_one_of_the_targets_both_ways_to_its_end() -> None:
    agent = Agent()

    async def run() -> bytes:
        async with forwarded(agent) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"SELECT 1")
            writer.write_eof()
            answer = await reader.read()
            writer.close()
            return answer

    assert asyncio.run(run()) == b"SELECT 1"
    assert agent.dialled == [("db", 5432)]


def test_a_refused_dial_resets_the_connection_and_the_next_one_is_served() -> None:
    agent = Agent()
    agent.refuses = "ECONNREFUSED"

    async def run() -> None:
        async with forwarded(agent) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with pytest.raises(ConnectionResetError):
                await reader.readexactly(1)
            writer.close()
            agent.refuses = None
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
            writer.close()

    asyncio.run(run())


def test_a_port_that_is_taken_is_said_before_anything_is_made() -> None:
    first = listen(Forward("127.0.0.1", 0, "db", 1))
    try:
        with pytest.raises(HostError, match=f"cannot listen on 127.0.0.1:{first.forward.listen_port}: address already in use") as caught:
            listen(first.forward)
        assert caught.value.hint is not None
    finally:
        first.socks[0].close()


def test_an_address_that_is_not_this_machines_is_said() -> None:
    with pytest.raises(HostError, match=r"cannot listen on 192\.0\.2\.1"):
        listen(Forward("192.0.2.1", 0, "db", 1))


def test_the_link_and_its_work_end_together() -> None:
    async def run() -> list[str]:
        ended = []

        async def forever(name: str) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(name)

        async def fails() -> None:
            raise LinkLost("the agent is gone")

        with pytest.raises(LinkLost, match="the agent is gone"):
            await until_ended(fails(), lambda: forever("work"))
        await until_ended(forever("link"), lambda: asyncio.sleep(0))
        return ended

    assert asyncio.run(run()) in (["work", "link"], ["link"])

"""A TLS stream against asyncio's own server. The end of one direction alone, which that cannot: tests/container/test_engine_by_tls.py."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bridge.adapters.docker import tls
from tests.lab.authority import Authority

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
LIMIT_S = 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    authority = Authority("tests")
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    authority.issue(tmp_path, "server")
    return tmp_path


@asynccontextmanager
async def _server(folder: Path, serve: Serve, encrypted: bool = True) -> AsyncIterator[int]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "servercert.pem", folder / "serverkey.pem")
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context if encrypted else None)
    async with asyncio.timeout(LIMIT_S), server:
        yield server.sockets[0].getsockname()[1]


async def _open(port: int, folder: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await tls.open_stream("127.0.0.1", port, ssl.create_default_context(cafile=str(folder / "ca.pem")), 1 << 16)


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def _cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"half an ans")
    await writer.drain()
    writer.transport.abort()


async def _end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"all of it")
    writer.close()


def test_many_megabytes_come_back_as_they_went(folder: Path) -> None:
    sent = bytes(range(256)) * 32768  # more than all buffers between hold

    async def run() -> bytes:
        async with _server(folder, _echo) as port:
            reader, writer = await _open(port, folder)

            async def send() -> None:
                for at in range(0, len(sent), 1 << 20):
                    writer.write(sent[at : at + (1 << 20)])
                    await writer.drain()

            async with asyncio.TaskGroup() as group:
                group.create_task(send(), name="send")
                came = await reader.readexactly(len(sent))
            writer.close()
            await writer.wait_closed()
            return came

    assert asyncio.run(run()) == sent


def test_the_far_sides_end_is_the_end(folder: Path) -> None:
    async def run() -> bytes:
        async with _server(folder, _end) as port:
            reader, writer = await _open(port, folder)
            said = await reader.read()
            writer.close()
            return said

    assert asyncio.run(run()) == b"all of it"


def test_a_cut_is_told_as_plain_tcp_tells_it(folder: Path) -> None:
    async def run() -> None:
        async with _server(folder, _cut) as port:
            reader, writer = await _open(port, folder)
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await reader.readexactly(100)
            writer.close()

    asyncio.run(run())


def test_a_server_of_another_authority_is_refused(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "ca.pem").write_bytes(Authority("another").pem)

    async def run() -> None:
        async with _server(folder, _echo) as port:
            with pytest.raises(ssl.SSLCertVerificationError):
                await _open(port, elsewhere)

    asyncio.run(run())


@pytest.mark.parametrize("serve", [_end, _cut])
def test_what_speaks_no_tls_fails_the_handshake(folder: Path, serve: Serve) -> None:
    async def run() -> None:
        async with _server(folder, serve, encrypted=False) as port:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await _open(port, folder)

    asyncio.run(run())


def test_a_server_that_hangs_up_in_the_handshake_is_told(folder: Path) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async def run() -> None:
        async with _server(folder, hang_up, encrypted=False) as port:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await _open(port, folder)

    asyncio.run(run())

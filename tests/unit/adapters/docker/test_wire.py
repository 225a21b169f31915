"""What an engine, or whoever sits on its socket, answers: read, or told as what it is."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bridge.adapters.docker.endpoint import Endpoint
from bridge.adapters.docker.wire import Wire
from bridge.errors import EngineUnavailable, RemoteProtocolError


def answering(tmp_path: Path, answer: bytes) -> object:
    """What a wire says of a server that answers with these bytes and closes."""

    async def ask() -> object:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
            writer.close()

        async with await asyncio.start_unix_server(serve, tmp_path / "s"):
            return await Wire(Endpoint(f"unix://{tmp_path}/s")).request("GET", "/x", timeout_s=5)

    return asyncio.run(ask())


def test_a_stranger_on_the_socket_is_named(tmp_path: Path) -> None:
    with pytest.raises(RemoteProtocolError, match="no engine"):
        answering(tmp_path, b"SSH-2.0-OpenSSH_9.2\r\n\r\n")


def test_an_engine_that_closes_without_an_answer_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable, match="before its answer"):
        answering(tmp_path, b"")


def test_a_chunked_body_is_put_together(tmp_path: Path) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert answering(tmp_path, head + b'4\r\n{"a"\r\n4;x=y\r\n: 1}\r\n0\r\n\r\n') == {"a": 1}


def test_a_broken_chunk_is_the_engines_fault(tmp_path: Path) -> None:
    with pytest.raises(RemoteProtocolError, match="chunked"):
        answering(tmp_path, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")


_JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize("rest", [b'Content-Length: 9\r\n\r\n{"a"', b'Transfer-Encoding: chunked\r\n\r\n4\r\n{"a"', b"\r\n" + b"[" * 5000])
def test_an_engine_that_ends_in_the_middle_of_its_answer_is_unavailable(tmp_path: Path, rest: bytes) -> None:
    with pytest.raises(EngineUnavailable, match="broke off") as told:
        answering(tmp_path, _JSON + rest)
    assert told.value.hint


@pytest.mark.parametrize("size", [b"-5", b"0" * (2 << 20), b""])
def test_a_chunk_without_a_size_is_the_engines_fault(tmp_path: Path, size: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="chunked"):
        answering(tmp_path, _JSON + b"Transfer-Encoding: chunked\r\n\r\n" + size + b"\r\nxxxxxxxx")


def test_a_chunk_counts_as_it_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.adapters.docker.wire._BODY_BYTES", 1000)
    with pytest.raises(RemoteProtocolError, match="larger than"):
        answering(tmp_path, _JSON + b"Transfer-Encoding: chunked\r\n\r\nffffffffff\r\n" + bytes(2000))

"""HTTP/1.1 to an engine, on asyncio streams: one connection per request.

Theory of operation: the engine answers in three ways. A *request* ends with its body. A *stream* (events, logs, pulls) goes
on until one side closes; leaving its `async with` closes the connection, and the engine notices. A *hijacked* connection
(attach, exec) turns into a raw byte stream after the response's header: both directions belong to the caller, who must see
the very first byte, so the header is read by the same reader as what follows it.

A stdio that has no tty is multiplexed by the engine: frames of `kind u8 (1 stdout, 2 stderr), 0, 0, 0, length u32`.

Limits: a header of 64 KiB, the body of a request of 64 MiB; 30 s to connect, 120 s for a request unless the caller says otherwise. A
stream's header may take as long as its first byte (a pull from a slow registry).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import struct
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from bridge.adapters.docker import tls
from bridge.adapters.docker.by_ssh import SshDialler
from bridge.adapters.docker.endpoint import Endpoint
from bridge.errors import EngineUnavailable, HostError, RemoteProtocolError

_HEADER_BYTES = 64 << 10
_BODY_BYTES = 64 << 20
_READ_BYTES = 256 << 10
_LINE_BYTES = 1 << 20  # of a reader, which is its buffer too
_CONNECT_S = 30.0

STDOUT, STDERR = 1, 2
Query = Mapping[str, str | int | bool | None]


class EngineRefused(HostError):
    """The engine answered with an error; `status` is HTTP's."""

    def __init__(self, status: int, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status


@dataclass(frozen=True, slots=True)
class Hijacked:
    """A connection that has become a byte stream. `raw`: not multiplexed (the process has a tty)."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    raw: bool = False

    async def chunks(self) -> AsyncIterator[tuple[int, bytes]]:
        """(STDOUT or STDERR, bytes) until the process closes them."""
        while True:
            if self.raw:
                data = await self.reader.read(_READ_BYTES)
                if not data:
                    return
                yield STDOUT, data
                continue
            try:
                kind, length = struct.unpack(">BxxxI", await self.reader.readexactly(8))
                while length:
                    data = await self.reader.read(min(length, _READ_BYTES))
                    if not data:
                        return
                    length -= len(data)
                    yield kind, data
            except (asyncio.IncompleteReadError, ConnectionError):
                return

    def end_input(self) -> None:
        """The process gets EOF on its stdin."""
        if self.writer.can_write_eof():
            self.writer.write_eof()

    def close(self) -> None:
        self.writer.close()


class Wire:
    """Requests to one engine. `version` is put before each path once it is known."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.version: str | None = None
        self._tls: ssl.SSLContext | None = None
        self._ssh = SshDialler(endpoint.url, endpoint.source) if endpoint.is_ssh else None

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: object | bytes = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = 120.0,
    ) -> Any:
        """The answer's JSON, or its bytes where it is none. Raises EngineRefused, EngineUnavailable."""
        async with asyncio.timeout(timeout_s):
            reader, writer = await self._send(method, path, query, body, headers)
            try:
                status, header = await self._header(reader, writer)
                data = b"".join([chunk async for chunk in _body(reader, header, status)])
            finally:
                writer.close()
        if status >= 400:
            raise EngineRefused(status, _message(data))
        if header.get("content-type", "").startswith("application/json") and data:
            try:
                return json.loads(data)
            except (ValueError, RecursionError) as exc:
                raise EngineUnavailable(f"the engine at {self.endpoint.url} broke off its answer", hint="docker version") from exc
        return data

    @contextlib.asynccontextmanager
    async def stream(
        self, method: str, path: str, *, query: Query | None = None, body: object | bytes = None, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """The answer's body as it comes."""
        reader, writer = await self._send(method, path, query, body, headers)
        try:
            status, header = await self._header(reader, writer)
            chunks = _body(reader, header, status, bounded=status >= 400)
            if status >= 400:
                raise EngineRefused(status, _message(b"".join([chunk async for chunk in chunks])))
            yield chunks
        finally:
            writer.close()

    async def hijack(self, path: str, *, query: Query | None = None, body: object = None, raw: bool = False) -> Hijacked:
        reader, writer = await self._send("POST", path, query, body, {"Connection": "Upgrade", "Upgrade": "tcp"})
        try:
            status, header = await self._header(reader, writer)
            if status not in (101, 200):
                raise EngineRefused(status, _message(b"".join([chunk async for chunk in _body(reader, header, status)])))
        except BaseException:
            writer.close()
            raise
        return Hijacked(reader, writer, raw)

    async def _send(
        self, method: str, path: str, query: Query | None, body: object | bytes, headers: Mapping[str, str] | None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        prefix = f"/v{self.version}" if self.version else ""
        words = {key: _word(value) for key, value in (query or {}).items() if value is not None}
        url = quote(prefix + path, safe="/:@") + (f"?{urlencode(words)}" if words else "")
        fields = {"Host": "docker", "User-Agent": "mbridge", "Connection": "close", **(headers or {})}
        data = b""
        if isinstance(body, bytes):
            data = body
            fields.setdefault("Content-Type", "application/x-tar")
        elif body is not None:
            data = json.dumps(body).encode()
            fields["Content-Type"] = "application/json"
        if data or method in ("POST", "PUT"):
            fields["Content-Length"] = str(len(data))
        head = f"{method} {url} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items()) + "\r\n"
        reader, writer = await self._connect()
        try:
            writer.write(head.encode("latin-1") + data)
            await writer.drain()
        except ConnectionError as exc:
            writer.close()
            raise await self._failure(writer) or EngineUnavailable(
                f"the engine at {self.endpoint.url} closed the connection", hint="docker version"
            ) from exc
        return reader, writer

    async def _header(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[int, dict[str, str]]:
        try:
            return await _header(reader)
        except EngineUnavailable as exc:
            raise await self._failure(writer) or exc from exc.__cause__
        except ssl.SSLError as exc:  # TLS 1.3 judges the client's certificate after the handshake
            raise EngineUnavailable(
                f"the engine at {self.endpoint.url} ({self.endpoint.source}) ended the TLS connection: {exc.reason}",
                hint="it takes certificates of its own authority: see cert.pem in DOCKER_CERT_PATH or in the docker context",
            ) from exc

    async def _failure(self, writer: asyncio.StreamWriter) -> EngineUnavailable | None:
        """Who carried the connection may know more of its end."""
        return await self._ssh.failure(writer) if self._ssh is not None else None

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        endpoint = self.endpoint
        if self._ssh is not None:
            return await self._ssh.connect(_LINE_BYTES)
        try:
            async with asyncio.timeout(_CONNECT_S):
                if endpoint.is_unix:
                    return await asyncio.open_unix_connection(endpoint.path, limit=_LINE_BYTES)
                host, port = endpoint.address
                context = self._context()
                if context is not None:
                    return await tls.open_stream(host, port, context, _LINE_BYTES)
                return await asyncio.open_connection(host, port, limit=_LINE_BYTES)
        except PermissionError as exc:
            raise EngineUnavailable(
                f"not allowed to use the engine's socket {endpoint.path}", hint='sudo usermod -aG docker "$USER", then log in again'
            ) from exc
        except FileNotFoundError as exc:
            raise EngineUnavailable(
                f"no engine: {endpoint.path} does not exist ({endpoint.source})",
                hint="install and start Docker, or name your engine by DOCKER_HOST or --docker-context",
            ) from exc
        except ssl.SSLError as exc:
            raise EngineUnavailable(f"the engine at {endpoint.url} ({endpoint.source}) failed the TLS handshake: {exc.reason}") from exc
        except (OSError, TimeoutError) as exc:
            why = "no answer" if isinstance(exc, TimeoutError) else exc.strerror or str(exc)
            raise EngineUnavailable(
                f"the engine at {endpoint.url} ({endpoint.source}) is not running: {why.lower()}", hint="start it, then try: docker version"
            ) from exc

    def _context(self) -> ssl.SSLContext | None:
        endpoint = self.endpoint
        if not endpoint.tls:
            return None
        if self._tls is None:
            context = ssl.create_default_context(cafile=endpoint.ca)
            if not endpoint.verify:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            if endpoint.cert and endpoint.key:
                context.load_cert_chain(endpoint.cert, endpoint.key)
            self._tls = context
        return self._tls


async def _header(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError as exc:
        raise RemoteProtocolError("the engine's answer has an endless header") from exc
    except (asyncio.IncompleteReadError, ConnectionError) as exc:
        raise EngineUnavailable("the engine closed the connection before its answer", hint="docker version") from exc
    first, *lines = raw[:_HEADER_BYTES].decode("latin-1").split("\r\n")
    words = first.split(" ", 2)
    if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdigit():
        raise RemoteProtocolError(f"this is no engine: its answer begins with {first[:40]!r}")
    fields = (line.partition(":") for line in lines if ":" in line)
    return int(words[1]), {name.strip().lower(): value.strip() for name, _, value in fields}


async def _body(reader: asyncio.StreamReader, header: Mapping[str, str], status: int, bounded: bool = True) -> AsyncIterator[bytes]:
    total = 0
    async for chunk in _chunked(reader) if header.get("transfer-encoding", "").lower() == "chunked" else _plain(reader, header, status):
        total += len(chunk)
        if bounded and total > _BODY_BYTES:
            raise RemoteProtocolError("the engine's answer is larger than 64 MiB")
        yield chunk


async def _plain(reader: asyncio.StreamReader, header: Mapping[str, str], status: int) -> AsyncIterator[bytes]:
    if status in (204, 304):
        return
    left = int(header["content-length"]) if header.get("content-length", "").isdigit() else None
    while left is None or left > 0:
        data = await reader.read(_READ_BYTES if left is None else min(left, _READ_BYTES))
        if not data:
            return
        left = None if left is None else left - len(data)
        yield data


async def _chunked(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    try:
        while left := await _chunk_size(reader):
            while left:
                data = await reader.read(min(left, _READ_BYTES))
                if not data:
                    return
                left -= len(data)
                yield data
            await reader.readexactly(2)
    except (asyncio.IncompleteReadError, ConnectionError):
        return  # the engine went away in the middle: the caller sees the end of the stream


async def _chunk_size(reader: asyncio.StreamReader) -> int:
    try:
        size = int((await reader.readuntil(b"\r\n")).split(b";")[0], 16)
    except (ValueError, asyncio.LimitOverrunError) as exc:
        raise RemoteProtocolError("the engine's answer is badly chunked") from exc
    if size < 0:
        raise RemoteProtocolError("the engine's answer is badly chunked")
    return size


def _message(data: bytes) -> str:
    try:
        message = json.loads(data)["message"]
    except (ValueError, KeyError, TypeError):
        message = data.decode(errors="replace")
    return str(message).strip()[:500] or "the engine refused, without a reason"


def _word(value: str | int | bool | None) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

"""A TLS stream that can end its sending half and read on: what a hijacked connection needs for the end of stdin.

Theory of operation: asyncio's own TLS closes both ways at once and so has no `write_eof` (its can_write_eof() is False): `docker run -i`
would never see the end of its input. RFC 8446, 6.1, lets each side close its own half by close_notify, which dockerd takes
for the end of stdin. So the records are OpenSSL's, by `ssl.SSLObject` on two memory buffers, and the bytes a plain transport's.

    user ── write ──> SSLObject ──> outgoing ── transport.write ──> engine
    user <── data_received ── SSLObject <── incoming <── data_received ── engine

Limits: no renegotiation (TLS 1.2's; Go has none as a server). After `write_eof` OpenSSL still reads, but writes nothing more, not
even the answer to a KeyUpdate, which Go never asks for.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import Any

_READ_BYTES = 256 << 10


async def open_stream(host: str, port: int, context: ssl.SSLContext, limit: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connected, with the handshake done. Raises OSError; of that, ssl.SSLError where the handshake failed."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit, loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    _, tls = await loop.create_connection(lambda: _Tls(protocol, context, host, loop), host, port)
    try:
        await tls.handshaken
    except BaseException:
        tls.abort()
        raise
    return reader, asyncio.StreamWriter(tls, protocol, reader, loop)


class _Tls(asyncio.Protocol, asyncio.Transport):
    """Between two: the plain transport's protocol, and the user's transport."""

    def __init__(self, user: asyncio.Protocol, context: ssl.SSLContext, host: str, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.Transport.__init__(self)
        self.handshaken: asyncio.Future[None] = loop.create_future()
        self._user = user
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._ssl = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._open = self._ended = self._eof_told = False
        self._fault: ssl.SSLError | None = None
        self._plain: asyncio.Transport

    # the plain transport's protocol

    def connection_made(self, transport: Any) -> None:
        self._plain = transport  # asyncio's Transport by its methods; uvloop's is none by its class
        self._step()

    def data_received(self, data: bytes) -> None:
        self._incoming.write(data)
        self._step()

    def eof_received(self) -> bool:
        """A connection that ends without close_notify was cut."""
        self._incoming.write_eof()
        self._step()
        self._tell_eof()
        return True  # whoever has the stream closes it

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.handshaken.done():
            self.handshaken.set_exception(exc or ConnectionResetError("closed during the TLS handshake"))
        if self._open:
            self._user.connection_lost(self._fault or exc)

    def pause_writing(self) -> None:
        self._user.pause_writing()

    def resume_writing(self) -> None:
        self._user.resume_writing()

    # the user's transport

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if data and not self._ended and not self._plain.is_closing():
            self._ssl.write(data)
            self._flush()

    def write_eof(self) -> None:
        if self._ended:
            return
        self._ended = True
        with contextlib.suppress(ssl.SSLError):  # SSLWantReadError: the far side's close_notify has not come, and need not
            self._ssl.unwrap()
        self._flush()

    def can_write_eof(self) -> bool:
        return True

    def close(self) -> None:
        if not self._plain.is_closing():
            self.write_eof()
            self._plain.close()

    def abort(self) -> None:
        self._plain.abort()

    def is_closing(self) -> bool:
        return self._plain.is_closing()

    def pause_reading(self) -> None:
        self._plain.pause_reading()

    def resume_reading(self) -> None:
        self._plain.resume_reading()

    def is_reading(self) -> bool:
        return self._plain.is_reading()

    def get_write_buffer_size(self) -> int:
        return self._plain.get_write_buffer_size()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._plain.set_write_buffer_limits(high, low)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._plain.get_extra_info(name, default)

    # both

    def _step(self) -> None:
        try:
            if not self._open:
                self._ssl.do_handshake()
                self._open = True
                self._user.connection_made(self)
                self.handshaken.set_result(None)
            while data := self._ssl.read(_READ_BYTES):
                self._user.data_received(data)
            self._tell_eof()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:  # close_notify after our own; else read() answers b""
            self._tell_eof()
        except ssl.SSLError as exc:
            self._fail(exc)
        self._flush()

    def _fail(self, exc: ssl.SSLError) -> None:
        self._flush()  # the alert
        if not self.handshaken.done():
            self.handshaken.set_exception(exc)
        elif isinstance(exc, ssl.SSLEOFError):  # as plain TCP would tell it
            self._tell_eof()
        else:
            self._fault = exc
            self._plain.abort()

    def _tell_eof(self) -> None:
        if self._open and not self._eof_told:
            self._eof_told = True
            self._user.eof_received()

    def _flush(self) -> None:
        if self._outgoing.pending and not self._plain.is_closing():
            self._plain.write(self._outgoing.read())

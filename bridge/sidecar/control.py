"""One control connection of the door, as an asyncio protocol: whole lines in, messages out.

Limits: a host that does not read is as good as gone: it is cut off at 4 MiB unread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import cast

from bridge.errors import RemoteProtocolError
from bridge.protocol import door as wire

_MAX_UNREAD_BYTES = 4 << 20


class Control(asyncio.Protocol):
    """`on_lines` gets this connection and its lines; `on_lost` comes once, also after `close()`."""

    def __init__(self, on_lines: Callable[[Control, Sequence[bytes]], None], on_lost: Callable[[Control], None]) -> None:
        self._on_lines = on_lines
        self._on_lost = on_lost
        self._reader = wire.LineReader()
        self._transport: asyncio.Transport | None = None
        self._closing = False

    def send(self, message: wire.Message) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        self._transport.write(wire.encode(message))
        if self._transport.get_write_buffer_size() > _MAX_UNREAD_BYTES:
            self._transport.abort()

    def close(self) -> None:
        self._closing = True
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are transports in all but their class
        if self._closing:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        try:
            lines = self._reader.feed(data)
        except RemoteProtocolError as exc:
            self.send(wire.Failed(type(exc).__name__, exc.message))
            self.close()
            return
        if lines:
            self._on_lines(self, lines)

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_lost(self)

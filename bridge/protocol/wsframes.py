"""WebSocket frames (RFC 6455) of a client that carries a byte stream, without I/O: headers out, pieces in.

A message is handed on piece by piece as it comes, never collected: `start` marks its first piece, whose first byte is the
channel in Kubernetes' subprotocols. Control frames come whole, also between the pieces of a message.

Limits: binary and text are told apart by nobody here; no extensions. The masking key is 0: it must be unpredictable (5.3) so that
a browser's script cannot write a proxy's language into the wire; here the payload is ciphertext of ours inside TLS.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

from bridge.errors import RemoteProtocolError

_MASKED, _FIN = 0x80, 0x80
_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
_KEY = bytes(4)
_CONTROL_MAX = 125
Kind = Literal["data", "ping", "pong", "close"]
_KINDS: dict[int, Kind] = {_CLOSE: "close", _PING: "ping", _PONG: "pong"}


@dataclass(frozen=True, slots=True)
class Piece:
    """`body` is valid until the next call of `feed`."""

    kind: Kind
    body: memoryview
    start: bool = True


def header(size: int, opcode: int = _BINARY) -> bytes:
    """Of one whole masked frame whose payload of `size` bytes follows as it is."""
    first = bytes((_FIN | opcode,))
    if size < 126:
        return first + bytes((_MASKED | size,)) + _KEY
    if size < 1 << 16:
        return first + struct.pack("!BH", _MASKED | 126, size) + _KEY
    return first + struct.pack("!BQ", _MASKED | 127, size) + _KEY


def pong(body: bytes) -> bytes:
    return header(len(body), _PONG) + body


def close(code: int = 1000) -> bytes:
    return header(2, _CLOSE) + code.to_bytes(2, "big")


class Decoder:
    """Frames of the server's, however TCP cuts them. Raises RemoteProtocolError."""

    def __init__(self) -> None:
        self._held = b""  # of a header or a control frame that is not whole yet
        self._left = 0  # of the data frame under way
        self._start = False  # nothing of its message has been handed on
        self._in_message = False  # a message's last frame is still to come

    def feed(self, data: bytes) -> list[Piece]:
        if self._held:
            data = self._held + data
            self._held = b""
        view, pieces = memoryview(data), list[Piece]()
        while view:
            if self._left:
                taken = view[: self._left]
                view = view[len(taken) :]
                self._left -= len(taken)
                pieces.append(Piece("data", taken, self._start))
                self._start = False
                continue
            size = self._header(view, pieces)
            if not size:
                self._held = bytes(view)
                break
            view = view[size:]
        return pieces

    def _header(self, view: memoryview, pieces: list[Piece]) -> int:
        """Bytes that a header (a whole control frame) took; 0 when more must come."""
        if len(view) < 2:
            return 0
        opcode, length, final = view[0] & 0x0F, view[1], bool(view[0] & _FIN)
        if view[0] & 0x70 or length & _MASKED:
            raise RemoteProtocolError("a WebSocket frame of a server with reserved bits or a mask")
        if opcode in _KINDS:
            if length > _CONTROL_MAX or not final:
                raise RemoteProtocolError("a WebSocket control frame that is long or in parts")
            if len(view) < 2 + length:
                return 0
            pieces.append(Piece(_KINDS[opcode], view[2 : 2 + length]))
            return 2 + length
        if opcode not in (_CONTINUATION, _TEXT, _BINARY) or (opcode == _CONTINUATION) != self._in_message:
            raise RemoteProtocolError(f"a WebSocket frame with opcode {opcode} where none belongs")
        size = {126: 4, 127: 10}.get(length, 2)
        if len(view) < size:
            return 0
        self._left = length if size == 2 else int.from_bytes(view[2:size], "big")
        if self._left >> 63:
            raise RemoteProtocolError("a WebSocket frame of more than 2^63 bytes")
        self._start = opcode != _CONTINUATION or (self._start and self._in_message)
        self._in_message = not final
        return size

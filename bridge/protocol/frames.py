"""Messages on a byte channel: each is a u32 length (network order) and its body.

Used by the framed SSH channels (`mbridge-control`, `mbridge-udp`); what a body means is its reader's concern.

Limits: a reader refuses a body past `max_bytes` as soon as its length is known, so at most one such body is ever held.
"""

from __future__ import annotations

import struct

from bridge.errors import LocalProtocolError, RemoteProtocolError

_LENGTH = struct.Struct("!I")


def encode(body: bytes) -> bytes:
    """One frame."""
    if len(body) > 0xFFFFFFFF:
        raise LocalProtocolError(f"a frame of {len(body)} bytes cannot be written")
    return _LENGTH.pack(len(body)) + body


class FrameReader:
    """Cuts a byte channel into bodies. After a RemoteProtocolError it is of no further use."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._buffer = bytearray()

    @property
    def held_bytes(self) -> int:
        """Bytes of a frame that is not whole yet: at the channel's end this must be 0."""
        return len(self._buffer)

    def feed(self, data: bytes | memoryview) -> list[bytes]:
        """The bodies that `data` completes, in order. Raises RemoteProtocolError when a length exceeds the limit."""
        buffer = self._buffer
        buffer += data
        bodies: list[bytes] = []
        start = 0
        while len(buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, start)
            if length > self._max_bytes:
                raise RemoteProtocolError(f"a frame of {length} bytes came, {self._max_bytes} are allowed")
            end = start + _LENGTH.size + length
            if end > len(buffer):
                break
            bodies.append(bytes(memoryview(buffer)[start + _LENGTH.size : end]))
            start = end
        if start:
            del buffer[:start]
        return bodies

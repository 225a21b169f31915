"""Frames of the resumable stream: `type u8, length u32, body`, and the proof that resumes one.

Theory of operation: DATA is nearly all there is, so the reader never gathers a DATA frame: each part of its body is passed
on as it comes, as a view of the caller's buffer. Other frames are gathered whole (56 bytes at most, REFUSED 200).

Limits: a length that its type does not allow, and a type that is not known, is a RemoteProtocolError at the header, before
any of the body is held.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Generator, Iterator
from enum import IntEnum

from bridge.errors import RemoteProtocolError

MAX_BODY = 1 << 20
ID_SIZE, NONCE_SIZE, MAC_SIZE, SECRET_SIZE = 16, 16, 32, 32
MAX_REASON = 200
HEADER = struct.Struct("!BI")
_U64 = struct.Struct("!Q")


class Kind(IntEnum):
    OPEN = 1
    RESUME = 2
    CHALLENGE = 3
    PROOF = 4
    REFUSED = 5
    DATA = 6
    ACK = 7
    PING = 8
    PONG = 9
    CLOSE = 10


_LENGTHS = {
    Kind.OPEN: (ID_SIZE, ID_SIZE),
    Kind.RESUME: (ID_SIZE + NONCE_SIZE + 8, ID_SIZE + NONCE_SIZE + 8),
    Kind.CHALLENGE: (NONCE_SIZE + 8 + MAC_SIZE, NONCE_SIZE + 8 + MAC_SIZE),
    Kind.PROOF: (MAC_SIZE, MAC_SIZE),
    Kind.REFUSED: (0, MAX_REASON),
    Kind.DATA: (1, MAX_BODY),
    Kind.ACK: (8, 8),
    Kind.PING: (0, 0),
    Kind.PONG: (0, 0),
    Kind.CLOSE: (0, 0),
}
_KNOWN = {kind.value: (kind, least, most) for kind, (least, most) in _LENGTHS.items()}


def encode(kind: Kind, body: bytes = b"") -> bytes:
    """One whole frame other than DATA (whose header and chunks go out unjoined)."""
    return HEADER.pack(kind, len(body)) + body


def u64(number: int) -> bytes:
    return _U64.pack(number)


def read_u64(body: bytes | memoryview, offset: int = 0) -> int:
    number: int = _U64.unpack_from(body, offset)[0]
    return number


def proof(secret: bytes, role: bytes, stream_id: bytes, nonces: tuple[bytes, bytes], received: tuple[int, int]) -> bytes:
    """HMAC-SHA256 of `role` (b"client" or b"server"); `nonces` and `received` are the client's, then the server's."""
    text = b"mbridge stream 1 " + role + stream_id + nonces[0] + nonces[1] + u64(received[0]) + u64(received[1])
    return hmac.digest(secret, text, "sha256")


class Reader:
    """Cuts one carrier's bytes into frames; of no further use after a RemoteProtocolError."""

    def __init__(self) -> None:
        self._head = bytearray()  # of a header or a small frame that is not whole yet
        self._data_left = 0  # of the DATA frame under way

    def feed(self, view: memoryview) -> Iterator[tuple[Kind, memoryview]]:
        """Each frame's kind and body; a DATA body comes in as many parts as it arrived in. Views are valid until `view` is."""
        position, end = 0, len(view)
        while position < end:
            if self._data_left:
                size = min(self._data_left, end - position)
                self._data_left -= size
                yield Kind.DATA, view[position : position + size]
                position += size
                continue
            if not self._head and end - position >= HEADER.size:
                number, length = HEADER.unpack_from(view, position)
                kind = _checked(number, length)
                if kind is Kind.DATA:
                    self._data_left = length
                    position += HEADER.size
                    continue
                if end - position >= HEADER.size + length:
                    body = view[position + HEADER.size : position + HEADER.size + length]
                    position += HEADER.size + length
                    yield kind, body
                    continue
            position = yield from self._gather(view, position)

    def _gather(self, view: memoryview, position: int) -> Generator[tuple[Kind, memoryview], None, int]:
        head = self._head
        if len(head) < HEADER.size:
            more = min(HEADER.size - len(head), len(view) - position)
            head += view[position : position + more]
            position += more
            if len(head) < HEADER.size:
                return position
        number, length = HEADER.unpack_from(head)
        kind = _checked(number, length)
        if kind is Kind.DATA:
            head.clear()
            self._data_left = length
            return position
        more = min(HEADER.size + length - len(head), len(view) - position)
        head += view[position : position + more]
        position += more
        if len(head) == HEADER.size + length:
            body = memoryview(bytes(head))[HEADER.size :]
            head.clear()
            yield kind, body
        return position


def _checked(number: int, length: int) -> Kind:
    known = _KNOWN.get(number)
    if known is None:
        raise RemoteProtocolError(f"a frame of unknown type {number} came over the carrier")
    kind, least, most = known
    if not least <= length <= most:
        raise RemoteProtocolError(f"a {kind.name} frame of {length} bytes came, {least} to {most} are allowed")
    return kind

"""Port-forward's two streams over SPDY/3.1 inside a WebSocket, as kubectl has them, without I/O.

Theory of operation: an API server from 1.31 on (KEP-4006) unpacks the WebSocket, and what it holds is SPDY as the kubelet has always
spoken it. The older `v4.channel.k8s.io` reaches the container runtime as a WebSocket instead, which takes the mask off byte by
byte there: 8 ms of CPU a MiB where SPDY costs 3.5 (docs/bench.md).

    SYN_STREAM 1 (streamtype: error, ended by us at once) · SYN_STREAM 3 (streamtype: data) · DATA both ways on 3 · FIN of both

Source: draft-mbelshe-httpbis-spdy-00 (2.2 frames, 2.6 control frames, 2.6.10.1 the dictionary); Kubernetes' portforward.k8s.io.

Limits: a client's side; what a server sends beside data, its answers' headers included, is skipped by its length and not unpacked.
No flow control: neither kubectl nor the kubelet has any here, TCP does it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Generator, Iterator

from bridge.errors import RemoteProtocolError
from bridge.protocol.channels import Part

PROTOCOL = "SPDY/3.1+portforward.k8s.io"
_ERROR, _DATA = 1, 3  # stream ids: a client's are odd
_SYN_STREAM, _RST_STREAM, _PING, _GOAWAY = 1, 3, 6, 7
_CONTROL, _VERSION = 0x8000, 3
_FIN = 0x01
_HEAD = struct.Struct("!IBBH")  # data: stream, flags, length of 24 bits; control: 0x8000 | version and type, and the same
_MOST_CONTROL = 64 << 10

# The words of the dictionary, each with its length, then text without lengths (the draft, 2.6.10.1).
_WORDS = """
options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age allow authorization
cache-control connection content-base content-encoding content-language content-length content-location content-md5
content-range content-type date etag expect expires from host if-match if-modified-since if-none-match if-range
if-unmodified-since last-modified location max-forwards pragma proxy-authenticate proxy-authorization range referer retry-after
server te trailer transfer-encoding upgrade user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1
url public set-cookie keep-alive origin
""".replace("\n", " ").split()
_TEXT = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not Found"
    "500 Internal Server Error501 Not Implemented503 Service Unavailable"
    "Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT"
    "chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,public"
    "privatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)


def dictionary() -> bytes:
    """What zlib is primed with for header blocks, 1,423 bytes."""
    words = (word.replace("_", " ").encode() for word in _WORDS)
    return b"".join(struct.pack("!I", len(word)) + word for word in words) + _TEXT.encode()


class PortForward:
    """A channels.Wire: bytes to and from one port of a pod."""

    def __init__(self, port: int) -> None:
        packer = zlib.compressobj(zdict=dictionary())

        def stream(number: int, kind: str, flags: int) -> bytes:
            pairs = {"port": str(port), "requestid": "0", "streamtype": kind}
            block = struct.pack("!I", len(pairs)) + b"".join(_text(name) + _text(value) for name, value in pairs.items())
            packed = packer.compress(block) + packer.flush(zlib.Z_SYNC_FLUSH)
            return _control(_SYN_STREAM, flags, struct.pack("!IIH", number, 0, 0) + packed)

        self.opening = stream(_ERROR, "error", _FIN) + stream(_DATA, "data", 0)
        self.ending = _HEAD.pack(_DATA, _FIN, 0, 0)
        self._held = bytearray()  # of a header or a control frame that is not whole yet
        self._left = 0  # of the data frame under way
        self._stream = 0  # whose
        self._last = False  # it ends its stream
        self._open = {_ERROR, _DATA}  # not ended by the far side

    def head(self, size: int) -> bytes:
        return _HEAD.pack(_DATA, 0, size >> 16, size & 0xFFFF)

    def feed(self, body: memoryview, start: bool) -> Iterator[Part]:
        while body or (self._last and not self._left):
            if self._left or self._last:
                piece, body = body[: self._left], body[self._left :]
                self._left -= len(piece)
                yield from self._on_data(piece)
                continue
            if not self._held and len(body) >= _HEAD.size and not body[0] & 0x80:
                self._begin_data(body)
                body = body[_HEAD.size :]
                continue
            body = yield from self._gather(body)

    def _begin_data(self, header: bytes | bytearray | memoryview) -> None:
        self._stream, flags, high, low = _HEAD.unpack_from(header)
        self._left = high << 16 | low
        self._last = bool(flags & _FIN)

    def _on_data(self, piece: memoryview) -> Iterator[Part]:
        if piece and self._stream in (_DATA, _ERROR):
            yield Part("data" if self._stream == _DATA else "error", piece)
        if self._last and not self._left:
            self._last = False
            yield from self._ended(self._stream)

    def _ended(self, *streams: int) -> Iterator[Part]:
        """Both must have: the kubelet ends the data of a port that refuses, and only then says why."""
        before = bool(self._open)
        self._open.difference_update(streams)
        if before and not self._open:
            yield Part("end")

    def _gather(self, body: memoryview) -> Generator[Part, None, memoryview]:
        """A header that came in parts, or a control frame; returns what is left of `body`."""
        held = self._held
        body = self._hold(body, _HEAD.size)
        if len(held) < _HEAD.size:
            return body
        if not held[0] & 0x80:
            self._begin_data(held)
            held.clear()
            return body
        first, flags, high, low = _HEAD.unpack_from(held)
        size = high << 16 | low
        if first >> 16 != _CONTROL | _VERSION or size > _MOST_CONTROL:
            raise RemoteProtocolError(f"a SPDY frame of version {first >> 16 & 0x7FFF} and {size} bytes came")
        body = self._hold(body, _HEAD.size + size)
        if len(held) == _HEAD.size + size:
            frame = bytes(held)
            held.clear()
            yield from self._on_control(first & 0xFFFF, flags, frame)
        return body

    def _hold(self, body: memoryview, size: int) -> memoryview:
        """Add to what is held, up to `size` bytes; what is left of `body`."""
        more = body[: max(0, size - len(self._held))]
        self._held += more
        return body[len(more) :]

    def _on_control(self, kind: int, flags: int, frame: bytes) -> Iterator[Part]:
        body = frame[_HEAD.size :]
        stream = int.from_bytes(body[:4], "big") & 0x7FFFFFFF
        if kind == _PING:
            if not stream % 2:  # the server's own; an odd one would answer ours
                yield Part("answer", memoryview(frame))
        elif kind == _GOAWAY or (kind == _RST_STREAM and stream == _DATA):
            yield from self._ended(_ERROR, _DATA)
        elif kind == _RST_STREAM or flags & _FIN:
            yield from self._ended(stream)


def _control(kind: int, flags: int, body: bytes) -> bytes:
    return _HEAD.pack((_CONTROL | _VERSION) << 16 | kind, flags, len(body) >> 16, len(body) & 0xFFFF) + body


def _text(text: str) -> bytes:
    return struct.pack("!I", len(text)) + text.encode()

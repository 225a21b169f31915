"""A carrier's WebSocket joined to one end of a socket pair, with a callback for each direction and nothing between.

Theory of operation: whatever is read on either side is written to the other in the same turn of the loop. Only what the other side
does not take at once is kept, and then its source is paused: at most one read's worth. Tasks, queues and whole messages would each
cost a turn of the loop and a copy; a keystroke passes here four times.

    socket pair --read--> heads + bytes --> TLS to the API server         TLS --> frames --> parts --> socket pair

What the messages hold is the Wire's business (protocol/channels.py, protocol/spdy.py).

Limits: the far side's end ends both. The caller's end lingers, since not every Wire knows a half-close: what was sent is still on
its way, and a WebSocket closed over it would be reset in the pod.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

import aiohttp

from bridge.errors import ProtocolError
from bridge.protocol import wsframes
from bridge.protocol.channels import Wire

_READ = 256 * 1024
_LINGER_S = 5.0


class Pump(asyncio.Protocol):
    """Runs from its construction until `ended`; `why` is what the far side said last on its error channels."""

    def __init__(self, answer: aiohttp.ClientResponse, sock: socket.socket, wire: Wire) -> None:
        """`answer` is upgraded (api.upgrade)."""
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self.why = ""
        self._answer, self._sock, self._wire = answer, sock, wire
        self._decoder = wsframes.Decoder()
        self._buffer = bytearray(_READ)
        self._unsent = bytearray()  # that the caller does not take yet
        self._hearing = True  # the caller still reads
        self._reading = False  # the loop looks at the caller's end
        self._linger: asyncio.TimerHandle | None = None
        connection = answer.connection
        assert connection is not None  # an upgraded answer has one
        assert connection.protocol is not None
        assert connection.transport is not None
        self._transport: Any = connection.transport  # asyncio's stubs know no transport that both reads and changes its protocol
        self._before = connection.protocol  # aiohttp waits for its end when the session closes
        self._say(wire.opening)
        # aiohttp hands over what came with the handshake, then this protocol takes its place
        connection.protocol.set_parser(_First(self), None)
        if not self.ended.done():
            self._transport.set_protocol(self)
            self._read_caller(True)

    # asyncio.Protocol: from the API server

    def data_received(self, data: bytes) -> None:
        if self.ended.done():
            return
        try:
            for piece in self._decoder.feed(data):
                match piece.kind:
                    case "data":
                        self._on_piece(piece.body, piece.start)
                        if self.ended.done():
                            return
                    case "ping":
                        self._transport.write(wsframes.pong(bytes(piece.body)))
                    case "close":
                        self._end()
                        return
        except ProtocolError as error:
            self.why = self.why or error.message
            self._end()

    def eof_received(self) -> bool:
        self._end()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self.why = self.why or str(exc)
        self._end()
        self._before.connection_lost(exc)

    def pause_writing(self) -> None:
        self._read_caller(False)

    def resume_writing(self) -> None:
        self._read_caller(True)

    def _on_piece(self, body: memoryview, start: bool) -> None:
        for part in self._wire.feed(body, start):
            match part.kind:
                case "data":
                    if self._hearing:
                        self._give(part.body)
                case "error":
                    self.why = (self.why + bytes(part.body).decode(errors="replace"))[-2000:]
                case "answer":
                    self._say(bytes(part.body))
                case "end":
                    self._end()
                    return

    def _say(self, message: bytes) -> None:
        if message:
            self._transport.write(wsframes.header(len(message)) + message)

    # the caller's end

    def _give(self, body: memoryview) -> None:
        if not self._unsent:
            try:
                body = body[self._sock.send(body) :]
            except BlockingIOError:
                pass
            except OSError:
                self._hearing = False  # gone; the far side is read on, to reach its end
                return
            if not body:
                return
            self._loop.add_writer(self._sock, self._flush)
            self._transport.pause_reading()
        self._unsent += body

    def _flush(self) -> None:
        try:
            del self._unsent[: self._sock.send(self._unsent)]
        except BlockingIOError:
            return
        except OSError:
            self._hearing = False
            self._unsent.clear()
        if not self._unsent:
            self._loop.remove_writer(self._sock)
            if self.ended.done():
                self._sock.close()
            else:
                self._transport.resume_reading()

    def _read_caller(self, wanted: bool) -> None:
        if wanted and not self._reading and self._linger is None and not self.ended.done():
            self._loop.add_reader(self._sock, self._on_caller)
            self._reading = True
        elif not wanted and self._reading:
            self._loop.remove_reader(self._sock)
            self._reading = False

    def _on_caller(self) -> None:
        try:
            count = self._sock.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError:
            count = 0
        if not count:
            self._caller_ended()
            return
        head = self._wire.head(count)
        # one write, one TLS record where it fits
        self._transport.write(b"".join((wsframes.header(len(head) + count), head, memoryview(self._buffer)[:count])))
        if self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):  # uvloop does not call back a second time (libuv, uv__poll_io)
            self._caller_ended()

    def _caller_ended(self) -> None:
        self._read_caller(False)
        self._say(self._wire.ending)
        self._linger = self._loop.call_later(_LINGER_S, self._end)

    def _end(self) -> None:
        """Close both; what the caller has not taken yet is still given to it."""
        if self.ended.done():
            return
        self.ended.set_result(None)
        self._read_caller(False)
        if self._linger is not None:
            self._linger.cancel()
        if not self._unsent:
            self._sock.close()
        with contextlib.suppress(OSError, RuntimeError):  # a connection that is broken cannot be closed in order, and need not be
            self._transport.write(wsframes.close())
        self._answer.close()

    def stop(self) -> None:
        """End at once."""
        if self._unsent:
            self._loop.remove_writer(self._sock)
            self._unsent.clear()
        self._end()
        self._sock.close()


class _First:
    """A parser for aiohttp's protocol: what it is fed goes to the pump."""

    def __init__(self, pump: Pump) -> None:
        self._pump = pump

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self._pump.data_received(data)
        return False, b""

    def feed_eof(self) -> None:
        self._pump.eof_received()

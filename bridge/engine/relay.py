"""The only byte pump: one TCP connection of the app's joined to one channel of the link.

Theory of operation: a non-blocking socket under the loop's own readers and writers, with no stream object between, since
all bytes of all flows pass here. Each direction ends by itself (half-close); the flow ends when both have.

    app ── recv_into ──> channel.write       paused while the channel's window is full
    app <── send ─────── on_data             what the socket does not take is kept; past `ahead` bytes the channel is paused
    FIN of the app → write_eof · EOF of the cluster → shutdown, once all is sent
    RST of the app → channel.abort · reset of the channel → close with SO_LINGER of 0, which sends a RST (socket(7))

That SO_LINGER stands from the start and is lifted before an orderly close, so that a bridge which is killed resets its flows:
an app must never take half an answer for a whole one.

An urgent byte (MSG_OOB) is not passed on, but the stream round it is: the cluster reads what it would read with SO_OOBINLINE
off. MSG_PEEK is the app's kernel's own affair.

A RST may come with bytes before it. uvloop calls back once for both and then watches that socket no more (libuv, uv__poll_io), so
each read asks for the error too; what was unread is lost with the connection, as to a peer without us.

Limits: what is kept for sockets that take nothing is bounded by the channels' windows; where there are none (`ahead` of 0, a far end in
this very process) by one piece a flow, and pieces are of 4 KiB from the moment that all pumps keep 16 MiB. A RST of the app that
comes after its own FIN is noticed when there is something to send to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import deque
from collections.abc import Callable

from bridge.engine.needs import Channel

_BUFFER_BYTES = 256 << 10
AHEAD_BYTES, _LOW_BYTES = 256 << 10, 64 << 10
_MUCH_KEPT_BYTES, _SMALL_BYTES = 16 << 20, 4 << 10
_MAX_PIECES = 64  # of one sendmsg; IOV_MAX is 1024

_RESET_AT_CLOSE, _NO_LINGER = struct.pack("ii", 1, 0), struct.pack("ii", 0, 0)

# Shared by all flows: the loop has one thread, and what was read is copied out before the callback ends.
_buffer = memoryview(bytearray(_BUFFER_BYTES))
_small_buffer = _buffer[:_SMALL_BYTES]

Ended = Callable[[int, int, str], None]


def prepare(sock: socket.socket) -> None:
    """Set a socket's options for the pump; a listener's pass to what it accepts (tcp(7), sk_clone of the kernel)."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)


class _Kept:
    """Bytes that all pumps of this process keep for their sockets."""

    bytes = 0


def join(
    loop: asyncio.AbstractEventLoop,
    sock: socket.socket,
    channel: Channel,
    ended: Ended,
    *,
    has_spoken: bool = True,
    ahead: int = AHEAD_BYTES,
) -> Callable[[str], None]:
    """Pump until both sides have ended; the socket, a `prepare`d one, and the channel are the pump's own from now on.

    `ended(sent, received, how)` is called once, with the bytes that went out to and came in from the cluster. `has_spoken`: the
    socket's peer mostly has sent something by now. `ahead`: bytes of the cluster's that may be kept for the socket before the channel
    is paused. Returns what resets both ends, for the reason given.
    """
    pump = _Pump(loop, sock, channel, ended, ahead)
    pump.start(has_spoken)
    return pump.reset


class _Pump:
    """A needs.Sink over one socket."""

    __slots__ = (
        "_ahead",
        "_app_ended",
        "_channel",
        "_channel_full",
        "_channel_lost",
        "_channel_paused",
        "_cluster_ended",
        "_done",
        "_ended",
        "_fd",
        "_loop",
        "_pending",
        "_pending_bytes",
        "_reading",
        "_received",
        "_sent",
        "_shut",
        "_sock",
        "_writing",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket, channel: Channel, ended: Ended, ahead: int) -> None:
        self._loop = loop
        self._sock = sock
        self._fd = sock.fileno()
        self._channel = channel
        self._ended = ended
        self._ahead = ahead
        self._pending: deque[memoryview] = deque()
        self._pending_bytes = 0
        self._sent = self._received = 0
        self._reading = self._writing = False
        self._channel_full = self._channel_paused = False
        self._app_ended = self._cluster_ended = self._shut = False
        self._channel_lost = self._done = False

    def start(self, has_spoken: bool) -> None:
        self._channel.attach(self)
        if not self._done:
            if has_spoken:
                self._readable()  # a turn of the loop less
            self._watch()

    def reset(self, why: str) -> None:
        if self._done:
            return
        if not self._channel_lost:
            self._channel_lost = True
            self._channel.abort()
        self._finish(f"RESET {why}")

    # The app's side

    def _readable(self) -> None:
        try:
            size = self._sock.recv_into(_buffer if self._ahead or _Kept.bytes < _MUCH_KEPT_BYTES else _small_buffer)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:  # ECONNRESET, or a timeout of the kernel's
            self._app_reset()
            return
        if size:
            self._sent += size
            self._channel.write(_buffer[:size])  # which copies what it cannot send at once
            if not self._done and self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self._app_reset()
            return
        self._app_ended = True
        self._watch()
        if self._shut:
            self._end_if_both()  # the channel's close says both at once
        else:
            self._channel.write_eof()

    def _writable(self) -> None:
        try:
            size = self._sock.sendmsg([self._pending[at] for at in range(min(_MAX_PIECES, len(self._pending)))])
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._app_reset()
            return
        self._pending_bytes -= size
        _Kept.bytes -= size
        while size:
            first = self._pending[0]
            if size < len(first):
                self._pending[0] = first[size:]
                break
            size -= len(first)
            self._pending.popleft()
        if self._channel_paused and self._pending_bytes <= min(_LOW_BYTES, self._ahead) and not self._channel_lost:
            self._channel_paused = False
            self._channel.resume_reading()
        if not self._pending:
            self._all_sent()

    def _all_sent(self) -> None:
        if self._done:
            return
        if self._channel_lost:
            self._finish("CLOSED", orderly=True)
            return
        if self._cluster_ended and not self._shut:
            self._shut = True
            try:
                self._sock.shutdown(socket.SHUT_WR)
            except OSError:  # ENOTCONN: the app has reset the connection
                self._app_reset()
                return
        self._watch()
        self._end_if_both()

    def _app_reset(self) -> None:
        self.reset("by the app")

    # The cluster's side (needs.Sink)

    def on_data(self, data: bytes | memoryview) -> None:
        if self._done or not data:
            return
        self._received += len(data)
        taken = 0
        if not self._pending:
            try:
                taken = self._sock.send(data)
            except (BlockingIOError, InterruptedError):
                pass
            except OSError:
                self._app_reset()
                return
        if taken == len(data):
            return
        rest = memoryview(bytes(memoryview(data)[taken:]))  # the buffer is the caller's
        self._pending.append(rest)
        self._pending_bytes += len(rest)
        _Kept.bytes += len(rest)
        if self._pending_bytes > self._ahead and not self._channel_paused:
            self._channel_paused = True
            self._channel.pause_reading()
        self._watch()

    def on_eof(self) -> None:
        if self._done:
            return
        self._cluster_ended = True
        if not self._pending:
            self._all_sent()

    def on_lost(self, reset: bool) -> None:
        if self._done or self._channel_lost:
            return
        self._channel_lost = True
        if reset:
            self._finish("RESET by the cluster")
        elif not self._pending:
            self._finish("CLOSED", orderly=True)
        else:
            self._watch()

    def on_writable(self, writable: bool) -> None:
        self._channel_full = not writable
        if not self._done:
            self._watch()

    # Both

    def _end_if_both(self) -> None:
        if self._app_ended and self._shut and not self._done:
            if not self._channel_lost:
                self._channel_lost = True
                self._channel.close()
            self._finish("CLOSED", orderly=True)

    def _watch(self) -> None:
        """Have the loop watch for what can be done now."""
        if self._done:
            return
        reading = not (self._app_ended or self._channel_full or self._channel_lost)
        if reading != self._reading:
            self._reading = reading
            if reading:
                self._loop.add_reader(self._fd, self._readable)
            else:
                self._loop.remove_reader(self._fd)
        writing = bool(self._pending)
        if writing != self._writing:
            self._writing = writing
            if writing:
                self._loop.add_writer(self._fd, self._writable)
            else:
                self._loop.remove_writer(self._fd)

    def _finish(self, how: str, *, orderly: bool = False) -> None:
        if self._done:
            return
        self._done = True
        if self._reading:
            self._loop.remove_reader(self._fd)
        if self._writing:
            self._loop.remove_writer(self._fd)
        self._pending.clear()
        _Kept.bytes -= self._pending_bytes
        if orderly:
            with contextlib.suppress(OSError):  # reset already
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self._sock.close()
        self._ended(self._sent, self._received, how)

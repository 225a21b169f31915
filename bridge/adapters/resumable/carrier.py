"""One carrier: a socket, or the read and write ends of two pipes, without blocking and without copies.

Theory of operation: readv(2) into one buffer that is used again, writev(2) straight from the chunks of the stream; both work
on sockets and pipes alike. What was read is consumed during `on_bytes`. A carrier that ends in order shuts its writing
side and reads on until the far end does the same, because closing a TCP socket with unread bytes resets it and destroys
what is still under way.

A reset may come with bytes before it. uvloop calls back once for both and then watches that one no more (libuv, uv__poll_io), so each
read of a socket asks for its error too.

Limits: one read of 1 MiB per wake-up, so that other flows get their turn; an ending carrier is closed after 2 s anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import stat
import threading
from collections.abc import Callable, Sequence

from bridge.protocol.stream import Buffer

READ_BYTES = 1 << 20
LINGER_S = 2.0
_LAST_READS = 16
_PIPE_BYTES = 1 << 20
# Past what is under way the kernel would queue 4 MiB more (tcp_wmem, tcp(7)), and SSH's small packets behind it. Half as
# much costs 10 % more CPU time on bulk, measured on loopback; this much costs none.
_UNSENT_BYTES = 512 << 10

_thread = threading.local()  # `view`: one buffer for all carriers of the thread's loop, for what was read is consumed at once


class Carrier:
    """Owns its descriptors: one of a socket, or a read end and a write end."""

    def __init__(self, loop: asyncio.AbstractEventLoop, fds: Sequence[int | socket.socket]) -> None:
        numbers = [fd.detach() if isinstance(fd, socket.socket) else fd for fd in fds]
        if len(numbers) not in (1, 2):
            raise ValueError(f"a carrier has one or two descriptors, not {len(numbers)}")
        self._loop = loop
        self._read_fd, self._write_fd = numbers[0], numbers[-1]
        self._view = _buffer()
        self._on_bytes: Callable[[memoryview], None] = _ignore
        self._on_lost: Callable[[str], None] = _ignore
        self._on_room: Callable[[], None] = _nothing
        self._pending: list[Buffer] = []
        self._reading = self._failed = self._ending = self._closed = False
        self._linger: asyncio.TimerHandle | None = None
        self._sock: socket.socket | None = None  # of which `_read_fd` is the descriptor
        for fd in set(numbers):
            os.set_blocking(fd, False)
        self._tune()

    def start(self, on_bytes: Callable[[memoryview], None], on_lost: Callable[[str], None], on_room: Callable[[], None]) -> None:
        """Set or replace the owner. `on_lost` comes at most once, and nothing after it or after `close`."""
        self._on_bytes, self._on_lost, self._on_room = on_bytes, on_lost, on_room

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def busy(self) -> bool:
        """The far end takes no more for now; `on_room` tells when it does."""
        return bool(self._pending) or self._failed

    def read(self, wanted: bool) -> None:
        """Begin or stop reading."""
        if wanted == self._reading or self._closed:
            return
        self._reading = wanted
        if wanted:
            try:
                self._loop.add_reader(self._read_fd, self._readable)
            except OSError as exc:
                self._reading = False
                self._loop.call_soon(self._lost, _words(exc))
        else:
            self._loop.remove_reader(self._read_fd)

    def write(self, buffers: list[Buffer]) -> None:
        """Send these; not while `busy`. The buffers must not change until `on_room`, and may be kept by reference."""
        if self._closed:
            return
        self._pending = buffers
        self._send()
        if self._pending:
            self._loop.add_writer(self._write_fd, self._writable)

    def finish(self) -> None:
        """End in order: what was written still goes out, nothing is delivered any more."""
        if self._closed or self._ending:
            return
        self._ending = True
        self._on_bytes, self._on_lost, self._on_room = _ignore, _ignore, _nothing
        self._linger = self._loop.call_later(LINGER_S, self.close)
        if not self._pending:
            self._shut()
        self.read(True)

    def close(self) -> None:
        """Close at once."""
        if self._closed:
            return
        self.read(False)
        self._closed = True
        if self._pending:
            self._loop.remove_writer(self._write_fd)
            self._pending = []
        if self._linger is not None:
            self._linger.cancel()
        if self._sock is not None:
            self._sock.detach()
        for fd in {self._read_fd, self._write_fd} - {-1}:
            os.close(fd)

    def _readable(self) -> bool:
        """Whether there was something, and there may be more."""
        try:
            size = os.readv(self._read_fd, [self._view])
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as exc:
            self._lost(_words(exc))
            return False
        if not size:
            self._lost("the far end closed the carrier")
            return False
        self._on_bytes(self._view[:size])
        if self._sock is not None and not self._closed and (code := self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
            self._failing(_words(OSError(code, os.strerror(code))))
        return not self._closed

    def _failing(self, why: str) -> None:
        """The far end is gone. What it said before, perhaps its CLOSE, can still be read."""
        for _ in range(_LAST_READS):
            if self._closed or not self._reading or not self._readable():
                break
        self._lost(why)

    def _send(self) -> None:
        try:
            sent = os.writev(self._write_fd, self._pending)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as exc:
            self._pending, self._failed = [], True
            self._loop.call_soon(self._failing, _words(exc))
            return
        self._pending = _after(self._pending, sent)

    def _writable(self) -> None:
        self._send()
        if self._pending:
            return
        self._loop.remove_writer(self._write_fd)
        if self._ending:
            self._shut()
        else:
            self._on_room()

    def _shut(self) -> None:
        if self._write_fd != self._read_fd:
            os.close(self._write_fd)
            self._write_fd = -1
            return
        assert self._sock is not None, "one descriptor for both ways is a socket's"
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def _lost(self, why: str) -> None:
        if self._closed:
            return
        on_lost = self._on_lost
        self.close()
        on_lost(why)

    def _tune(self) -> None:
        for fd in {self._read_fd, self._write_fd}:
            mode = os.fstat(fd).st_mode
            if stat.S_ISFIFO(mode):
                with contextlib.suppress(OSError):
                    fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
            elif stat.S_ISSOCK(mode):
                sock = socket.socket(fileno=fd)
                if sock.family in (socket.AF_INET, socket.AF_INET6):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
                if fd == self._read_fd:
                    self._sock = sock
                else:
                    sock.detach()


def _buffer() -> memoryview:
    view: memoryview | None = getattr(_thread, "view", None)
    if view is None:
        view = _thread.view = memoryview(bytearray(READ_BYTES))
    return view


def _after(buffers: list[Buffer], sent: int) -> list[Buffer]:
    """What is left once `sent` bytes are gone."""
    for index, buffer in enumerate(buffers):
        if sent < len(buffer):
            return [memoryview(buffer)[sent:], *buffers[index + 1 :]]
        sent -= len(buffer)
    return []


def _words(exc: OSError) -> str:
    return f"the carrier failed: {(exc.strerror or str(exc)).lower()}"


def _ignore(_: object) -> None:
    pass


def _nothing() -> None:
    pass

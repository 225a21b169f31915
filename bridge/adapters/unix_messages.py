"""Messages with descriptors beside them, on one connected Unix socket of type SOCK_SEQPACKET (unix(7)).

Theory of operation: a packet is a message. What the socket does not take at once is kept and goes when it is writable again; the
order holds. A descriptor travels with its message: it is the sender's to close from `send` on, the receiver's from `on_message` on.

Limits: MOST_KEPT messages kept; a peer that reads none of so many is as good as gone. One descriptor a message.
"""

from __future__ import annotations

import array
import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable

MOST_KEPT = 1 << 16
_PER_WAKE = 64
_ONE_FD = socket.CMSG_SPACE(array.array("i").itemsize)


class UnixMessages:
    """`start()` begins to read; `on_lost(why)` comes once, not after `close()`. The socket is this object's own.

    `takes_fds`: whether a message may bring a descriptor. Where none may the kernel closes what a peer sends all the same.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_message: Callable[[bytes, int | None], None],
        on_lost: Callable[[str], None],
        *,
        most_bytes: int,
        takes_fds: bool = False,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._on_message = on_message
        self._on_lost = on_lost
        self._most_bytes = most_bytes
        self._room = _ONE_FD if takes_fds else 0
        self._kept: deque[tuple[bytes, int | None]] = deque()
        self._over = False
        sock.setblocking(False)

    def start(self) -> None:
        if self._over:  # what was sent before found nobody there
            return
        self._loop.add_reader(self._sock.fileno(), self._readable)

    def send(self, message: bytes, fd: int | None = None) -> None:
        """`fd` is this object's from now on."""
        if self._over:
            _close(fd)
            return
        if not self._kept and self._sent(message, fd):
            return
        if self._over:
            _close(fd)
        elif len(self._kept) >= MOST_KEPT:
            _close(fd)
            self._lose("it does not read")
        else:
            if not self._kept:
                self._loop.add_writer(self._sock.fileno(), self._writable)
            self._kept.append((message, fd))

    def close(self) -> None:
        if self._over:
            return
        self._over = True
        self._loop.remove_reader(self._sock.fileno())
        if self._kept:
            self._loop.remove_writer(self._sock.fileno())
        for _, fd in self._kept:
            _close(fd)
        self._kept.clear()
        self._sock.close()

    def _lose(self, why: str) -> None:
        if not self._over:
            self.close()
            self._on_lost(why)

    def _sent(self, message: bytes, fd: int | None) -> bool:
        """Whether it went; a fault ends the connection."""
        try:
            if fd is None:
                self._sock.send(message)
            else:
                self._sock.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", (fd,)))])
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as exc:
            self._lose(exc.strerror or str(exc))
            return False
        _close(fd)
        return True

    def _writable(self) -> None:
        while self._kept and self._sent(*self._kept[0]):
            self._kept.popleft()
        if not self._kept and not self._over:
            self._loop.remove_writer(self._sock.fileno())

    def _readable(self) -> None:
        for _ in range(_PER_WAKE):
            if self._over:
                return
            try:
                if self._room:
                    message, ancillary, _, _ = self._sock.recvmsg(self._most_bytes, self._room, socket.MSG_CMSG_CLOEXEC)
                    fd = _descriptor(ancillary)
                else:
                    message, fd = self._sock.recv(self._most_bytes), None
            except (BlockingIOError, InterruptedError):
                return
            except OSError as exc:
                self._lose(exc.strerror or str(exc))
                return
            if not message:
                _close(fd)
                self._lose("it has ended")
                return
            self._on_message(message, fd)


def _descriptor(ancillary: list[tuple[int, int, bytes]]) -> int | None:
    """The first one that came; there is room for no second, but for padding."""
    fds = array.array("i")
    for level, kind, raw in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(raw[: len(raw) - len(raw) % fds.itemsize])
    for extra in fds[1:]:
        os.close(extra)
    return fds[0] if fds else None


def _close(fd: int | None) -> None:
    if fd is not None:
        os.close(fd)

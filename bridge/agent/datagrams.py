"""UDP of the app at the agent: a plain socket per association, in the target's netns.

Theory of operation: an association is one socket of the app's; here it gets one unconnected socket per address family, so that
it can speak with many peers and hear whom it will. IP_RECVERR (ip(7)) keeps ICMP errors in the socket's error queue together with
the destination that caused them: they go back as Unreachable, and the app's connected socket sees ECONNREFUSED as it would there.

Limits: 4,096 associations, the one longest idle goes first; one that is idle for 5 minutes is forgotten (RFC 4787 asks for 2).
Datagrams are dropped where a network would drop them.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections import OrderedDict
from collections.abc import Callable

from bridge.protocol import udp

MOST_ASSOCIATIONS = 4096
IDLE_S = 300.0
_SWEEP_S = 30.0
_PER_WAKE = 64
_MAX_DATAGRAM = 65535
_SOL_IPV6, _IP_RECVERR, _IPV6_RECVERR = 41, 11, 25  # linux/in.h, linux/in6.h
_ERROR = struct.Struct("=IBBBxII")  # sock_extended_err, linux/errqueue.h


class Associations:
    """`send` carries messages to the bridge."""

    def __init__(self, loop: asyncio.AbstractEventLoop, send: Callable[[udp.Message], None]) -> None:
        self._loop = loop
        self._send = send
        self._open: OrderedDict[int, _Association] = OrderedDict()
        self._sweeper: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._open)

    def on_datagram(self, message: udp.Datagram) -> None:
        association = self._open.get(message.association)
        if association is None:
            association = self._open[message.association] = _Association(self._loop, self._send, message.association)
            if len(self._open) > MOST_ASSOCIATIONS:
                self._forget(next(iter(self._open)))
            if self._sweeper is None:
                self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep)
        else:
            self._open.move_to_end(message.association)
        association.send(message)

    def on_forget(self, message: udp.Forget) -> None:
        association = self._open.pop(message.association, None)
        if association is not None:
            association.close()

    def close(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for association in self._open.values():
            association.close()
        self._open.clear()

    def _forget(self, number: int) -> None:
        self._open.pop(number).close()
        self._send(udp.Forget(number))

    def _sweep(self) -> None:
        before = self._loop.time() - IDLE_S
        for number in [number for number, association in self._open.items() if association.used_at < before]:
            self._forget(number)
        self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep) if self._open else None


class _Association:
    def __init__(self, loop: asyncio.AbstractEventLoop, send: Callable[[udp.Message], None], number: int) -> None:
        self._loop = loop
        self._send_message = send
        self._number = number
        self._sockets: dict[int, socket.socket] = {}
        self.used_at = loop.time()

    def send(self, message: udp.Datagram) -> None:
        self.used_at = self._loop.time()
        family = socket.AF_INET6 if ":" in message.address else socket.AF_INET
        try:
            sock = self._sockets.get(family) or self._make(family)
        except OSError as exc:
            self._unreachable(message.address, message.port, exc.errno)
            return
        for _ in range(2):
            try:
                sock.sendto(message.data, (message.address, message.port))
                return
            except BlockingIOError:
                return  # the device's queue is full
            except OSError as exc:
                code = exc.errno
                if not self._read_errors(sock):  # else it was an older datagram's error: try once more
                    break
        self._unreachable(message.address, message.port, code)

    def close(self) -> None:
        for sock in self._sockets.values():
            self._loop.remove_reader(sock.fileno())
            sock.close()
        self._sockets.clear()

    def _make(self, family: int) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        if family == socket.AF_INET6:
            sock.setsockopt(_SOL_IPV6, _IPV6_RECVERR, 1)
        else:
            sock.setsockopt(socket.SOL_IP, _IP_RECVERR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)  # the target may, if its kernel lets it
        self._sockets[family] = sock
        self._loop.add_reader(sock.fileno(), self._readable, sock)
        return sock

    def _readable(self, sock: socket.socket) -> None:
        errors = 0
        for _ in range(_PER_WAKE):
            try:
                data, place = sock.recvfrom(_MAX_DATAGRAM)
            except BlockingIOError:
                errors += self._read_errors(sock)
                break
            except OSError:
                errors += 1 + self._read_errors(sock)
                continue
            self.used_at = self._loop.time()
            self._send_message(udp.Datagram(self._number, place[0].partition("%")[0], place[1], data))

        else:
            errors += self._read_errors(sock)
        if errors:  # uvloop watches no more what had one (libuv, uv__poll_io)
            self._loop.call_soon(self._watch_again, sock)

    def _watch_again(self, sock: socket.socket) -> None:
        if sock in self._sockets.values():
            self._loop.remove_reader(sock.fileno())
            self._loop.add_reader(sock.fileno(), self._readable, sock)

    def _read_errors(self, sock: socket.socket) -> int:
        """Tell the bridge of what the error queue holds; how many there were."""
        for count in range(_PER_WAKE):
            try:
                _, ancillary, _, place = sock.recvmsg(0, 512, socket.MSG_ERRQUEUE)
            except OSError:
                return count
            for level, kind, data in ancillary:
                if (level, kind) in ((socket.SOL_IP, _IP_RECVERR), (_SOL_IPV6, _IPV6_RECVERR)) and len(data) >= _ERROR.size and place:
                    code: int = _ERROR.unpack_from(data)[0]
                    self._unreachable(place[0].partition("%")[0], place[1], code)
        return _PER_WAKE

    def _unreachable(self, address: str, port: int, code: int | None) -> None:
        self._send_message(udp.Unreachable(self._number, address, port, errno.errorcode.get(code or 0, "EHOSTUNREACH")))

"""The sockets on which the bridge receives what netfilter redirects to it, on the loopback of the session's netns.

SO_ORIGINAL_DST (netfilter's conntrack) tells which address the app meant. Both families listen on the same port number.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from dataclasses import dataclass

from bridge.errors import HostError

_SO_ORIGINAL_DST = 80  # linux/netfilter_ipv4.h; IP6T_SO_ORIGINAL_DST has the same number
_SOL_IPV6 = 41
_BACKLOG = 4096
_TRIES = 32


@dataclass(frozen=True, slots=True)
class Arrival:
    """A connection of the app's that was redirected here."""

    sock: socket.socket
    app_addr: str
    app_port: int
    address: str
    port: int


class Listener:
    """A TCP listener on 127.0.0.1 and ::1 with one port number. `open()` binds. What it accepts has its options (prepare) and its mark."""

    def __init__(self) -> None:
        self.port = 0
        self.sockets: list[socket.socket] = []

    def open(self, mark: int) -> None:
        self.sockets, self.port = _pair(socket.SOCK_STREAM)
        for sock in self.sockets:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            sock.listen(_BACKLOG)

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()
        self.sockets = []


def arrival(sock: socket.socket, app: tuple[str, int]) -> Arrival | None:
    """What a connection from `app`, accepted from a Listener, was meant for; None, and the connection reset, if nobody redirected it."""
    try:
        if sock.family == socket.AF_INET:
            raw = sock.getsockopt(socket.SOL_IP, _SO_ORIGINAL_DST, 16)
            return Arrival(sock, app[0], app[1], socket.inet_ntop(socket.AF_INET, raw[4:8]), int.from_bytes(raw[2:4], "big"))
        raw = sock.getsockopt(_SOL_IPV6, _SO_ORIGINAL_DST, 28)
        return Arrival(sock, app[0], app[1], socket.inet_ntop(socket.AF_INET6, raw[8:24]), int.from_bytes(raw[2:4], "big"))
    except OSError:  # reset meanwhile, or never redirected
        reset(sock)
        return None


def reset(sock: socket.socket) -> None:
    """Close with a TCP reset (SO_LINGER of 0 s, socket(7))."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@dataclass(frozen=True, slots=True)
class ResolverSockets:
    """The sockets of one nameserver that the app may ask; all of them have the port `port`."""

    nameserver: str
    port: int
    udp: tuple[socket.socket, ...]
    tcp: tuple[socket.socket, ...]


def resolver_sockets(nameserver: str) -> ResolverSockets:
    """UDP and TCP sockets on loopback with one port number, for queries to `nameserver`."""
    for _ in range(_TRIES):
        tcp, port = _pair(socket.SOCK_STREAM)
        try:
            udp, _ = _pair(socket.SOCK_DGRAM, port)
        except OSError:
            for sock in tcp:
                sock.close()
            continue
        for sock in tcp:
            sock.listen(64)
        for sock in udp:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        return ResolverSockets(nameserver, port, tuple(udp), tuple(tcp))
    raise HostError("no free port for the resolver in the session's network namespace")


def _pair(kind: int, port: int = 0) -> tuple[list[socket.socket], int]:
    """Sockets bound to 127.0.0.1 and ::1 with one port; the latter is left out where there is no IPv6."""
    for _ in range(_TRIES):
        first = socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK)
        try:
            first.bind(("127.0.0.1", port))
        except OSError:
            first.close()
            raise
        chosen = int(first.getsockname()[1])
        try:
            second = socket.socket(socket.AF_INET6, kind | socket.SOCK_NONBLOCK)
        except OSError:
            return [first], chosen
        try:
            second.setsockopt(_SOL_IPV6, socket.IPV6_V6ONLY, 1)
            second.bind(("::1", chosen))
        except OSError as exc:
            second.close()
            if exc.errno == errno.EADDRNOTAVAIL:
                return [first], chosen
            first.close()
            if port:
                raise
            continue
        return [first, second], chosen
    raise HostError("no free port in the session's network namespace")

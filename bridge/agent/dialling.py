"""Outgoing TCP at the agent: dial from the target's own netns, then pump.

Theory of operation: one non-blocking connect(2) per flow, watched by the loop without a task of its own; its errno is the answer.
The bytes are engine/relay.py's, as on the bridge's side. What is dialled is an address; a name (forward takes one) is looked up
first, in a thread, by the target's own resolver, and its addresses are tried in turn.

    OPENING --connected--> accept, relay        OPENING --errno--> refuse        OPENING --link lost--> closed

Limits: 4,096 flows, being dialled or open; past that ENOBUFS. A dial takes as long as the kernel tries (127 s).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from typing import Any, Protocol

from bridge.engine.needs import Channel
from bridge.engine.relay import AHEAD_BYTES, join, prepare

log = logging.getLogger(__name__)

MOST_FLOWS = 4096
_LOOKUPS = 32


class Asked(Channel, Protocol):
    """A channel whose opening waits for the dial: one of the link's, or one end of a handed flow."""

    def accept(self) -> None: ...
    def refuse(self, errno_name: str) -> None: ...


class Dialler:
    """Serves one agent; `on_change()` is called when `flows` became, or ceased to be, 0."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_change: Callable[[], None] = lambda: None) -> None:
        self.flows = 0
        self.ever = 0
        self._loop = loop
        self._on_change = on_change
        self._lookups = 0

    def dial(self, channel: Asked, address: str, port: int, ahead: int = AHEAD_BYTES) -> None:
        """Accept or refuse `channel` once it is known. `ahead`: as engine/relay.py's `join` has it."""
        if self.flows >= MOST_FLOWS:
            channel.refuse("ENOBUFS")
            return
        self.flows += 1
        self.ever += 1
        if self.flows == 1:
            self._on_change()
        family = _family(address)
        if family is not None:
            _Dial(self, self._loop, channel, [(family, (address, port))], ahead).start()
        else:
            self._look_up(channel, address, port, ahead)

    def ended(self) -> None:
        self.flows -= 1
        if not self.flows:
            self._on_change()

    def _look_up(self, channel: Asked, name: str, port: int, ahead: int) -> None:
        if self._lookups >= _LOOKUPS:
            self.ended()
            channel.refuse("EAGAIN")
            return
        self._lookups += 1
        found = asyncio.ensure_future(self._loop.getaddrinfo(name, port, type=socket.SOCK_STREAM))

        def done(answer: asyncio.Future[Any]) -> None:
            self._lookups -= 1
            try:
                places = [(family, (sockaddr[0], port)) for family, _, _, _, sockaddr in answer.result()]
            except (OSError, ValueError, asyncio.CancelledError):  # ValueError: what is no name, in any alphabet
                places = []
            if places:
                _Dial(self, self._loop, channel, places, ahead).start()
            else:
                self.ended()
                channel.refuse("EHOSTUNREACH")

        found.add_done_callback(done)


class _Dial:
    """One flow being opened. Until then it is the channel's sink, to hear when the link is lost meanwhile."""

    def __init__(
        self,
        dialler: Dialler,
        loop: asyncio.AbstractEventLoop,
        channel: Asked,
        places: list[tuple[int, tuple[str, int]]],
        ahead: int,
    ) -> None:
        self._dialler = dialler
        self._loop = loop
        self._channel = channel
        self._places = places
        self._ahead = ahead
        self._sock: socket.socket | None = None
        self._over = False

    def start(self) -> None:
        self._channel.attach(self)
        if not self._over:
            self._try_next()

    def _try_next(self) -> None:
        family, place = self._places.pop(0)
        try:
            sock = self._sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            prepare(sock)
            code = sock.connect_ex(place)
            if code == errno.EINPROGRESS:  # within one machine the kernel is often done by now: spare the loop a turn
                code = sock.connect_ex(place)
        except OSError as exc:  # EMFILE; an address of a family that the kernel lacks
            code = exc.errno or errno.EINVAL
        if code in (errno.EINPROGRESS, errno.EALREADY):
            assert self._sock is not None
            self._loop.add_writer(self._sock.fileno(), self._connected)
        else:
            self._decided(code)

    def _connected(self) -> None:
        assert self._sock is not None
        self._loop.remove_writer(self._sock.fileno())
        self._decided(self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def _decided(self, code: int) -> None:
        sock, self._sock = self._sock, None
        if code:
            if sock is not None:
                sock.close()
            if self._places:
                self._try_next()
                return
            self._over = True
            self._dialler.ended()
            self._channel.refuse(errno.errorcode.get(code, "EHOSTUNREACH"))
            return
        self._sock = sock  # who hears that it is accepted may end it within that call: `on_lost`
        self._channel.accept()
        if self._over:
            return
        self._over = True
        assert sock is not None
        join(self._loop, sock, self._channel, self._flow_ended, has_spoken=False, ahead=self._ahead)

    def _flow_ended(self, sent: int, received: int, how: str) -> None:
        self._dialler.ended()
        log.debug("x flow: %d bytes from the responder, %d to it, %s", sent, received, how)

    # Sink

    def on_lost(self, reset: bool) -> None:
        if self._over:
            return
        self._over = True
        if self._sock is not None:
            self._loop.remove_writer(self._sock.fileno())
            self._sock.close()
        self._dialler.ended()

    def on_data(self, data: bytes | memoryview) -> None:
        """Nothing comes on a channel that is not open."""

    def on_eof(self) -> None:
        """Nor this."""

    def on_writable(self, writable: bool) -> None:
        """Nor this."""


def _family(address: str) -> int | None:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, address)
        except (OSError, ValueError):  # ValueError: a NUL in it
            continue
        return family
    return None

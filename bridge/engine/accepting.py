"""Accepting connections: a listener's, one after another, in callbacks of the loop.

Theory of operation: one connection a turn of the loop, for there is rarely another, and asking for it costs more than the turn.
Where the kernel can give none (EMFILE, ENFILE, ENOMEM: accept(2)) the listener stays readable, so a loop that asked again at once
would do nothing else until some flow gives its descriptor back. Therefore the listener is left alone for a moment then; who has
connected meanwhile waits in its backlog.

    looking ──readable──> accepted ──> looking          ──no descriptor──> resting ──AGAIN_S──> looking
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)

AGAIN_S = 0.1


class Accepting:
    """From `start` to `stop`, `on_connection(sock, address)` gets each connection of `listener`, non-blocking, as its own.

    The listener, which must be non-blocking, stays the caller's: closed after `stop`.
    """

    def __init__(self, listener: socket.socket, on_connection: Callable[[socket.socket, Any], object]) -> None:
        self._listener = listener
        self._on_connection = on_connection
        self._loop = asyncio.get_running_loop()
        self._resting: asyncio.TimerHandle | None = None
        self._short = False  # of descriptors: said once, not at each look

    def start(self) -> None:
        self._resting = None
        self._loop.add_reader(self._listener.fileno(), self._accept)

    def stop(self) -> None:
        if self._resting is not None:
            self._resting.cancel()
        self._loop.remove_reader(self._listener.fileno())

    def _accept(self) -> None:
        try:
            sock, address = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):  # gone before it was accepted
            return
        except OSError as exc:
            if not self._short:
                log.warning("! accept: %s; who connects now has to wait", exc.strerror)
            self._short = True
            self._loop.remove_reader(self._listener.fileno())
            self._resting = self._loop.call_later(AGAIN_S, self.start)
            return
        self._short = False
        sock.setblocking(False)
        self._on_connection(sock, address)

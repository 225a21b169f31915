"""The agent as the bridge's side of handing hears it: a connection that is a fake, under a Handing that is real."""

from __future__ import annotations

import os
from collections.abc import Callable

from bridge.protocol import handing as wire


class Peer:
    """A connection to the bridge's socket, from its far end."""

    def __init__(self, on_message: Callable[[bytes, int | None], None], on_lost: Callable[[str], None]) -> None:
        self._on_message = on_message
        self._on_lost = on_lost
        self.started = self.closed = self.breaks = False
        self.heard: list[wire.Message] = []
        self.fds: list[int] = []

    def start(self) -> None:
        self.started = True

    def send(self, message: bytes, fd: int | None = None) -> None:
        if fd is not None and (self.closed or self.breaks):
            os.close(fd)
        elif fd is not None:
            self.fds.append(fd)
        if self.breaks and not self.closed:
            self.end()
        elif not self.closed:
            self.heard.append(wire.decode(message))

    def close(self) -> None:
        self.closed = True

    def say(self, message: wire.Message | bytes) -> None:
        assert self.started
        if not self.closed:  # as adapters/unix_messages.py, which reads no more then
            self._on_message(message if isinstance(message, bytes) else wire.encode(message), None)

    def end(self, why: str = "it has ended") -> None:
        assert not self.closed
        self.closed = True
        self._on_lost(why)

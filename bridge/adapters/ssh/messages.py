"""Framed messages on a subsystem channel: control, datagrams, the secret. One message is one frame (protocol/frames.py)."""

from __future__ import annotations

from collections.abc import Callable

from bridge.adapters.ssh.channel import Channel
from bridge.errors import RemoteProtocolError
from bridge.protocol import frames

_SPILL_BYTES = 1 << 20


class Messages:
    """`on_body` gets each frame's body; `on_lost` comes once. A frame that breaks the rules ends the whole connection."""

    def __init__(self, channel: Channel, max_bytes: int, on_body: Callable[[bytes], None], on_lost: Callable[[], None]) -> None:
        self._channel = channel
        self._reader = frames.FrameReader(max_bytes)
        self._on_body = on_body
        self._on_lost = on_lost
        self.lost = False
        channel.attach(self)

    def send(self, body: bytes) -> None:
        self._channel.write(frames.encode(body))

    def send_or_drop(self, body: bytes) -> bool:
        """For datagrams: False when so much waits already that a network would drop it."""
        if self._channel.waiting_bytes > _SPILL_BYTES:
            return False
        self._channel.write(frames.encode(body))
        return True

    def end(self) -> None:
        """Close once all that was sent has gone out; the far side hears its end."""
        self.lost = True
        self._channel.close()
        self._on_lost()

    def close(self) -> None:
        self.lost = True
        self._channel.abort()

    # Sink

    def on_data(self, data: bytes | memoryview) -> None:
        try:
            for body in self._reader.feed(bytes(data)):
                self._on_body(body)
        except RemoteProtocolError as exc:
            self._channel.fail(exc.message)

    def on_eof(self) -> None:
        self._channel.abort()
        self.on_lost(False)

    def on_lost(self, reset: bool) -> None:
        if not self.lost:
            self.lost = True
            self._on_lost()

    def on_writable(self, writable: bool) -> None:
        """Messages are few or may be dropped: nothing to pause."""

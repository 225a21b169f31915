"""Two channels that are each other's far end, within one process: what is written to one comes out of the other, at once.

Theory of operation: a call passes through to the other end's sink, so nothing is copied and nothing waits. What comes before that
sink is attached, or while it has paused its end, is kept, and the writer hears that its channel is full, as over any other.

    one.write(data) ──> other's sink.on_data(data)          other.pause_reading() ──> one's sink.on_writable(False)

Limits: a writer that goes on although its channel is full is kept without a bound: engine/relay.py, the one there is, does not.
"""

from __future__ import annotations

from collections import deque

from bridge.engine.needs import Sink

KEPT_BYTES = 256 << 10  # from so much on a channel without a sink is full


class ChannelEnd:
    """Implements needs.Channel, once `joined` to another."""

    __slots__ = ("_eof", "_kept", "_kept_bytes", "_lost", "_other", "_over", "_paused", "_sink", "_stuffed")

    def __init__(self) -> None:
        self._other: ChannelEnd = self
        self._sink: Sink | None = None
        self._kept: deque[bytes] = deque()
        self._kept_bytes = 0
        self._eof = False  # it came, and is not told yet
        self._lost: bool | None = None  # the same of the end: whether by a reset
        self._paused = False
        self._stuffed = False  # the other end's writer has been told to wait
        self._over = False  # nothing is told any more

    def joined(self, other: ChannelEnd) -> None:
        self._other = other
        other._other = self

    # needs.Channel

    def attach(self, sink: Sink) -> None:
        self._sink = sink
        if self._other._stuffed:
            sink.on_writable(False)
        self._flush()

    def write(self, data: bytes | memoryview) -> None:
        self._other._on_data(data)

    def write_eof(self) -> None:
        self._other._on_eof()

    def pause_reading(self) -> None:
        self._paused = True
        self._look()

    def resume_reading(self) -> None:
        self._paused = False
        self._flush()

    def close(self) -> None:
        self._end(reset=False)

    def abort(self) -> None:
        self._end(reset=True)

    # what the other end does

    def _end(self, *, reset: bool) -> None:
        if not self._over:
            self._over = True
            self._kept.clear()
            self._other._on_end(reset)

    def _on_data(self, data: bytes | memoryview) -> None:
        if self._over:
            return
        if self._sink is not None and not self._paused and not self._kept:
            self._sink.on_data(data)
            return
        self._kept.append(bytes(data))
        self._kept_bytes += len(data)
        self._look()

    def _on_eof(self) -> None:
        self._eof = True
        self._flush()

    def _on_end(self, reset: bool) -> None:
        self._lost = reset
        if reset:
            self._eof = False
            self._kept.clear()
        self._flush()

    def _flush(self) -> None:
        sink = self._sink
        if sink is None:
            self._look()
            return
        while self._kept and not self._paused and not self._over:
            piece = self._kept.popleft()
            self._kept_bytes -= len(piece)
            sink.on_data(piece)
        if not self._kept and self._eof and not self._over:
            self._eof = False
            sink.on_eof()
        if not self._kept and self._lost is not None and not self._over:
            self._over = True
            sink.on_lost(self._lost)
        self._look()

    def _look(self) -> None:
        stuffed = self._paused or self._kept_bytes >= KEPT_BYTES
        if stuffed != self._stuffed:
            self._stuffed = stuffed
            writer = self._other._sink
            if writer is not None and not self._other._over:
                writer.on_writable(not stuffed)

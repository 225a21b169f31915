"""ResumableTransport: one end of a resumable stream, as an asyncio transport for any protocol.

Theory of operation: the protocol is started once and lives as long as the stream. Carriers are given by `carry`; when one is
lost, `on_carrier_lost` tells its owner, the protocol hears nothing, and what it writes waits. Writes of one loop iteration
go out as one frame, but for the first after a pause: that one goes at once.

Limits: `pause_writing` at 512 KiB unsent or 16 MiB unacknowledged; a protocol that writes on regardless is not cut off.
After `pause_reading` what one read of the carrier brought (1 MiB at most) is still delivered; a protocol that pauses for
more than 10 s looks dead to the far end.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from bridge.adapters.resumable.carrier import Carrier
from bridge.errors import BridgeError, LinkLost, LocalProtocolError, RemoteProtocolError
from bridge.protocol.stream import ACK_S, REPLAY_BYTES, Buffer, State, Stream, StreamRefused
from bridge.protocol.stream_frames import ID_SIZE, NONCE_SIZE, Kind, Reader

_HIGH_BYTES, _LOW_BYTES = 512 << 10, 128 << 10  # little queued here: a keystroke waits behind all of it
_FLUSH_BYTES = 256 << 10  # a burst need not wait for the end of the loop iteration
_LATER_S = 0.01
_QUIET_S = 0.0003  # after so long without a write the next one goes out at once: 40 µs less on an idle link's round trip


class ResumableTransport(asyncio.Transport):
    """Make the client's end with `client()`; the server's ends come from ResumableServer."""

    def __init__(self, loop: asyncio.AbstractEventLoop, stream: Stream) -> None:
        super().__init__()
        self.stream = stream
        self._loop = loop
        self._protocol: asyncio.Protocol | None = None
        self._views = False
        self._early: list[bytes] = []
        self._carrier: Carrier | None = None
        self._reader = Reader()
        self._on_carrier_lost: Callable[[str], None] = _ignore
        self._on_carried: Callable[[], None] = _nothing
        self._on_ended: Callable[[], None] = _nothing
        self._paused_reading = self._paused_writing = self._flush_soon = False
        self._closing = self._ended = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = self._sent_at = 0.0
        self._lazy = False  # all that is unsent may wait for `_lazy_timer`
        self._lazy_timer: asyncio.TimerHandle | None = None

    @classmethod
    def client(cls, loop: asyncio.AbstractEventLoop, *, replay_bytes: int = REPLAY_BYTES) -> ResumableTransport:
        """A new stream, still without a carrier."""
        return cls(loop, Stream(os.urandom(ID_SIZE), client=True, replay_bytes=replay_bytes))

    @property
    def attached(self) -> bool:
        """Bytes flow: there is a carrier, and a resumption on it is over."""
        return self._carrier is not None and self.stream.state is State.CARRIED

    @property
    def resumable(self) -> bool:
        """A lost carrier can be replaced: the secret is known."""
        return self.stream.resumable

    @property
    def expecting(self) -> bool:
        return self.stream.expecting

    @expecting.setter
    def expecting(self, value: bool) -> None:
        """The owner waits for the far end: a dead carrier is noticed within 15 s although nothing is sent."""
        if value != self.stream.expecting:
            self.stream.expecting = value
            self._arm(self._loop.time())

    def on_carrier_lost(self, callback: Callable[[str], None]) -> None:
        """`callback(why)`: the carrier is gone and the stream waits for another."""
        self._on_carrier_lost = callback

    def on_carried(self, callback: Callable[[], None]) -> None:
        """`callback()`: a carrier carries the stream (for a resumption: both proofs were right)."""
        self._on_carried = callback

    def on_ended(self, callback: Callable[[], None]) -> None:
        """`callback()`: the stream is over; its protocol hears `connection_lost`."""
        self._on_ended = callback

    def set_secret(self, secret: bytes) -> None:
        """The 32 bytes agreed inside SSH. From now on the stream can be resumed."""
        self.stream.set_secret(secret)

    def start(self, protocol: asyncio.Protocol) -> None:
        """Give the stream its protocol. One that has a true `takes_views` gets memoryviews, valid during the call only, not bytes."""
        self._protocol = protocol
        self._views = bool(getattr(protocol, "takes_views", False))
        protocol.connection_made(self)
        early, self._early = self._early, []
        for data in early:
            protocol.data_received(data)
        if self._carrier is not None and not self._paused_reading:
            self._carrier.read(True)

    def carry(self, *fds: int | socket.socket) -> None:
        """Client: go on over this carrier: a connected stream socket (or its descriptor), or a read end and a write end.

        The descriptors are the transport's from now on, whatever happens. The preamble has been read. An earlier carrier is
        dropped. Where the stream cannot be resumed it ends, with StreamRefused.
        """
        carrier = Carrier(self._loop, fds)
        if self._ended:
            carrier.close()
            return
        self._drop_carrier()
        try:
            self.stream.attach(os.urandom(NONCE_SIZE), self._loop.time())
        except StreamRefused as exc:
            carrier.close()
            self._end(exc)
            return
        self.adopt(carrier, Reader())
        if self.stream.state is State.CARRIED:
            self._on_carried()

    def adopt(self, carrier: Carrier, reader: Reader) -> None:
        """Use a carrier whose stream this is (ResumableServer calls it after the greeting)."""
        self._drop_carrier()
        self._carrier, self._reader = carrier, reader
        carrier.start(self._on_bytes, self._lost, self._flush)
        carrier.read((self._protocol is not None or self.stream.state is State.RESUMING) and not self._paused_reading)
        self._flush()

    def _on_bytes(self, view: memoryview) -> None:
        self.on_frames(self._reader.feed(view))

    def on_frames(self, frames: Iterator[tuple[Kind, memoryview]]) -> None:
        """The carrier brought these."""
        stream, carrier = self.stream, self._carrier
        now = self._loop.time()
        stream.heard(now)
        try:
            for kind, body in frames:
                state = stream.state
                data = stream.on_frame(kind, body, now)
                if data is not None:
                    self._deliver(data)
                elif stream.state is not state:
                    if stream.state is State.CLOSED:
                        self._end(None)
                        return
                    self._on_carried()
                if self._carrier is not carrier or self._ended:
                    return
        except (RemoteProtocolError, LinkLost) as exc:
            self._end(exc)
            return
        except BaseException:  # the protocol's own fault: the stream cannot go on behind its back
            self._end(LocalProtocolError("the stream's protocol failed"))
            raise
        if stream.urgent or self._paused_writing or (not self._lazy and stream.unsent_bytes):
            self._flush()
        else:
            self._arm(now)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Bytes and bytearrays are kept by reference until the far end has them, and must not change; a view is copied."""
        if self._closing:
            return
        stream = self.stream
        self._lazy = False
        stream.write(bytes(data) if isinstance(data, memoryview) else data)
        if self._carrier is not None and not self._carrier.busy:
            if stream.unsent_bytes >= _FLUSH_BYTES or self._loop.time() - self._sent_at > _QUIET_S:
                self._flush()
            elif not self._flush_soon:
                self._flush_soon = True
                self._loop.call_soon(self._flush_now)
        if not self._paused_writing and (stream.unsent_bytes > _HIGH_BYTES or stream.held_bytes >= stream.replay_bytes):
            self._paused_writing = True
            if self._protocol is not None:
                self._protocol.pause_writing()

    def write_later(self, data: bytes | bytearray) -> None:
        """The same for what nobody waits for: it goes out with the next write, after 10 ms at the latest."""
        if self._closing:
            return
        alone = not self.stream.unsent_bytes
        self.stream.write(data)
        if alone:
            self._lazy = True
            if self._lazy_timer is None:
                self._lazy_timer = self._loop.call_later(_LATER_S, self._flush_lazy)

    def _flush_lazy(self) -> None:
        self._lazy_timer = None
        self._flush()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        for data in list_of_data:
            self.write(data)

    def close(self) -> None:
        """End in order: what was written goes out first. Without a carrier there is nobody to tell, and it ends at once."""
        if self._closing:
            return
        self._closing = True
        if not self.attached:
            self._end(None)
            return
        self.stream.close()
        self._flush()

    def abort(self) -> None:
        """End now. What the carrier takes without waiting still goes out (a last word of SSH's), the rest is lost."""
        self.close()
        self._end(None)

    def is_closing(self) -> bool:
        return self._closing

    def can_write_eof(self) -> bool:
        return False

    def pause_reading(self) -> None:
        self._paused_reading = True
        if self._carrier is not None:
            self._carrier.read(False)

    def resume_reading(self) -> None:
        self._paused_reading = False
        if self._carrier is not None:
            self._carrier.read(True)

    def is_reading(self) -> bool:
        return not self._paused_reading and not self._closing

    def get_write_buffer_size(self) -> int:
        return self.stream.unsent_bytes

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return _LOW_BYTES, _HIGH_BYTES

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self._protocol is not None
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol)
        self._protocol = protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def end(self, exc: BridgeError | None) -> None:
        """The owner gives the stream up."""
        self._end(exc)

    def _deliver(self, data: Buffer) -> None:
        if self._closing:
            return
        if self._protocol is None:
            self._early.append(bytes(data))
        elif self._views:
            self._protocol.data_received(data)  # type: ignore[arg-type]  # asked for by `takes_views`
        else:
            self._protocol.data_received(bytes(data))

    def _flush_now(self) -> None:
        self._flush_soon = False
        self._flush()

    def _flush(self) -> None:
        carrier, stream = self._carrier, self.stream
        if carrier is None:
            return
        self._lazy = False
        now = self._loop.time()
        while not carrier.busy and not carrier.closed:
            buffers = stream.take(now)
            if not buffers:
                break
            self._sent_at = now
            carrier.write(buffers)
            if not stream.unsent_bytes and not stream.urgent:
                break
        if stream.state is State.CLOSED:
            self._end(None)
            return
        if (
            self._paused_writing
            and not self._closing
            and stream.unsent_bytes <= _LOW_BYTES
            and stream.held_bytes <= stream.replay_bytes * 3 // 4
        ):
            self._paused_writing = False
            if self._protocol is not None:
                self._protocol.resume_writing()
        self._arm(now)

    def _arm(self, now: float) -> None:
        """Have `_tick` called in time; a timer that is too early is left as it is."""
        if self._timer is not None and self._timer_at <= now + ACK_S:
            return  # no deadline that arises from now on comes sooner than ACK_S
        at = self.stream.deadline()
        if at is None or self._carrier is None or (self._timer is not None and self._timer_at <= at):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_at(at, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self._carrier is None:
            return
        try:
            self.stream.tick(self._loop.time())
        except LinkLost as exc:
            self._lost(exc.message)
            return
        self._flush()

    def _lost(self, why: str) -> None:
        """The carrier is gone, the stream is not."""
        self._drop_carrier()
        self.stream.detach()
        if self._closing:
            self._end(None)
        elif not self.stream.resumable:
            self._end(LinkLost(why))
        else:
            self._on_carrier_lost(why)

    def _drop_carrier(self) -> None:
        carrier, self._carrier = self._carrier, None
        self._reader = Reader()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if carrier is not None:
            carrier.close()

    def _end(self, exc: BridgeError | None) -> None:
        if self._ended:
            return
        self._ended = self._closing = True
        self.stream.state = State.CLOSED
        carrier, self._carrier = self._carrier, None
        if self._lazy_timer is not None:
            self._lazy_timer.cancel()
        if carrier is not None:
            carrier.finish()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._protocol is not None:
            self._loop.call_soon(self._protocol.connection_lost, exc)
        self._on_ended()


def _ignore(_: object) -> None:
    pass


def _nothing() -> None:
    pass

"""ResumableServer: the agent's end of every carrier, from its first frame on.

Theory of operation: a carrier that says OPEN becomes a new stream, handed to `on_stream`; one that says RESUME proves that it
may, and replaces the carrier of the stream it names. A stream that lost its carrier waits `linger_s` for another; one whose
secret was not agreed yet ends at once.

Limits: 64 streams and 64 carriers in greeting; a greeting takes 10 s at most. The 16 bytes of the preamble are the caller's to write.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable

from bridge.adapters.resumable.carrier import Carrier
from bridge.adapters.resumable.transport import ResumableTransport
from bridge.errors import LinkLost, RemoteProtocolError
from bridge.protocol.stream import GREETING_S, Greeting, Stream, StreamRefused
from bridge.protocol.stream_frames import NONCE_SIZE, Reader

log = logging.getLogger(__name__)

MAX_STREAMS = 64
MAX_GREETINGS = 64


class ResumableServer:
    """`on_stream(transport)` is to `start` the transport's protocol. `linger_s` may be changed at any time."""

    def __init__(
        self,
        on_stream: Callable[[ResumableTransport], None],
        linger_s: float,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.linger_s = linger_s
        self._on_stream = on_stream
        self._loop = loop or asyncio.get_running_loop()
        self._transports: dict[bytes, ResumableTransport] = {}
        self._lingering: dict[bytes, asyncio.TimerHandle] = {}
        self._greetings: set[Carrier] = set()

    @property
    def streams(self) -> list[ResumableTransport]:
        """All that live, with or without a carrier."""
        return list(self._transports.values())

    def accept(self, *fds: int | socket.socket) -> None:
        """A carrier has come: one socket (or its descriptor), or a read end and a write end. They are the server's from now on."""
        carrier = Carrier(self._loop, fds)
        if len(self._greetings) >= MAX_GREETINGS:
            log.warning("! carrier refused: %d others have not said what they carry", len(self._greetings))
            carrier.close()
            return
        self._greetings.add(carrier)
        _Arrival(self, carrier, self._loop)

    def close(self) -> None:
        """End every stream and every greeting."""
        for carrier in list(self._greetings):
            carrier.close()
        self._greetings.clear()
        for transport in self.streams:
            transport.close()

    def find(self, stream_id: bytes) -> Stream | None:
        transport = self._transports.get(stream_id)
        return transport.stream if transport is not None else None

    def forget_greeting(self, carrier: Carrier) -> None:
        self._greetings.discard(carrier)

    def carry(self, stream: Stream, carrier: Carrier, reader: Reader) -> ResumableTransport:
        """The greeting is over: `stream` goes on over `carrier`."""
        self._greetings.discard(carrier)
        transport = self._transports.get(stream.stream_id)
        new = transport is None
        if transport is None:
            transport = ResumableTransport(self._loop, stream)
            transport.expecting = True  # whichever end's silence runs out first asks: a link costs one PING in 10 s
            self._adopt(transport)
        timer = self._lingering.pop(stream.stream_id, None)
        if timer is not None:
            timer.cancel()
        transport.adopt(carrier, reader)
        if new:
            self._on_stream(transport)
        return transport

    def full(self) -> bool:
        return len(self._transports) >= MAX_STREAMS

    def _adopt(self, transport: ResumableTransport) -> None:
        stream_id = transport.stream.stream_id
        self._transports[stream_id] = transport

        def lost(why: str) -> None:
            log.info("= stream %s waits for a carrier: %s", stream_id.hex()[:8], why)
            self._lingering[stream_id] = self._loop.call_later(
                self.linger_s, transport.end, LinkLost(f"no carrier came for {self.linger_s:.0f} s: {why}")
            )

        def ended() -> None:
            self._transports.pop(stream_id, None)
            timer = self._lingering.pop(stream_id, None)
            if timer is not None:
                timer.cancel()

        transport.on_carrier_lost(lost)
        transport.on_ended(ended)


class _Arrival:
    """A carrier until its greeting is over."""

    def __init__(self, server: ResumableServer, carrier: Carrier, loop: asyncio.AbstractEventLoop) -> None:
        self._server = server
        self._carrier = carrier
        self._loop = loop
        self._reader = Reader()
        self._greeting = Greeting(server.find, os.urandom(NONCE_SIZE))
        self._timer = loop.call_later(GREETING_S, self._give_up, f"it said nothing for {GREETING_S:.0f} s")
        carrier.start(self._on_bytes, self._give_up, _nothing)
        carrier.read(True)

    def _on_bytes(self, view: memoryview) -> None:
        greeting = self._greeting
        try:
            frames = self._reader.feed(view)
            for kind, body in frames:
                stream = greeting.on_frame(kind, body, self._loop.time())
                if stream is None:
                    continue
                if self._server.full() and self._server.find(stream.stream_id) is None:
                    raise greeting.refusal("too many streams are open")
                self._timer.cancel()
                self._server.carry(stream, self._carrier, self._reader).on_frames(frames)
                return
            if greeting.out:
                self._carrier.write([b"".join(greeting.out)])
                greeting.out.clear()
        except (RemoteProtocolError, StreamRefused) as exc:
            self._give_up(exc.message)

    def _give_up(self, why: str) -> None:
        log.info("! carrier refused: %s", why)
        self._timer.cancel()
        self._server.forget_greeting(self._carrier)
        if self._greeting.out and not self._carrier.busy:
            self._carrier.write([b"".join(self._greeting.out)])
        self._carrier.finish()


def _nothing() -> None:
    pass

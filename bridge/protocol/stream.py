"""A byte stream that outlives its carriers, without I/O: SSH runs in it and does not notice a cut.

Theory of operation: both ends count the bytes of the stream. What was sent is kept until the far end has acknowledged it;
a new carrier begins with both ends saying how far they got, and goes on from there. The client opens and resumes; a
resumption proves on both sides that they hold the secret agreed inside SSH (docs/design/001-spine.md).

    client  DETACHED --attach--> CARRIED (first time: OPEN)                        server  Greeting: OPEN   -> Stream, CARRIED
            DETACHED --attach--> RESUMING --CHALLENGE ok, PROOF sent--> CARRIED            Greeting: RESUME -> CHALLENGE, PROOF ok
            any --detach--> DETACHED        any --CLOSE, error--> CLOSED                           -> the same Stream, CARRIED

The server's stream stays on its old carrier until the PROOF is right, so nobody without the secret can disturb it; what the
old carrier brought after the CHALLENGE comes again and is skipped.

Limits: a writer is to pause at `replay_bytes` (16 MiB) unacknowledged; chunks are kept by reference, never copied. An ACK
goes out for each 1 MiB received, at the latest 1 s after data came, and with each PONG. PING only after 10 s of silence
while something is expected; 5 s later the carrier counts as dead.
"""

from __future__ import annotations

import hmac
from collections import deque
from collections.abc import Callable
from enum import Enum

from bridge.errors import LinkLost, LocalProtocolError, RemoteProtocolError
from bridge.model.fields import printable
from bridge.protocol.stream_frames import (
    HEADER,
    ID_SIZE,
    MAC_SIZE,
    MAX_BODY,
    MAX_REASON,
    NONCE_SIZE,
    SECRET_SIZE,
    Kind,
    encode,
    proof,
    read_u64,
    u64,
)

REPLAY_BYTES = 16 << 20
ACK_BYTES = 1 << 20
ACK_S = 1.0
SILENCE_S = 10.0
PONG_S = 5.0
GREETING_S = 10.0
_MAX_BUFFERS = 512  # half of IOV_MAX (writev(2))

Buffer = bytes | bytearray | memoryview


class StreamRefused(LinkLost):
    """A resumption failed: the stream is gone and a new one is needed."""


class State(Enum):
    DETACHED = "detached"
    RESUMING = "resuming"
    CARRIED = "carried"
    CLOSED = "closed"


class Stream:
    """One end. `attach`, then `on_frame` for what the carrier brings and `take` for what it shall carry."""

    def __init__(self, stream_id: bytes, *, client: bool, replay_bytes: int = REPLAY_BYTES) -> None:
        self.stream_id = stream_id
        self.client = client
        self.replay_bytes = replay_bytes
        self.state = State.DETACHED
        self.received = 0  # offset of the next byte from the far end
        self.expecting = False  # the owner waits for the far end: silence is checked even with all acknowledged
        self._secret: bytes | None = None
        self._nonce = b""
        self._opened = not client
        self._skip = 0  # bytes that come again over this carrier
        self._reported = 0  # `received` as last acknowledged to the far end
        self._sent: deque[Buffer] = deque()  # committed to the carrier, not yet acknowledged
        self._unsent: deque[Buffer] = deque()
        self._base = 0  # offset of the first byte of _sent
        self._acked = 0
        self._committed = 0
        self._written = 0
        self._handshake: list[bytes] = []
        self._ack_now = self._pong_now = self._ping_now = False  # flags, so that a far end that floods us makes nothing grow
        self._closing = False
        self._heard_at = self._waiting_at = 0.0
        self._ping_at: float | None = None
        self._ack_at: float | None = None

    @property
    def resumable(self) -> bool:
        return self._secret is not None

    @property
    def held_bytes(self) -> int:
        return self._written - self._base

    @property
    def unsent_bytes(self) -> int:
        return self._written - self._committed

    @property
    def urgent(self) -> bool:
        """There are frames beside DATA to send."""
        return bool(self._handshake or self._ack_now or self._pong_now or self._ping_now or self._closing)

    def set_secret(self, secret: bytes) -> None:
        """The secret that both ends agreed on inside SSH."""
        if len(secret) != SECRET_SIZE:
            raise LocalProtocolError(f"a secret of {len(secret)} bytes, not {SECRET_SIZE}")
        self._secret = secret

    def write(self, data: Buffer) -> None:
        """Append to the stream; `data` is kept, and must not change."""
        if data:
            self._unsent.append(data)
            self._written += len(data)

    def close(self) -> None:
        """End the stream in order: CLOSE follows what was written."""
        self._closing = True

    def attach(self, nonce: bytes, now: float) -> None:
        """Client: begin on a fresh carrier. Raises StreamRefused where the stream cannot be resumed."""
        self.detach()
        self._heard_at = self._waiting_at = now
        if not self._opened:
            self._opened = True
            self._handshake = [encode(Kind.OPEN, self.stream_id)]
            self.state = State.CARRIED
            return
        if self._secret is None:
            self.state = State.CLOSED
            raise StreamRefused("the carrier was lost before the stream could be resumed")
        self._nonce = nonce
        self._handshake = [encode(Kind.RESUME, self.stream_id + nonce + u64(self.received))]
        self.state = State.RESUMING

    def attach_server(self, now: float, peer_received: int = 0, said_received: int = 0) -> None:
        """Server: the greeting is over. `said_received` is what our CHALLENGE told the client."""
        self.detach()
        self._heard_at = self._waiting_at = now
        self._skip = self.received - said_received
        self._reported = said_received
        self._go_on(peer_received)

    def detach(self) -> None:
        """The carrier is gone. What was committed to it counts as unsent until the far end says otherwise."""
        if self.state is not State.CLOSED:
            self.state = State.DETACHED
        self._handshake = []
        self._ack_now = self._pong_now = self._ping_now = False
        self._ping_at = self._ack_at = None
        self._skip = 0

    def may_resume_from(self, peer_received: int) -> bool:
        """Whether the far end can have received this much."""
        return self._acked <= peer_received <= self._committed

    def heard(self, now: float) -> None:
        """Bytes came."""
        self._heard_at = now
        self._ping_at = None

    def on_frame(self, kind: Kind, body: memoryview, now: float) -> Buffer | None:
        """A frame, or a part of DATA; the bytes to hand on, if any. Raises RemoteProtocolError, StreamRefused: the stream is over."""
        if self.state is State.CARRIED:
            if kind is Kind.DATA:
                return self._on_data(body, now)
            if kind is Kind.ACK:
                self._acknowledge(read_u64(body))
                return None
            if kind is Kind.PING:
                self._pong_now = self._ack_now = True
                return None
            if kind is Kind.PONG:
                return None
            if kind is Kind.CLOSE:
                self.state = State.CLOSED
                return None
        elif self.state is State.RESUMING and kind is Kind.CHALLENGE:
            self._on_challenge(body)
            return None
        if self.client and kind is Kind.REFUSED and self.state in (State.RESUMING, State.CARRIED):
            self.state = State.CLOSED
            raise StreamRefused(f"the agent refused the stream: {printable(bytes(body).decode(errors='replace'))}")
        state, self.state = self.state, State.CLOSED
        raise RemoteProtocolError(f"a {kind.name} frame came while the stream was {state.value}")

    def take(self, now: float) -> list[Buffer]:
        """The buffers of the next frames for the carrier, in order; empty when there is nothing to send."""
        buffers: list[Buffer] = []
        if self._handshake or self._ack_now or self._ping_now:
            buffers.append(self._take_control())
        if self.state is not State.CARRIED:
            return buffers
        if self._unsent:
            self._take_data(buffers, now)
        elif self._closing:
            self.state = State.CLOSED
            buffers.append(encode(Kind.CLOSE))
        return buffers

    def deadline(self) -> float | None:
        """When `tick` is to be called next, if ever."""
        if self.state is State.RESUMING:
            return self._waiting_at + GREETING_S
        if self.state is not State.CARRIED:
            return None
        times = [] if self._ack_at is None else [self._ack_at]
        if self._ping_at is not None:
            times.append(self._ping_at + PONG_S)
        elif self.expecting or self._committed > self._acked:
            times.append(max(self._heard_at, self._waiting_at) + SILENCE_S)
        return min(times, default=None)

    def tick(self, now: float) -> None:
        """Time has passed. Raises LinkLost when the carrier counts as dead."""
        if self.state is State.RESUMING and now >= self._waiting_at + GREETING_S:
            raise LinkLost(f"no answer to the resumption for {GREETING_S:.0f} s")
        if self.state is not State.CARRIED:
            return
        if self._ack_at is not None and now >= self._ack_at:
            self._ack_now, self._ack_at = True, None
        if self._ping_at is not None:
            if now >= self._ping_at + PONG_S:
                raise LinkLost(f"the carrier was silent for {now - self._heard_at:.0f} s")
        elif (self.expecting or self._committed > self._acked) and now >= max(self._heard_at, self._waiting_at) + SILENCE_S:
            self._ping_at = now
            self._ping_now = True

    def _on_data(self, body: memoryview, now: float) -> Buffer | None:
        if self._skip:
            again = min(self._skip, len(body))
            self._skip -= again
            body = body[again:]
            if not body:
                return None
        self.received += len(body)
        if self.received - self._reported >= ACK_BYTES:
            self._ack_now = True
        elif self._ack_at is None:
            self._ack_at = now + ACK_S
        return body

    def _take_control(self) -> bytes:
        frames, self._handshake = self._handshake, []
        if self._pong_now:
            frames.append(encode(Kind.PONG))
        if self._ack_now:
            frames.append(encode(Kind.ACK, u64(self.received)))
            self._reported, self._ack_at = self.received, None
        if self._ping_now:
            frames.append(encode(Kind.PING))
        self._ack_now = self._pong_now = self._ping_now = False
        return b"".join(frames)

    def _acknowledge(self, upto: int) -> None:
        if not self.may_resume_from(upto):
            self.state = State.CLOSED
            raise RemoteProtocolError(f"{upto} bytes were acknowledged, {self._acked} before and {self._committed} sent")
        self._acked = upto
        sent = self._sent
        while sent and self._base + len(sent[0]) <= upto:
            self._base += len(sent.popleft())

    def _on_challenge(self, body: memoryview) -> None:
        assert self._secret is not None
        nonces = (self._nonce, bytes(body[:NONCE_SIZE]))
        peer_received = read_u64(body, NONCE_SIZE)
        received = (self.received, peer_received)
        wanted = proof(self._secret, b"server", self.stream_id, nonces, received)
        if not hmac.compare_digest(wanted, bytes(body[-MAC_SIZE:])):
            self.state = State.CLOSED
            raise StreamRefused("whoever answered the resumption does not hold the stream's secret")
        if not self.may_resume_from(peer_received):
            self.state = State.CLOSED
            raise RemoteProtocolError(f"the agent claims {peer_received} bytes, {self._acked} acknowledged and {self._committed} sent")
        self._handshake.append(encode(Kind.PROOF, proof(self._secret, b"client", self.stream_id, nonces, received)))
        self._reported = self.received
        self._go_on(peer_received)

    def _go_on(self, peer_received: int) -> None:
        """The far end has `peer_received` bytes: send on from there."""
        self._acknowledge(peer_received)
        if self._base < peer_received:
            first = self._sent[0]
            self._sent[0] = memoryview(first)[peer_received - self._base :]
            self._base = peer_received
        self._unsent.extendleft(reversed(self._sent))
        self._sent.clear()
        self._committed = peer_received
        self.state = State.CARRIED

    def _take_data(self, buffers: list[Buffer], now: float) -> None:
        unsent, sent = self._unsent, self._sent
        head = len(buffers)
        buffers.append(b"")
        size = 0
        while unsent and size < MAX_BODY and len(buffers) < _MAX_BUFFERS:
            chunk = unsent.popleft()
            room = MAX_BODY - size
            if len(chunk) > room:
                view = memoryview(chunk)
                chunk = view[:room]
                unsent.appendleft(view[room:])
            buffers.append(chunk)
            sent.append(chunk)
            size += len(chunk)
        buffers[head] = HEADER.pack(Kind.DATA, size)
        if self._committed == self._acked:
            self._waiting_at = now
        self._committed += size


class Greeting:
    """The server's end of a fresh carrier until it is known which stream it carries. `find` knows the streams by their ids."""

    def __init__(self, find: Callable[[bytes], Stream | None], nonce: bytes) -> None:
        self._find = find
        self._nonce = nonce
        self._stream: Stream | None = None
        self._wanted = b""
        self._peer_received = self._said_received = 0
        self.out: list[bytes] = []  # for the carrier; a REFUSED too, after which it is closed

    def on_frame(self, kind: Kind, body: memoryview, now: float) -> Stream | None:
        """The stream once it is known, carried from then on. Raises StreamRefused, RemoteProtocolError: close the carrier alone."""
        if self._stream is not None and kind is Kind.PROOF:
            return self._on_proof(bytes(body), now)
        if self._stream is None and kind is Kind.OPEN:
            stream_id = bytes(body)
            if self._find(stream_id) is not None:
                raise self.refusal("the stream is open already")
            stream = Stream(stream_id, client=False)
            stream.attach_server(now)
            return stream
        if self._stream is None and kind is Kind.RESUME:
            self._on_resume(bytes(body))
            return None
        raise RemoteProtocolError(f"a {kind.name} frame came before the carrier's stream was known")

    def _on_resume(self, body: bytes) -> None:
        stream_id, client_nonce = body[:ID_SIZE], body[ID_SIZE : ID_SIZE + NONCE_SIZE]
        stream = self._find(stream_id)
        if stream is None or stream.state is State.CLOSED:
            raise self.refusal("the stream is not known here")
        if stream._secret is None:
            raise self.refusal("the stream has no secret yet")
        self._peer_received, self._said_received = read_u64(body, ID_SIZE + NONCE_SIZE), stream.received
        nonces, received = (client_nonce, self._nonce), (self._peer_received, self._said_received)
        self._wanted = proof(stream._secret, b"client", stream_id, nonces, received)
        mac = proof(stream._secret, b"server", stream_id, nonces, received)
        self.out.append(encode(Kind.CHALLENGE, self._nonce + u64(self._said_received) + mac))
        self._stream = stream

    def _on_proof(self, mac: bytes, now: float) -> Stream:
        stream = self._stream
        assert stream is not None
        if not hmac.compare_digest(self._wanted, mac):
            raise self.refusal("the proof is wrong")
        if stream.state is State.CLOSED:
            raise self.refusal("the stream is not known here")
        if not stream.may_resume_from(self._peer_received):
            raise self.refusal(f"{self._peer_received} bytes were never sent")
        stream.attach_server(now, self._peer_received, self._said_received)
        return stream

    def refusal(self, reason: str) -> StreamRefused:
        """Tell the far end why, and what to raise."""
        self.out.append(encode(Kind.REFUSED, reason.encode()[:MAX_REASON]))
        return StreamRefused(reason)

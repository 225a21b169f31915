"""One SSH channel, the same on both sides: bytes, ends and resets of one flow (RFC 4254, 5.2 and 5.3).

    OPENING --confirmed--> OPEN --both sides ended, close()--> CLOSED        OPENING --refused--> CLOSED
                            └── abort() here or there, or the connection is lost --> CLOSED, reset

How TCP's ends are told: FIN is EOF, and a side may go on sending after it has received one. CLOSE in order comes when both sides
have sent EOF; a CLOSE that comes earlier is a RST, and so is the loss of the connection.

Flow control: what is written is sent at once while the far side's window and the transport have room; else it waits here and the
user hears `on_writable(False)`. What arrives goes to the user's sink at once; while the user has paused, or has not attached yet,
it is kept, and the far side's window is not renewed (windows.py).

Limits: what one `write` call holds is all that waits here, if the user heeds `on_writable`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from asyncssh.constants import (
    MSG_CHANNEL_CLOSE,
    MSG_CHANNEL_DATA,
    MSG_CHANNEL_EOF,
    MSG_CHANNEL_FAILURE,
    MSG_CHANNEL_OPEN,
    MSG_CHANNEL_OPEN_CONFIRMATION,
    MSG_CHANNEL_OPEN_FAILURE,
    MSG_CHANNEL_REQUEST,
    MSG_CHANNEL_SUCCESS,
    MSG_CHANNEL_WINDOW_ADJUST,
    OPEN_CONNECT_FAILED,
)
from asyncssh.misc import ProtocolError
from asyncssh.packet import Boolean, SSHPacket, String, UInt32

from bridge.adapters.ssh.connection import PACKET_BYTES, FastPath
from bridge.errors import LinkLost
from bridge.protocol.control import FlowRefused

_MOST_WINDOW = 0xFFFFFFFF
_MOST_NAME = 20


Answered = Callable[[FlowRefused | LinkLost | None], bool]
"""Told once: None, the channel is open; else why not. Its answer: whether anybody still wants the channel."""


class Sink(Protocol):
    """What a channel tells its user (engine/needs.py says the same). Nothing follows `on_lost`, nor one's own close or abort."""

    def on_data(self, data: bytes | memoryview) -> None: ...
    def on_eof(self) -> None: ...
    def on_lost(self, reset: bool) -> None: ...
    def on_writable(self, writable: bool) -> None: ...


class Channel:
    """Made by `open_channel` (the side that asks) or by the server for an open request (`accept`, `refuse` answer it)."""

    __slots__ = (
        "_close_received",
        "_close_sent",
        "_connection",
        "_eof_received",
        "_eof_sent",
        "_eof_told",
        "_eof_wanted",
        "_far_packet",
        "_far_window",
        "_head",
        "_held",
        "_in_turn",
        "_lost",
        "_number",
        "_opened",
        "_own_window",
        "_paused",
        "_replies",
        "_requests",
        "_sink",
        "_target",
        "_unsent",
        "_unwritable",
    )

    def __init__(self, connection: FastPath) -> None:
        self._connection = connection
        self._number: int = connection.add_channel(self)  # type: ignore[arg-type]  # asyncssh asks no more of it than is here
        self._target = connection.windows.start()
        self._own_window = self._target
        self._far_window = self._far_packet = 0
        self._head = b""  # of each CHANNEL_DATA: type and the far side's number; empty while not open
        self._sink: Sink | None = None
        self._held: list[bytes] = []
        self._unsent: list[bytes | memoryview] = []
        self._paused = self._in_turn = self._unwritable = False
        self._eof_wanted = self._eof_sent = self._eof_received = self._eof_told = False
        self._close_sent = self._close_received = self._lost = False
        self._opened: Answered | None = None
        self._replies: list[asyncio.Future[bool]] = []
        self._requests: Any = None

    # for the user

    def attach(self, sink: Sink) -> None:
        """What came in so far is handed over within this call, before anything else."""
        self._sink = sink
        self._deliver()

    @property
    def waiting_bytes(self) -> int:
        """Written, but not sent yet."""
        return sum(map(len, self._unsent))

    def write(self, data: bytes | memoryview) -> None:
        if self._eof_wanted or self._close_sent or self._lost or not data:
            return
        if not self._unsent and not self._connection.write_paused:
            size = len(data)
            room = min(self._far_window, self._far_packet)
            if size <= room:
                self._send(data)
                return
            data = memoryview(data)
            while room and data and not self._connection.write_paused:
                self._send(data[:room])
                data = data[room:]
                room = min(self._far_window, self._far_packet)
            if not data:
                return
        self._unsent.append(bytes(data))
        self._queue()
        if self._unsent and not self._unwritable:
            self._unwritable = True
            if self._sink is not None:
                self._sink.on_writable(False)

    def write_eof(self) -> None:
        if not self._eof_wanted:
            self._eof_wanted = True
            self._finish_sending()

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        self._deliver()

    def close(self) -> None:
        """Both sides have ended; what is still unsent is sent first."""
        self._sink = None
        self._held.clear()
        self._eof_wanted = self._eof_told = True
        self._finish_sending()

    def abort(self) -> None:
        """Reset. Nothing more is told."""
        self._sink = None
        self._unsent.clear()
        self._held.clear()
        self._eof_wanted = self._eof_told = True
        if self._opened is None:
            self._send_close()

    def fail(self, why: str) -> None:
        """What came breaks the rules: the whole connection ends."""
        self._connection.fail(why)

    # opening

    def begin(self, kind: bytes, arguments: bytes, answered: Answered) -> None:
        """Ask for the channel; `answered` hears what became of it."""
        self._opened = answered
        own = UInt32(self._number) + UInt32(self._own_window) + UInt32(PACKET_BYTES)
        self._connection.send_packet(MSG_CHANNEL_OPEN, String(kind), own, arguments)

    async def open(self, kind: bytes, arguments: bytes) -> None:
        """Ask for the channel and wait. Raises FlowRefused, LinkLost."""
        opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def answered(fault: FlowRefused | LinkLost | None) -> bool:
            if opened.done():  # cancelled meanwhile
                return False
            if fault is None:
                opened.set_result(None)
            else:
                opened.set_exception(fault)
            return True

        self.begin(kind, arguments, answered)
        await opened

    async def request(self, name: bytes, arguments: bytes) -> bool:
        """A channel request; whether the far side agreed."""
        if self._lost or self._close_sent:
            raise LinkLost("the channel is closed")
        reply: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._replies.append(reply)
        self._packet(MSG_CHANNEL_REQUEST, String(name), Boolean(True), arguments)
        return await reply

    def process_open(self, far_number: int, far_window: int, far_packet: int, opener: Any) -> None:
        """The far side asks (called by asyncssh): `opener(channel)` sees that accept() or refuse() follows."""
        self._set_far(far_number, far_window, far_packet)
        opener(self)

    def accept(self, requests: Any = None) -> None:
        """`requests(name, arguments) -> bool` answers channel requests; none: all are refused."""
        if self._lost:
            return
        self._requests = requests
        own = UInt32(self._number) + UInt32(self._own_window) + UInt32(PACKET_BYTES)
        self._packet(MSG_CHANNEL_OPEN_CONFIRMATION, own)

    def refuse(self, reason: str, code: int = OPEN_CONNECT_FAILED) -> None:
        if self._lost:
            return
        self._packet(MSG_CHANNEL_OPEN_FAILURE, UInt32(code), String(reason), String(b""))
        self._gone()

    def _set_far(self, number: int, window: int, packet: int) -> None:
        self._head = MSG_CHANNEL_DATA.to_bytes(1, "big") + UInt32(number)
        self._far_window = window
        self._far_packet = min(packet, PACKET_BYTES)

    def process_open_confirmation(self, far_number: int, far_window: int, far_packet: int, packet: SSHPacket | None = None) -> None:
        opened, self._opened = self._opened, None
        if opened is None:
            raise ProtocolError("channel not being opened")
        self._set_far(far_number, far_window, far_packet)
        if not opened(None):
            self.abort()

    def process_open_failure(self, code: int, reason: str, lang: str) -> None:
        opened, self._opened = self._opened, None
        if opened is None:
            raise ProtocolError("channel not being opened")
        self._gone()
        opened(FlowRefused(_errno_name(reason)))

    # packets of this channel

    def receive(self, kind: int, body: memoryview) -> None:
        """One packet; `body` starts after the channel's number and is valid during the call only."""
        if kind == MSG_CHANNEL_DATA:
            size = len(body) - 4
            if size < 0 or int.from_bytes(body[:4], "big") != size:
                raise ProtocolError("data of another length than its packet")
            self._on_data(body[4:], size)
        elif kind == MSG_CHANNEL_WINDOW_ADJUST:
            self._far_window = min(_MOST_WINDOW, self._far_window + SSHPacket(bytes(body)).get_uint32())
            if self._unsent:
                self._queue()
        elif kind == MSG_CHANNEL_OPEN_CONFIRMATION:
            packet = SSHPacket(bytes(body))
            self.process_open_confirmation(packet.get_uint32(), packet.get_uint32(), packet.get_uint32())
        elif kind == MSG_CHANNEL_OPEN_FAILURE:
            packet = SSHPacket(bytes(body))
            code, reason = packet.get_uint32(), packet.get_string()
            self.process_open_failure(code, reason.decode("utf-8", "replace"), "")
        elif not self._head:
            raise ProtocolError("channel not open")
        elif kind == MSG_CHANNEL_EOF:
            self._eof_received = True
            self._deliver()
        elif kind == MSG_CHANNEL_CLOSE:
            self._on_close()
        elif kind == MSG_CHANNEL_REQUEST:
            self._on_request(SSHPacket(bytes(body)))
        elif kind in (MSG_CHANNEL_SUCCESS, MSG_CHANNEL_FAILURE):
            if not self._replies:
                raise ProtocolError("answer to no request")
            reply = self._replies.pop(0)
            if not reply.done():
                reply.set_result(kind == MSG_CHANNEL_SUCCESS)
        else:
            raise ProtocolError("channel packet of an unknown kind")

    def process_packet(self, kind: int, pktid: int, packet: SSHPacket) -> bool:
        """The same by asyncssh's own path."""
        self.receive(kind, memoryview(packet.get_remaining_payload()))
        return True

    def log_received_packet(self, kind: int, pktid: int | None, packet: object, note: str = "") -> None:
        """asyncssh would log each packet; flows have a log line of their own."""

    def process_connection_close(self, exc: Exception | None) -> None:
        opened, self._opened = self._opened, None
        self._close_sent = True
        self._gone()
        if opened is not None:
            opened(LinkLost("the link was lost while a flow was being opened"))

    def _on_data(self, data: memoryview, size: int) -> None:
        if self._eof_received or not self._head:
            raise ProtocolError("data after the end, or before the start")
        if size > self._own_window:
            raise ProtocolError("more data than the window allows")
        self._own_window -= size
        if self._sink is not None and not self._paused and not self._held:
            self._sink.on_data(data)
            self._renew()
        elif not self._eof_told:
            self._held.append(bytes(data))

    def _deliver(self) -> None:
        held = self._held
        while held and self._sink is not None and not self._paused:
            self._sink.on_data(held.pop(0))
            if not held:
                self._renew()
        if held or self._paused:
            return
        if self._eof_received and not self._eof_told and self._sink is not None:
            self._eof_told = True
            self._sink.on_eof()
        if self._close_received and self._sink is not None:
            sink, self._sink = self._sink, None
            sink.on_lost(False)

    def _renew(self) -> None:
        windows = self._connection.windows
        if self._eof_received or self._close_sent or self._lost or not windows.is_due(self._target, self._own_window):
            return
        self._target = windows.renew(self._target)
        more = self._target - self._own_window
        if more > 0:
            self._own_window += more
            self._packet(MSG_CHANNEL_WINDOW_ADJUST, UInt32(more))

    def _on_close(self) -> None:
        if self._close_received:
            raise ProtocolError("closed twice")
        self._close_received = True
        in_order = self._eof_received and self._eof_sent
        self._unsent.clear()
        self._eof_wanted = True
        self._send_close()
        if in_order:
            self._leave()
            self._deliver()
        else:
            self._gone()

    def _on_request(self, packet: SSHPacket) -> None:
        name = packet.get_string()
        wants_reply = packet.get_boolean()
        agreed = self._requests is not None and bool(self._requests(name, packet))
        if wants_reply:
            self._packet(MSG_CHANNEL_SUCCESS if agreed else MSG_CHANNEL_FAILURE)

    # sending

    def _send(self, data: bytes | memoryview) -> None:
        size = len(data)
        self._far_window -= size
        self._connection.send_data(self._head + size.to_bytes(4, "big"), data)

    def _packet(self, kind: int, *arguments: bytes) -> None:
        self._connection.send_packet(kind, self._head[1:], *arguments)

    def _queue(self) -> None:
        """Unsent bytes go out now, or when the transport has room and it is this channel's turn."""
        if self._in_turn:
            return
        while self._unsent and self._far_window:
            if self._connection.write_paused:
                self._in_turn = True
                self._connection.wait_turn(self)
                return
            self._send_unsent()

    def send_one(self) -> bool:
        """It is this channel's turn: one packet. True while it wants another turn."""
        if self._unsent and self._far_window:
            self._send_unsent()
        self._in_turn = bool(self._unsent and self._far_window)
        return self._in_turn

    def _send_unsent(self) -> None:
        first = self._unsent[0]
        room = min(self._far_window, self._far_packet)
        if len(first) <= room:
            del self._unsent[0]
            self._send(first)
        else:
            self._unsent[0] = memoryview(first)[room:]
            self._send(memoryview(first)[:room])
        if self._unsent:
            return
        if self._unwritable:
            self._unwritable = False
            if self._sink is not None:
                self._sink.on_writable(True)
        self._finish_sending()

    def _finish_sending(self) -> None:
        if not self._eof_wanted or self._unsent or self._lost or self._close_sent:
            return
        closing = self._eof_told and self._sink is None
        over = closing and self._eof_sent and self._eof_received  # and the far side knows
        if not self._eof_sent:
            self._eof_sent = True
            if closing:  # goes out with the CLOSE
                self._connection.send_later(MSG_CHANNEL_EOF, self._head[1:])
            else:
                self._packet(MSG_CHANNEL_EOF)
        if closing:
            self._send_close(over)

    def _send_close(self, over: bool = False) -> None:
        if not self._close_sent and not self._lost and self._head:
            self._close_sent = True
            if over or (self._close_received and self._eof_sent):  # the last word of a flow that has ended: nobody waits for it
                self._connection.send_later(MSG_CHANNEL_CLOSE, self._head[1:])
            else:
                self._packet(MSG_CHANNEL_CLOSE)
        if self._close_received:
            self._leave()

    # the end

    def _gone(self) -> None:
        """Reset, or never opened."""
        self._leave()
        self._held.clear()
        self._unsent.clear()
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.on_lost(True)

    def _leave(self) -> None:
        if self._lost:
            return
        self._lost = True
        self._connection.remove_channel(self._number)
        self._connection.windows.end(self._target)
        for reply in self._replies:
            if not reply.done():
                reply.set_exception(LinkLost("the channel was closed before it answered"))
        self._replies.clear()


def _errno_name(reason: str) -> str:
    """What a refusal says, if it can be an errno's name: the text is the far side's."""
    plain = reason.isascii() and reason.isalnum() and reason.isupper() and len(reason) <= _MOST_NAME
    return reason if plain else "ECONNREFUSED"

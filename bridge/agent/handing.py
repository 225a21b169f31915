"""The agent's side of handing (engine/handing.py): it dials for a bridge of its own engine, is given the app's connections, and pumps.

    Dial ──> dialling ──> Opened ──Take──> pumping ──> Ended            ──> Refused, and forgotten

A flow is two pumps (engine/relay.py) over a pair of channels: the target's side begins when it is connected, so what a server says
first is kept until the app's side comes. When the bridge ends, all that it has handed over is reset, as it would be with it.

Limits: those of the Dialler. A Take without its descriptor (EMFILE here) resets its flow.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path

from bridge.adapters.unix_messages import UnixMessages
from bridge.agent.dialling import Dialler
from bridge.engine.channel_pair import ChannelEnd
from bridge.engine.relay import join
from bridge.errors import RemoteProtocolError
from bridge.protocol import handing as wire

log = logging.getLogger(__name__)


def accept_invitation(dialler: Dialler, token: bytes, path: Path) -> Hand | None:
    """Connect to the bridge's socket and serve it until it ends. None where there is no such socket: the bridge is elsewhere."""
    sock = None
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        sock.connect(str(path))  # never waits: a full backlog is EAGAIN
    except OSError as exc:
        if sock is not None:
            sock.close()
        log.info("no connections are handed over here: %s: %s", path, (exc.strerror or str(exc)).lower())
        return None
    return Hand(dialler, sock, token)


def _socket(fd: int) -> socket.socket:
    """By whatever name: only addresses would tell the families apart, and asking the kernel takes three calls."""
    try:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, fd)
    except OSError as exc:
        raise RemoteProtocolError("what came is no connection") from exc
    sock.setblocking(False)
    return sock


class Hand:
    """One bridge."""

    def __init__(self, dialler: Dialler, sock: socket.socket, token: bytes) -> None:
        self._dialler = dialler
        self._loop = asyncio.get_running_loop()
        self._flows: dict[int, _Flow] = {}
        self._over = False
        self._messages = UnixMessages(sock, self._on_message, self._on_lost, most_bytes=wire.MAX_PACKET, takes_fds=True)
        self.say(wire.Hello(token))
        self._messages.start()

    def say(self, message: wire.ToBridge) -> None:
        self._messages.send(wire.encode(message))

    def close(self) -> None:
        self._messages.close()
        self._on_lost("the agent has done with it")

    def forget(self, flow: _Flow) -> bool:
        """Whether it was known."""
        known = self._flows.get(flow.number) is flow
        if known:
            del self._flows[flow.number]
        return known

    def _on_message(self, packet: bytes, fd: int | None) -> None:
        sock = None
        try:
            if fd is not None:
                sock, fd = _socket(fd), None
            self._obey(wire.decode(packet), sock)
        except RemoteProtocolError as exc:
            log.warning("! handing: %s", exc.message)
            if sock is not None:
                sock.close()
            if fd is not None:
                os.close(fd)
            self._messages.close()
            self._on_lost(exc.message)

    def _obey(self, message: wire.Message, sock: socket.socket | None) -> None:
        match message:
            case wire.Dial(number, address, port) if sock is None and number not in self._flows:
                flow = self._flows[number] = _Flow(self, number)
                self._dialler.dial(flow.far, address, port, ahead=0)
            case wire.Take(number) if number in self._flows and self._flows[number].awaits_app:
                self._flows[number].take(self._loop, sock)
            case wire.Abort(number) if sock is None:
                if number in self._flows:  # not: it has ended, and the messages crossed
                    self._flows.pop(number).abort("by the bridge")
            case _:
                raise RemoteProtocolError("what a bridge does not say, or of a flow that is not")

    def _on_lost(self, why: str) -> None:
        if self._over:
            return
        self._over = True
        log.info("x a bridge that handed connections over: %s", why)
        flows, self._flows = self._flows, {}
        for flow in flows.values():
            flow.abort("with its bridge")


class _Flow:
    """From Dial to Refused, Ended or Abort."""

    def __init__(self, hand: Hand, number: int) -> None:
        self.far = _Far(self)
        self.number = number
        self.awaits_app = False  # dialled, and not taken yet
        self._hand = hand
        self._near = ChannelEnd()
        self._near.joined(self.far)
        self._reset: Callable[[str], None] | None = None

    def opened(self) -> None:
        self.awaits_app = True
        self._hand.say(wire.Opened(self.number))

    def refused(self, errno_name: str) -> None:
        if self._hand.forget(self):
            self._hand.say(wire.Refused(self.number, errno_name))

    def take(self, loop: asyncio.AbstractEventLoop, sock: socket.socket | None) -> None:
        self.awaits_app = False
        if sock is None:
            log.warning("! handing: a connection came without its descriptor")
            self._near.abort()
            self._ended(0, 0, "RESET: its descriptor was lost")
            return
        self._reset = join(loop, sock, self._near, self._ended, ahead=0)

    def abort(self, why: str) -> None:
        if self._reset is not None:
            self._reset(why)
        else:
            self._near.abort()

    def _ended(self, sent: int, received: int, how: str) -> None:
        self._hand.forget(self)
        self._hand.say(wire.Ended(self.number, sent, received, how))


class _Far(ChannelEnd):
    """The end that the Dialler gets."""

    __slots__ = ("_flow",)

    def __init__(self, flow: _Flow) -> None:
        super().__init__()
        self._flow = flow

    def accept(self) -> None:
        self._flow.opened()

    def refuse(self, errno_name: str) -> None:
        self._flow.refused(errno_name)

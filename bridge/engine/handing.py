"""Where app and target are on one engine: the bridge hands the app's connection itself to the agent, which is then alone between the two.

Theory of operation: the agent connects to a socket that both containers have mounted, and proves by a token, told to it inside SSH,
that it is the pinned one. From then on the bridge asks it there to dial, and when the app's own connection arrives passes that
on (SCM_RIGHTS): the agent, which has no capability, holds both sockets and pumps. Never the other way round: the bridge has
NET_ADMIN, and with a socket of the target's namespace in its hands that would reach there (docs/design/003-handing.md).

    absent ──invite──> invited ──its token──> live ──> the agent's end, another agent: absent, its flows reset

    begin ──Dial──> Opened ──> HandedFlow ──take──> handed ──> Ended                Refused, or Abort at any time

Limits: one agent. Where it is not live, `begin` says so, and the flow goes by the link.
"""

from __future__ import annotations

import asyncio
import hmac
import itertools
import logging
import os
import socket
from collections.abc import Callable
from typing import Protocol

from bridge.errors import LinkLost, RemoteProtocolError
from bridge.protocol import handing as wire
from bridge.protocol.control import FlowRefused

log = logging.getLogger(__name__)

_PROOF_S = 5.0

Answered = Callable[["HandedFlow | FlowRefused | LinkLost"], bool]
Ended = Callable[[int, int, str], None]


class Messages(Protocol):
    """What is asked of adapters.unix_messages.UnixMessages."""

    def start(self) -> None: ...
    def send(self, message: bytes, fd: int | None = None) -> None: ...
    def close(self) -> None: ...


class MakeMessages(Protocol):
    def __call__(
        self,
        sock: socket.socket,
        on_message: Callable[[bytes, int | None], None],
        on_lost: Callable[[str], None],
        *,
        most_bytes: int,
        takes_fds: bool = False,
    ) -> Messages: ...


class HandedFlow:
    """A flow that the agent has dialled, and whose app side is still to come."""

    __slots__ = ("_handing", "_number")

    def __init__(self, handing: Handing, number: int) -> None:
        self._handing = handing
        self._number = number

    def take(self, sock: socket.socket, ended: Ended) -> Callable[[str], None]:
        """Hand the app's connection over; `ended` and what is returned are as engine/relay.py's `join` has them.

        Only that a reset is carried out by the agent: `ended` comes when the app has been sent its RST.
        """
        return self._handing.take(self._number, sock, ended)

    def abort(self) -> None:
        self._handing.abort(self._number)


class Handing:
    """Feed it each connection to the bridge's socket (`on_connection`). `on_change()` is called when `live` has become another."""

    def __init__(self, make_messages: MakeMessages) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self._make_messages = make_messages
        self._loop = asyncio.get_running_loop()
        self._agent: Messages | None = None
        self._token: bytes | None = None
        self._numbers = itertools.count(1)
        self._dialled: dict[int, Answered] = {}
        self._opened: set[int] = set()
        self._taken: dict[int, Ended] = {}

    @property
    def live(self) -> bool:
        return self._agent is not None

    def invite(self) -> bytes:
        """A token for the agent, for one connection; the one before it is worth nothing any more."""
        self._token = os.urandom(wire.TOKEN_BYTES)
        return self._token

    def on_connection(self, sock: socket.socket) -> None:
        _Newcomer(self, self._make_messages, sock, self._loop)

    def proven(self, token: bytes) -> bool:
        """Whether a newcomer may be the agent."""
        if self._agent is not None or self._token is None or not hmac.compare_digest(token, self._token):
            return False
        self._token = None
        return True

    def welcome(self, agent: Messages) -> None:
        self._agent = agent
        log.info("= the agent is on this engine: flows are handed to it")
        self.on_change()

    def drop(self, why: str) -> None:
        """This agent is not the one any more: what it holds for us is reset, by it."""
        agent, self._agent, self._token = self._agent, None, None
        if agent is None:
            return
        agent.close()
        log.info("x flows are handed to no agent: %s", why)
        dialled, self._dialled = self._dialled, {}
        taken, self._taken = self._taken, {}
        self._opened.clear()
        for answered in dialled.values():
            answered(LinkLost(why))
        for ended in taken.values():
            ended(0, 0, f"RESET: {why}")
        self.on_change()

    def begin(self, address: str, port: int, answered: Answered) -> bool:
        """Have the agent dial. False where none is live; else `answered` is called once, as by needs.Link.begin_flow."""
        if self._agent is None:
            return False
        number = next(self._numbers)
        self._dialled[number] = answered
        self._agent.send(wire.encode(wire.Dial(number, address, port)))
        return True

    # a flow that is open

    def take(self, number: int, sock: socket.socket, ended: Ended) -> Callable[[str], None]:
        if self._agent is None or number not in self._opened:  # the agent ended since
            sock.close()  # with a reset: engine/relay.py, `prepare`
            ended(0, 0, "RESET: the agent is gone")
            return lambda why: None
        self._opened.discard(number)
        self._taken[number] = ended
        self._agent.send(wire.encode(wire.Take(number)), sock.detach())

        def reset(why: str) -> None:
            if self._taken.get(number) is ended:  # else it has ended, or this was said before
                self._taken[number] = lambda sent, received, _: ended(sent, received, f"RESET {why}")
                self._abort(number)

        return reset

    def abort(self, number: int) -> None:
        if number in self._opened:
            self._opened.discard(number)
            self._abort(number)

    def _abort(self, number: int) -> None:
        if self._agent is not None:
            self._agent.send(wire.encode(wire.Abort(number)))

    # the agent's messages

    def on_message(self, message: wire.Message) -> None:
        """Raises RemoteProtocolError for what no agent of ours says."""
        match message:
            case wire.Opened(number) if number in self._dialled:
                self._opened.add(number)
                if not self._dialled.pop(number)(HandedFlow(self, number)):
                    self.abort(number)
            case wire.Refused(number, errno_name) if number in self._dialled:
                self._dialled.pop(number)(FlowRefused(errno_name))
            case wire.Ended(number, sent, received, how) if number in self._taken:
                self._taken.pop(number)(sent, received, how)
            case _:
                raise RemoteProtocolError("handing: what an agent does not say, or of a flow that is not")


class _Newcomer:
    """A connection to the bridge's socket, until it has proven that it is the agent, and then as that."""

    def __init__(self, handing: Handing, make_messages: MakeMessages, sock: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        self._handing = handing
        self._proven = False
        self._messages = make_messages(sock, self._on_message, self._on_lost, most_bytes=wire.MAX_PACKET)
        self._limit = loop.call_later(_PROOF_S, self._refuse, "it proves nothing")
        self._messages.start()

    def _on_message(self, packet: bytes, _: int | None) -> None:
        try:
            message = wire.decode(packet)
            if self._proven:
                self._handing.on_message(message)
            elif isinstance(message, wire.Hello) and self._handing.proven(message.token):
                self._limit.cancel()
                self._proven = True
                self._handing.welcome(self._messages)
            else:
                self._refuse("it has no token")
        except RemoteProtocolError as exc:
            self._refuse(exc.message)

    def _on_lost(self, why: str) -> None:
        self._limit.cancel()
        if self._proven:
            self._handing.drop(f"the agent's socket: {why}")

    def _refuse(self, why: str) -> None:
        self._limit.cancel()
        log.warning("! handing: %s", why)
        self._messages.close()
        if self._proven:
            self._handing.drop(why)

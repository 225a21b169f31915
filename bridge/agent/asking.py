"""DNS from inside the target: one message to one of its own nameservers, by UDP or TCP, and the answer as it is.

Theory of operation: a connected UDP socket per question (a fresh source port each; the kernel drops what other peers send); an
answer must have the question's id. Nothing is asked again: whoever asked has a timeout of its own and repeats.

Limits: 256 questions under way, past that EAGAIN; 5 s each; port 53 of the nameservers in the target's resolv.conf, nothing else.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Sequence

from bridge.protocol.control import Answer, Ask

MOST_UNDER_WAY = 256
TIMEOUT_S = 5.0
PORT = 53
_LEAST = 12  # a DNS header, RFC 1035, 4.1.1


class Asking:
    """`send` gets one Answer for each Ask. `nameservers` tells the addresses that may be asked."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        send: Callable[[Answer], None],
        nameservers: Callable[[], Sequence[str]],
        port: int = PORT,
    ) -> None:
        self._loop = loop
        self._send = send
        self._nameservers = nameservers
        self._under_way: set[_Udp | asyncio.Task[None]] = set()
        self._port = port

    def on_ask(self, ask: Ask) -> None:
        if len(self._under_way) >= MOST_UNDER_WAY:
            self._fail(ask, errno.EAGAIN)
        elif ask.nameserver not in self._nameservers():
            self._fail(ask, errno.EACCES)
        elif len(ask.query) < _LEAST:
            self._fail(ask, errno.EINVAL)
        elif ask.over_tcp:
            task = self._loop.create_task(self._tcp(ask), name="dns-tcp")
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
        else:
            try:
                self._under_way.add(_Udp(self._loop, ask, self._port, self._answered))
            except OSError as exc:
                self._fail(ask, exc.errno)

    def close(self) -> None:
        for one in list(self._under_way):
            if isinstance(one, asyncio.Task):
                one.cancel()
            else:
                one.close()
        self._under_way.clear()

    def _answered(self, question: _Udp, answer: bytes, code: int) -> None:
        self._under_way.discard(question)
        if code:
            self._fail(question.ask, code)
        else:
            self._send(Answer(question.ask.number, answer))

    def _fail(self, ask: Ask, code: int | None) -> None:
        self._send(Answer(ask.number, b"", errno.errorcode.get(code or 0, "EIO")))

    async def _tcp(self, ask: Ask) -> None:
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(TIMEOUT_S):
                reader, writer = await asyncio.open_connection(ask.nameserver, self._port)
                writer.write(len(ask.query).to_bytes(2, "big") + ask.query)
                size = int.from_bytes(await reader.readexactly(2), "big")
                self._send(Answer(ask.number, await reader.readexactly(size)))
        except TimeoutError:
            self._fail(ask, errno.ETIMEDOUT)
        except asyncio.IncompleteReadError:
            self._fail(ask, errno.ECONNRESET)
        except OSError as exc:
            self._fail(ask, exc.errno)
        finally:
            if writer is not None:
                writer.close()


class _Udp:
    """One question."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ask: Ask, port: int, answered: Callable[[_Udp, bytes, int], None]) -> None:
        self.ask = ask
        self._loop = loop
        self._answered = answered
        family = socket.AF_INET6 if ":" in ask.nameserver else socket.AF_INET
        self._sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            self._sock.connect((ask.nameserver, port))
            self._sock.send(ask.query)
        except OSError:
            self._sock.close()
            raise
        self._timer = loop.call_later(TIMEOUT_S, self._end, b"", errno.ETIMEDOUT)
        loop.add_reader(self._sock.fileno(), self._readable)

    def close(self) -> None:
        self._timer.cancel()
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()

    def _readable(self) -> None:
        try:
            answer = self._sock.recv(65535)
        except BlockingIOError:
            return
        except OSError as exc:  # ECONNREFUSED: nobody listens there
            self._end(b"", exc.errno or errno.EIO)
            return
        if len(answer) >= _LEAST and answer[:2] == self.ask.query[:2]:
            self._end(answer, 0)

    def _end(self, answer: bytes, code: int) -> None:
        self.close()
        self._answered(self, answer, code)

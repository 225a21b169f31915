"""The engine's nameservers, as the session's netns had them before it was wired, for DIRECT names; its resolver for containers' names.

Theory of operation: one connected socket a question, marked so that neither our routes nor our redirect of port 53 apply
(MARK_SELF). Nameservers are asked in turn; a refused or silent one, and one that answers SERVFAIL, gives way to the next.
The engine starts its resolver in a netns with the first network that has names: for a session that began on another, when one is
joined. What that resolver does not know it asks of whom resolv.conf named then, the target's nameservers, so it is not for DIRECT names.

Limits: 1.5 s for each nameserver, two rounds by UDP, 5 s for each by TCP. Answers are not looked into beyond ID and RCODE.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

from bridge.errors import MissingCapability

UDP_S, TCP_S = 1.5, 5.0
_ROUNDS = 2
_SERVFAIL = 2
_MAX_BYTES = 65535
RESOLVER = "127.0.0.11"  # Docker's, wherever it has one


class EngineDns:
    """Asks `nameservers`, which may be changed at any time; `mark` 0 leaves the sockets unmarked."""

    def __init__(self, nameservers: Sequence[str], mark: int, port: int = 53) -> None:
        self.nameservers = tuple(nameservers)
        self._mark = mark
        self._port = port

    async def ask(self, query: bytes, over_tcp: bool) -> bytes:
        """The first good answer, else a SERVFAIL that came. Raises TimeoutError where nobody answers."""
        failure: bytes | None = None
        for _ in range(1 if over_tcp else _ROUNDS):
            for nameserver in self.nameservers:
                try:
                    async with asyncio.timeout(TCP_S if over_tcp else UDP_S):
                        answer = await (self._by_tcp if over_tcp else self._by_udp)(nameserver, query)
                except (TimeoutError, asyncio.IncompleteReadError, OSError):
                    continue
                if answer[3] & 0xF != _SERVFAIL:
                    return answer
                failure = answer
            if failure is not None:
                return failure
        raise TimeoutError("no nameserver of the engine answers")

    async def _by_udp(self, nameserver: str, query: bytes) -> bytes:
        loop = asyncio.get_running_loop()
        with self._socket(nameserver, socket.SOCK_DGRAM) as sock:
            await loop.sock_connect(sock, (nameserver, self._port))
            await loop.sock_sendall(sock, query)
            while True:
                answer = await loop.sock_recv(sock, _MAX_BYTES)
                if _answers(answer, query):
                    return answer

    async def _by_tcp(self, nameserver: str, query: bytes) -> bytes:
        loop = asyncio.get_running_loop()
        sock = self._socket(nameserver, socket.SOCK_STREAM)
        try:
            await loop.sock_connect(sock, (nameserver, self._port))
            reader, writer = await asyncio.open_connection(sock=sock)
        except BaseException:
            sock.close()
            raise
        try:
            writer.write(len(query).to_bytes(2, "big") + query)
            answer = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
        finally:
            writer.close()
        if not _answers(answer, query):
            raise OSError(errno.EPROTO, "an answer to another query")
        return answer

    def _socket(self, nameserver: str, kind: int) -> socket.socket:
        family = socket.AF_INET if ip_address(nameserver).version == 4 else socket.AF_INET6
        sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
        try:
            if self._mark:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, self._mark)
        except PermissionError as exc:
            sock.close()
            raise MissingCapability("marking a socket is not allowed", hint="the bridge needs NET_ADMIN") from exc
        except OSError:
            sock.close()
            raise
        return sock


def resolver_is_here(sockets: Path = Path("/proc/self/net/udp")) -> bool:
    """Whether the engine's resolver listens in this netns (proc_net(5): addresses are hexadecimal words of this machine's order)."""
    address = f"{int.from_bytes(socket.inet_aton(RESOLVER), sys.byteorder):08X}:"
    return any(line.split()[1].startswith(address) for line in sockets.read_text().splitlines())


def _answers(answer: bytes, query: bytes) -> bool:
    return len(answer) >= 12 and answer[:2] == query[:2] and bool(answer[2] & 0x80)

"""A link that has no carrier: it dials with sockets that a thread makes inside the target's netns.

The bridge's side is all real; what is left out is SSH, the resumable stream and the agent's process (they have tests of their
own). A reset, a half-close and an errno are the kernel's, so what the app sees is what an honest agent would have passed on.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import cast

from bridge.engine.needs import FlowRefused, Sink
from bridge.model.facts import BridgeConfig, Facts
from bridge.protocol import door, udp
from bridge.protocol.packets import checksum
from tests.lab.netns import enter

_IP_RECVERR, _IPV6_RECVERR = 11, 25
_MSG_ERRQUEUE = 0x2000
_WINDOW_BYTES = 1 << 20


class SocketChannel(asyncio.Protocol):
    """A needs.Channel over a socket of the target's."""

    def __init__(self) -> None:
        self._sink: Sink | None = None
        self._early = bytearray()
        self._early_end: list[Callable[[Sink], None]] = []
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by class
        self._transport.set_write_buffer_limits(_WINDOW_BYTES)

    def attach(self, sink: Sink) -> None:
        self._sink = sink
        if self._early:
            sink.on_data(bytes(self._early))
        for tell in self._early_end:
            tell(sink)

    def data_received(self, data: bytes) -> None:
        if self._sink is None:
            self._early += data
        else:
            self._sink.on_data(data)

    def eof_received(self) -> bool:
        self._tell(lambda sink: sink.on_eof())
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._tell(lambda sink: sink.on_lost(exc is not None))

    def pause_writing(self) -> None:
        self._tell(lambda sink: sink.on_writable(False))

    def resume_writing(self) -> None:
        self._tell(lambda sink: sink.on_writable(True))

    def write(self, data: bytes | memoryview) -> None:
        assert self._transport is not None
        self._transport.write(bytes(data))  # uvloop keeps what it is given, and the buffer is the caller's

    def write_eof(self) -> None:
        assert self._transport is not None
        if not self._transport.is_closing():
            self._transport.write_eof()

    def pause_reading(self) -> None:
        assert self._transport is not None
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        assert self._transport is not None
        self._transport.resume_reading()

    def close(self) -> None:
        assert self._transport is not None
        self._transport.close()

    def abort(self) -> None:
        assert self._transport is not None
        sock = self._transport.get_extra_info("socket")
        if not self._transport.is_closing():
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def _tell(self, tell: Callable[[Sink], None]) -> None:
        if self._sink is None:
            self._early_end.append(tell)
        else:
            tell(self._sink)


class FakeLink:
    """A Supervised link (sidecar/serve.py) whose agent is this process."""

    def __init__(self, config: BridgeConfig, target: str, facts: Facts, tell: Callable[[door.LinkStatus], None]) -> None:
        self.on_datagram: Callable[[udp.Message], None] = lambda message: None
        self._facts = facts
        self._tell = tell
        self._target = ThreadPoolExecutor(1, initializer=enter, initargs=(target,))
        self._loop = asyncio.get_running_loop()
        self._associations: dict[tuple[int, int], socket.socket] = {}
        self._echoes: dict[int, socket.socket] = {}
        self._echo_tokens: dict[tuple[int, int], tuple[int, int]] = {}

    async def run(self) -> None:
        self._tell(door.LinkStatus("connected", 0.0, "direct"))
        await asyncio.Event().wait()

    async def facts(self) -> Facts:
        return self._facts

    async def stop(self) -> None: ...
    def carrier(self, dial_id: int, via: str, fds: Sequence[int]) -> None: ...
    def carrier_failed(self, dial_id: int, why: str, final: bool) -> None: ...
    def agent_changed(self, host_key: str, agent_id: str) -> None: ...

    async def open_flow(self, address: str, port: int, app: tuple[str, int]) -> SocketChannel:
        sock = await self._socket(address, socket.SOCK_STREAM)
        try:
            await self._loop.sock_connect(sock, (address, port))
        except OSError as exc:
            sock.close()
            raise FlowRefused(errno.errorcode.get(exc.errno or 0, "EIO")) from exc
        _, channel = await self._loop.create_connection(SocketChannel, sock=sock)
        return channel

    def begin_flow(self, address: str, port: int, app: tuple[str, int], answered: object) -> bool:
        return False

    async def ask(self, nameserver: str, query: bytes, over_tcp: bool) -> bytes:
        async with asyncio.timeout(5):
            sock = await self._socket(nameserver, socket.SOCK_STREAM if over_tcp else socket.SOCK_DGRAM)
            with sock:
                await self._loop.sock_connect(sock, (nameserver, 53))
                if not over_tcp:
                    await self._loop.sock_sendall(sock, query)
                    return await self._loop.sock_recv(sock, 65535)
                await self._loop.sock_sendall(sock, len(query).to_bytes(2, "big") + query)
                answer = b""
                while len(answer) < 2 or len(answer) < 2 + int.from_bytes(answer[:2], "big"):
                    answer += await self._loop.sock_recv(sock, 65535)
                return answer[2:]

    def send(self, message: udp.Message) -> None:
        match message:
            case udp.Datagram(association, address, port, data):
                sock = self._association(association, address)
                try:
                    sock.sendto(data, (address, port))
                except OSError as exc:
                    name = errno.errorcode.get(exc.errno or 0, "EIO")
                    self.on_datagram(udp.Unreachable(association, address, port, name))
            case udp.Echo(token, address, ident, sequence, data):
                self._echo(token, address, ident, sequence, data)
            case udp.Forget(association):
                for key in [key for key in self._associations if key[0] == association]:
                    sock = self._associations.pop(key)
                    self._loop.remove_reader(sock.fileno())
                    sock.close()

    async def _socket(self, address: str, kind: int, protocol: int = 0) -> socket.socket:
        return await self._loop.run_in_executor(self._target, self._make, address, kind, protocol)

    @staticmethod
    def _make(address: str, kind: int, protocol: int = 0) -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)

    def _association(self, number: int, address: str) -> socket.socket:
        key = (number, 6 if ":" in address else 4)
        sock = self._associations.get(key)
        if sock is None:
            sock = self._associations[key] = self._target.submit(self._make, address, socket.SOCK_DGRAM).result()
            if key[1] == 6:
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
            self._loop.add_reader(sock.fileno(), self._datagrams, number, sock)
        return sock

    def _datagrams(self, number: int, sock: socket.socket) -> None:
        try:
            data, peer = sock.recvfrom(65535)
        except BlockingIOError:
            return
        except OSError as exc:
            try:
                _, _, _, asked = sock.recvmsg(512, 512, _MSG_ERRQUEUE)
            except OSError:
                return
            self.on_datagram(udp.Unreachable(number, asked[0], asked[1], errno.errorcode.get(exc.errno or 0, "EIO")))
            return
        self.on_datagram(udp.Datagram(number, peer[0], peer[1], data))

    def _echo(self, token: int, address: str, ident: int, sequence: int, data: bytes) -> None:
        six = ":" in address
        version = 6 if six else 4
        sock = self._echoes.get(version)
        if sock is None:
            protocol = socket.IPPROTO_ICMPV6 if six else socket.IPPROTO_ICMP
            sock = self._echoes[version] = self._target.submit(self._make, address, socket.SOCK_RAW, protocol).result()
            self._loop.add_reader(sock.fileno(), self._echo_replies, sock, six)
        ours = token & 0xFFFF
        self._echo_tokens[(ours, sequence)] = (token, ident)
        body = struct.pack("!BBHHH", 128 if six else 8, 0, 0, ours, sequence) + data
        if not six:
            body = body[:2] + checksum(body).to_bytes(2, "big") + body[4:]
        sock.sendto(body, (address, 0))

    def _echo_replies(self, sock: socket.socket, six: bool) -> None:
        packet, peer = sock.recvfrom(65535)
        body = packet if six else packet[(packet[0] & 15) * 4 :]
        kind, _, _, ours, sequence = struct.unpack_from("!BBHHH", body)
        if kind == (129 if six else 0) and (pair := self._echo_tokens.pop((ours, sequence), None)):
            self.on_datagram(udp.EchoReply(pair[0], peer[0], pair[1], sequence, body[8:]))

"""ICMP echo of the app at the agent, through ping sockets.

Theory of operation: a ping socket (icmp(7): SOCK_DGRAM, IPPROTO_ICMP) needs no right where net.ipv4.ping_group_range includes our
group, and a raw socket needs NET_RAW; the first that opens is used. The kernel puts its own identifier into what a ping socket
sends, so requests are told apart by a sequence number of ours, and the app's identifier and sequence return with the reply.

Limits: 4,096 requests under way per family, the oldest go first. Where no socket opens nobody answers, and `why_not` says so.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections import OrderedDict
from collections.abc import Callable

from bridge.protocol import udp
from bridge.protocol.packets import checksum

_MOST = 4096
_PER_WAKE = 64
_ICMP = struct.Struct("!BBHHH")
_REQUEST, _REPLY = {4: 8, 6: 128}, {4: 0, 6: 129}


def why_not() -> str | None:
    """Why ICMP echo cannot be served here; None if it can."""
    try:
        _open(4)[0].close()
    except OSError:
        return "ping gets no answer: the target's net.ipv4.ping_group_range excludes the agent, and the agent has no NET_RAW"
    return None


class Echoes:
    def __init__(self, loop: asyncio.AbstractEventLoop, send: Callable[[udp.Message], None]) -> None:
        self._loop = loop
        self._send = send
        self._families: dict[int, _Family | None] = {}

    def on_echo(self, message: udp.Echo) -> None:
        version = 6 if ":" in message.address else 4
        if version not in self._families:
            try:
                self._families[version] = _Family(self._loop, self._send, version)
            except OSError:
                self._families[version] = None
        family = self._families[version]
        if family is not None:
            family.send(message)

    def close(self) -> None:
        for family in self._families.values():
            if family is not None:
                family.close()
        self._families.clear()


class _Family:
    def __init__(self, loop: asyncio.AbstractEventLoop, send: Callable[[udp.Message], None], version: int) -> None:
        self._loop = loop
        self._send = send
        self._version = version
        self._sock, self._raw = _open(version)
        self._ident = int.from_bytes(os.urandom(2), "big")  # a raw socket hears everyone's replies
        self._next = 0
        self._waiting: OrderedDict[int, udp.Echo] = OrderedDict()
        loop.add_reader(self._sock.fileno(), self._readable)

    def send(self, message: udp.Echo) -> None:
        self._next = (self._next + 1) & 0xFFFF
        self._waiting.pop(self._next, None)
        self._waiting[self._next] = message
        if len(self._waiting) > _MOST:
            self._waiting.popitem(last=False)
        packet = _ICMP.pack(_REQUEST[self._version], 0, 0, self._ident, self._next) + message.data
        if self._raw and self._version == 4:
            packet = packet[:2] + checksum(packet).to_bytes(2, "big") + packet[4:]  # of ICMPv6 and of ping sockets the kernel makes it
        try:
            self._sock.sendto(packet, (message.address, 0))
        except OSError:
            self._waiting.pop(self._next, None)  # no route: a ping that gets no answer

    def close(self) -> None:
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()

    def _readable(self) -> None:
        for _ in range(_PER_WAKE):
            try:
                packet, place = self._sock.recvfrom(65535)
            except BlockingIOError:
                return
            except OSError:
                continue  # an ICMP error for one of ours: no answer comes
            if self._raw and self._version == 4:
                packet = packet[(packet[0] & 0x0F) * 4 :]
            if len(packet) < _ICMP.size:
                continue
            kind, _, _, ident, sequence = _ICMP.unpack_from(packet)
            if kind != _REPLY[self._version] or (self._raw and ident != self._ident):
                continue
            asked = self._waiting.get(sequence)
            address = place[0].partition("%")[0]
            if asked is not None and asked.address == address:
                del self._waiting[sequence]
                self._send(udp.EchoReply(asked.token, address, asked.ident, asked.sequence, packet[_ICMP.size :]))


def _open(version: int) -> tuple[socket.socket, bool]:
    family, protocol = (socket.AF_INET, socket.IPPROTO_ICMP) if version == 4 else (socket.AF_INET6, socket.IPPROTO_ICMPV6)
    flags = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    try:
        return socket.socket(family, socket.SOCK_DGRAM | flags, protocol), False
    except OSError:
        return socket.socket(family, socket.SOCK_RAW | flags, protocol), True

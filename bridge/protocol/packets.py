"""IP packets of the session's tun: what the app sent, and what it is to receive, as bytes without I/O.

Theory of operation: the kernel at the tun's other end is ours, so a packet is whole and its checksum right; only what a
UDP socket or ping(8) makes is understood, the rest is named by its protocol. What we build has right checksums, since the
app's kernel verifies them. Formats: RFC 791, 768, 792; RFC 8200, 4443.

The tun's MTU is that of the largest IPv4 packet, so only an IPv6 datagram of more than 65,487 bytes comes in pieces, all at
once and in order: `Fragments` puts them together (RFC 8200 4.5).

Limits: no IP options are written; 16 datagrams in pieces at once. Fragments of IPv4 are not understood (`None`).
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

ICMP, UDP, ICMPV6 = 1, 17, 58
_HOP_LIMIT = 64
_QUOTE4_BYTES = 548  # RFC 1812 4.3.2.3: an error is at most 576 bytes
_QUOTE6_BYTES = 1232  # RFC 4443 2.4c: an error fits the minimum MTU of 1280
_V4 = struct.Struct("!BBHHHBBH4s4s")
_V6 = struct.Struct("!IHBB16s16s")
_UDP = struct.Struct("!HHHH")
_ECHO = struct.Struct("!BBHHH")
_ERROR = struct.Struct("!BBHI")
_FRAGMENT_MASK = 0x3FFF  # more fragments, and the offset
_FRAGMENT_HEADER = 44
_FRAGMENT = struct.Struct("!BBH")
_MAX_IN_PIECES = 16
_ECHO_REQUEST4, _ECHO_REPLY4, _UNREACHABLE4, _BAD_PROTOCOL = 8, 0, 3, 2
_ECHO_REQUEST6, _ECHO_REPLY6, _UNREACHABLE6, _PARAMETER6, _BAD_NEXT_HEADER = 128, 129, 1, 4, 1

# name of the errno → code of "destination unreachable", IPv4 and IPv6: what the app's kernel turns back into that errno
UNREACHABLE_CODES: dict[str, tuple[int, int]] = {
    "ECONNREFUSED": (3, 4),
    "EHOSTUNREACH": (1, 3),
    "ENETUNREACH": (0, 0),
    "EACCES": (13, 1),
    "EPERM": (13, 1),
    "ETIMEDOUT": (1, 3),
}


@dataclass(frozen=True, slots=True)
class Udp:
    source: str
    source_port: int
    destination: str
    destination_port: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Echo:
    """An echo request."""

    source: str
    destination: str
    ident: int
    sequence: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Other:
    """A packet of another kind; `protocol` is IP's number for it."""

    source: str
    destination: str
    protocol: int


def parse(packet: bytes | memoryview) -> Udp | Echo | Other | None:
    """What the app sent; None for what is no whole packet."""
    data = bytes(packet)
    if len(data) >= 20 and data[0] >> 4 == 4:
        start, end, fragment = (data[0] & 15) * 4, int.from_bytes(data[2:4], "big"), int.from_bytes(data[6:8], "big")
        if not 20 <= start <= end <= len(data) or fragment & _FRAGMENT_MASK:
            return None
        return _payload(str(IPv4Address(data[12:16])), str(IPv4Address(data[16:20])), data[9], data[start:end])
    if len(data) >= 40 and data[0] >> 4 == 6:
        end = 40 + int.from_bytes(data[4:6], "big")
        if end > len(data) or data[6] == _FRAGMENT_HEADER:
            return None
        return _payload(str(IPv6Address(data[8:24])), str(IPv6Address(data[24:40])), data[6], data[40:end])
    return None


class Fragments:
    """Puts the app's IPv6 fragments together."""

    def __init__(self) -> None:
        self._pieces: OrderedDict[bytes, list[bytes]] = OrderedDict()

    def whole(self, packet: bytes) -> bytes | None:
        """The packet itself, the one that its last piece completes, or None while pieces are missing."""
        if len(packet) < 48 or packet[0] >> 4 != 6 or packet[6] != _FRAGMENT_HEADER:
            return packet
        kind, _, place = _FRAGMENT.unpack_from(packet, 40)
        offset, more = place & 0xFFF8, place & 1
        key = packet[8:40] + packet[44:48]
        pieces = self._pieces.setdefault(key, []) if offset == 0 else self._pieces.get(key)
        end = 40 + int.from_bytes(packet[4:6], "big")
        if pieces is None or offset != sum(map(len, pieces)) or not 48 < end <= len(packet) or offset + end - 48 > 0xFFFF:
            self._pieces.pop(key, None)
            return None
        pieces.append(packet[48:end])
        if len(self._pieces) > _MAX_IN_PIECES:
            self._pieces.popitem(last=False)
        if more:
            return None
        payload = b"".join(self._pieces.pop(key, pieces))
        return packet[:4] + len(payload).to_bytes(2, "big") + bytes((kind,)) + packet[7:40] + payload


def build_udp(source: str, source_port: int, destination: str, destination_port: int, data: bytes) -> bytes:
    """A whole packet with one datagram."""
    head = _UDP.pack(source_port, destination_port, 8 + len(data), 0)
    total = checksum(_pseudo(source, destination, UDP, 8 + len(data)) + head + data)
    return _ip(source, destination, UDP, head[:6] + total.to_bytes(2, "big") + data)


def build_echo_reply(source: str, destination: str, ident: int, sequence: int, data: bytes) -> bytes:
    if ":" in source:
        return _icmpv6(source, destination, _ECHO.pack(_ECHO_REPLY6, 0, 0, ident, sequence) + data)
    return _icmp(source, destination, _ECHO.pack(_ECHO_REPLY4, 0, 0, ident, sequence) + data)


def build_unreachable(asked: bytes, source: str, code: tuple[int, int]) -> bytes:
    """The ICMP error that `source` sends about the packet `asked`; `code` is one of UNREACHABLE_CODES."""
    if asked[0] >> 4 == 6:
        return _icmpv6(source, str(IPv6Address(asked[8:24])), _ERROR.pack(_UNREACHABLE6, code[1], 0, 0) + asked[:_QUOTE6_BYTES])
    return _icmp(source, str(IPv4Address(asked[12:16])), _ERROR.pack(_UNREACHABLE4, code[0], 0, 0) + asked[:_QUOTE4_BYTES])


def build_protocol_unreachable(packet: bytes) -> bytes | None:
    """The answer of a host that does not speak the packet's protocol; None where RFC 1122 and 4443 forbid one."""
    parsed = parse(packet)
    if parsed is None:
        return None
    if packet[0] >> 4 == 6:
        if IPv6Address(parsed.destination).is_multicast or IPv6Address(parsed.source).is_unspecified:
            return None
        body = _ERROR.pack(_PARAMETER6, _BAD_NEXT_HEADER, 0, 6) + packet[:_QUOTE6_BYTES]  # 6: where "next header" stands
        return _icmpv6(parsed.destination, parsed.source, body)
    destination = IPv4Address(parsed.destination)
    if destination.is_multicast or destination.is_unspecified or destination == IPv4Address("255.255.255.255"):
        return None
    if IPv4Address(parsed.source).is_unspecified:
        return None
    return _icmp(parsed.destination, parsed.source, _ERROR.pack(_UNREACHABLE4, _BAD_PROTOCOL, 0, 0) + packet[:_QUOTE4_BYTES])


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071): 2^16 is 1 modulo 65,535, so the sum of 16-bit words is the number itself modulo that.

    One division of a long number is some hundred times quicker than adding words in Python. Never 0, which in UDP says "none".
    """
    if len(data) % 2:
        data += b"\0"
    return 0xFFFF - int.from_bytes(data, "big") % 0xFFFF


def _payload(source: str, destination: str, protocol: int, data: bytes) -> Udp | Echo | Other | None:
    if protocol == UDP:
        if len(data) < 8:
            return None
        source_port, destination_port, length, _ = _UDP.unpack_from(data)
        if not 8 <= length <= len(data):
            return None
        return Udp(source, source_port, destination, destination_port, data[8:length])
    request = {ICMP: _ECHO_REQUEST4, ICMPV6: _ECHO_REQUEST6}.get(protocol)
    if request is not None and len(data) >= 8 and data[0] == request and data[1] == 0:
        _, _, _, ident, sequence = _ECHO.unpack_from(data)
        return Echo(source, destination, ident, sequence, data[8:])
    return Other(source, destination, protocol)


def _icmp(source: str, destination: str, body: bytes) -> bytes:
    return _ip(source, destination, ICMP, body[:2] + checksum(body).to_bytes(2, "big") + body[4:])


def _icmpv6(source: str, destination: str, body: bytes) -> bytes:
    total = checksum(_pseudo(source, destination, ICMPV6, len(body)) + body)
    return _ip(source, destination, ICMPV6, body[:2] + total.to_bytes(2, "big") + body[4:])


def _ip(source: str, destination: str, protocol: int, payload: bytes) -> bytes:
    if ":" in source:
        return _V6.pack(6 << 28, len(payload), protocol, _HOP_LIMIT, IPv6Address(source).packed, IPv6Address(destination).packed) + payload
    ends = IPv4Address(source).packed, IPv4Address(destination).packed
    head = _V4.pack(0x45, 0, 20 + len(payload), 0, 0, _HOP_LIMIT, protocol, 0, *ends)
    return head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + payload


def _pseudo(source: str, destination: str, protocol: int, length: int) -> bytes:
    if ":" in source:
        return IPv6Address(source).packed + IPv6Address(destination).packed + struct.pack("!II", length, protocol)
    return IPv4Address(source).packed + IPv4Address(destination).packed + struct.pack("!HH", protocol, length)

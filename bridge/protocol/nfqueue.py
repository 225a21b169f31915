"""Messages of the kernel's packet queue (NFQUEUE) over nfnetlink, without I/O.

Theory of operation: a netfilter rule hands the first SYN of a flow to a queue; the kernel holds it there until a verdict
names its id. Three messages are enough: bind to a queue, a held packet, a verdict (linux/netfilter/nfnetlink_queue.h).
Message headers are in host order, everything inside attributes in network order.

Limits: only what is needed of a TCP SYN is read of the packet; anything else is `None` and dropped by the caller.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv6Address

NFNL_SUBSYS_QUEUE = 3
_MSG_PACKET, _MSG_VERDICT, _MSG_CONFIG = 0x300, 0x301, 0x302
_NLM_F_REQUEST, _NLM_F_ACK = 1, 4
_NLMSG_ERROR = 2
_ATTR_PACKET_HDR, _ATTR_VERDICT_HDR, _ATTR_MARK, _ATTR_PAYLOAD = 1, 2, 3, 10
_CFG_CMD, _CFG_PARAMS, _CFG_QUEUE_MAXLEN = 1, 2, 3
_CMD_BIND = 1
_COPY_PACKET = 2

NF_DROP, NF_ACCEPT = 0, 1

_NLMSGHDR = struct.Struct("=IHHII")
_ATTR = struct.Struct("=HH")


@dataclass(frozen=True, slots=True)
class HeldSyn:
    """The first packet of a flow; the kernel holds it until a verdict names `packet_id`."""

    packet_id: int
    app_addr: str
    app_port: int
    address: str
    port: int


@dataclass(frozen=True, slots=True)
class QueueError:
    """The kernel refused a request: `errno` is positive."""

    errno: int


def bind_request(queue: int, max_len: int) -> bytes:
    """Bind to `queue`, ask for whole packets, hold at most `max_len` of them; each part asks for an acknowledgement."""
    command = struct.pack("!BxH", _CMD_BIND, 0)
    params = struct.pack("!IB", 0xFFFF, _COPY_PACKET)
    return (
        _config(queue, _CFG_CMD, command)
        + _config(queue, _CFG_PARAMS, params)
        + _config(queue, _CFG_QUEUE_MAXLEN, struct.pack("!I", max_len))
    )


def verdict(queue: int, packet_id: int, decision: int, mark: int | None = None) -> bytes:
    """Let the held packet go (NF_ACCEPT) or drop it; `mark` is put on the packet before later chains see it."""
    body = struct.pack("!II", decision, packet_id)
    attributes = _ATTR.pack(4 + len(body), _ATTR_VERDICT_HDR) + body
    if mark is not None:
        attributes += _ATTR.pack(8, _ATTR_MARK) + struct.pack("!I", mark)
    return _message(_MSG_VERDICT, queue, attributes, _NLM_F_REQUEST)


def parse(data: bytes) -> list[HeldSyn | QueueError | int]:
    """Messages of one datagram: a SYN, an error, or (an int) the id of a packet that is no TCP over IP: drop it."""
    found: list[HeldSyn | QueueError | int] = []
    offset = 0
    while offset + _NLMSGHDR.size <= len(data):
        length, kind, _, _, _ = _NLMSGHDR.unpack_from(data, offset)
        if length < _NLMSGHDR.size or offset + length > len(data):
            break
        if kind == _NLMSG_ERROR and length >= _NLMSGHDR.size + 4:
            (code,) = struct.unpack_from("=i", data, offset + _NLMSGHDR.size)
            if code:
                found.append(QueueError(-code))
        elif kind == _MSG_PACKET:
            packet = _packet(data, offset + _NLMSGHDR.size + 4, offset + length)
            if packet is not None:
                found.append(packet)
        offset += (length + 3) & ~3
    return found


def _config(queue: int, attribute: int, body: bytes) -> bytes:
    padded = body + bytes(-len(body) % 4)
    return _message(_MSG_CONFIG, queue, _ATTR.pack(4 + len(body), attribute) + padded, _NLM_F_REQUEST | _NLM_F_ACK)


def _message(kind: int, queue: int, attributes: bytes, flags: int) -> bytes:
    header = _NLMSGHDR.pack(_NLMSGHDR.size + 4 + len(attributes), kind, flags, 0, 0)
    return header + struct.pack("!BBH", 0, 0, queue) + attributes


def _packet(data: bytes, offset: int, end: int) -> HeldSyn | int | None:
    packet_id: int | None = None
    payload = b""
    while offset + 4 <= end:
        length, kind = _ATTR.unpack_from(data, offset)
        if length < 4 or offset + length > end:
            break
        kind &= 0x3FFF
        if kind == _ATTR_PACKET_HDR and length >= 8:
            (packet_id,) = struct.unpack_from("!I", data, offset + 4)
        elif kind == _ATTR_PAYLOAD:
            payload = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    if packet_id is None:
        return None
    return _syn(packet_id, payload) or packet_id


def _syn(packet_id: int, ip: bytes) -> HeldSyn | None:
    if len(ip) >= 40 and ip[0] >> 4 == 4 and ip[9] == 6:
        start = (ip[0] & 15) * 4
        if len(ip) < start + 4:
            return None
        app_port, port = struct.unpack_from("!HH", ip, start)
        return HeldSyn(packet_id, _ipv4(ip[12:16]), app_port, _ipv4(ip[16:20]), port)
    if len(ip) >= 60 and ip[0] >> 4 == 6 and ip[6] == 6:
        app_port, port = struct.unpack_from("!HH", ip, 40)
        return HeldSyn(packet_id, str(IPv6Address(ip[8:24])), app_port, str(IPv6Address(ip[24:40])), port)
    return None


def _ipv4(raw: bytes) -> str:
    return f"{raw[0]}.{raw[1]}.{raw[2]}.{raw[3]}"

"""Messages of UDP and ICMP echo between bridge and agent, without I/O. One message is the body of one frame.

Theory of operation: an *association* is one UDP socket of the app's, and one socket at the agent; its number is the bridge's
choice. Datagrams of both ways carry the peer's address, so one association speaks with many peers.

    kind u8, number u32, family u8 (4 or 6), address 4 or 16, then by kind:
      1 Datagram      port u16, data
      2 Unreachable   port u16, the errno's name             agent → bridge: an ICMP error came for that peer
      3 Echo          ident u16, sequence u16, data          bridge → agent
      4 EchoReply     ident u16, sequence u16, data          agent → bridge; `token` as in the Echo
    kind u8, number u32:
      5 Forget                                               either way: the association is closed

Limits: 65,535 bytes of data, a name of 32 letters; whatever else is a RemoteProtocolError.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from bridge.errors import LocalProtocolError, RemoteProtocolError

MAX_DATA_BYTES = 65535
MAX_MESSAGE_BYTES = 1 + 4 + 1 + 16 + 4 + MAX_DATA_BYTES

_DATAGRAM, _UNREACHABLE, _ECHO, _ECHO_REPLY, _FORGET = 1, 2, 3, 4, 5
_HEAD = struct.Struct("!BI")
_PORT = struct.Struct("!H")
_ECHO_HEAD = struct.Struct("!HH")


@dataclass(frozen=True, slots=True)
class Datagram:
    """`address` and `port` are the cluster's end: the destination on the way out, the real sender on the way back."""

    association: int
    address: str
    port: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Unreachable:
    association: int
    address: str
    port: int
    errno_name: str


@dataclass(frozen=True, slots=True)
class Echo:
    token: int
    address: str
    ident: int
    sequence: int
    data: bytes


@dataclass(frozen=True, slots=True)
class EchoReply:
    token: int
    address: str
    ident: int
    sequence: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Forget:
    association: int


Message = Datagram | Unreachable | Echo | EchoReply | Forget


def encode(message: Message) -> bytes:
    """The frame's body. Raises LocalProtocolError for what no kernel would have given us."""
    try:
        match message:
            case Datagram(association, address, port, data):
                return _head(_DATAGRAM, association, address) + _PORT.pack(port) + _bounded(data)
            case Unreachable(association, address, port, errno_name):
                return _head(_UNREACHABLE, association, address) + _PORT.pack(port) + errno_name.encode("ascii")[:32]
            case Echo(token, address, ident, sequence, data):
                return _head(_ECHO, token, address) + _ECHO_HEAD.pack(ident, sequence) + _bounded(data)
            case EchoReply(token, address, ident, sequence, data):
                return _head(_ECHO_REPLY, token, address) + _ECHO_HEAD.pack(ident, sequence) + _bounded(data)
            case Forget(association):
                return _HEAD.pack(_FORGET, association)
    except (struct.error, UnicodeError, AddressValueError) as exc:
        raise LocalProtocolError(f"no datagram message can be made of {type(message).__name__}: {exc}") from exc


def decode(body: bytes) -> Message:
    """The message of one frame. Raises RemoteProtocolError."""
    if len(body) < _HEAD.size:
        raise RemoteProtocolError("a datagram message is cut short")
    kind, number = _HEAD.unpack_from(body)
    if kind == _FORGET:
        if len(body) != _HEAD.size:
            raise RemoteProtocolError("a datagram message has too many bytes")
        return Forget(number)
    address, rest = _address(body)
    try:
        if kind == _DATAGRAM:
            return Datagram(number, address, _PORT.unpack_from(rest)[0], _received(rest[2:]))
        if kind == _UNREACHABLE:
            return Unreachable(number, address, _PORT.unpack_from(rest)[0], _name(rest[2:]))
        if kind in (_ECHO, _ECHO_REPLY):
            ident, sequence = _ECHO_HEAD.unpack_from(rest)
            return (Echo if kind == _ECHO else EchoReply)(number, address, ident, sequence, _received(rest[4:]))
    except struct.error as exc:
        raise RemoteProtocolError("a datagram message is cut short") from exc
    raise RemoteProtocolError(f"a datagram message of unknown kind {kind}")


def _head(kind: int, number: int, address: str) -> bytes:
    if ":" in address:
        return _HEAD.pack(kind, number) + b"\x06" + IPv6Address(address).packed
    return _HEAD.pack(kind, number) + b"\x04" + IPv4Address(address).packed


def _bounded(data: bytes) -> bytes:
    if len(data) > MAX_DATA_BYTES:
        raise LocalProtocolError(f"a datagram of {len(data)} bytes")
    return data


def _address(body: bytes) -> tuple[str, bytes]:
    family = body[_HEAD.size : _HEAD.size + 1]
    start = _HEAD.size + 1
    if family == b"\x04" and len(body) >= start + 4:
        return str(IPv4Address(body[start : start + 4])), body[start + 4 :]
    if family == b"\x06" and len(body) >= start + 16:
        return str(IPv6Address(body[start : start + 16])), body[start + 16 :]
    raise RemoteProtocolError("a datagram message without a whole address")


def _received(data: bytes) -> bytes:
    if len(data) > MAX_DATA_BYTES:
        raise RemoteProtocolError(f"a datagram of {len(data)} bytes")
    return data


def _name(raw: bytes) -> str:
    if not 0 < len(raw) <= 32 or not raw.isascii() or not raw.decode("ascii").isalnum():
        raise RemoteProtocolError("an error's name that is none")
    return raw.decode("ascii")

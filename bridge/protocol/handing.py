"""What bridge and agent say to each other where the bridge hands the app's connections over: one message a packet (SOCK_SEQPACKET).

    agent     Hello     first: the token that it was told on the control channel
    bridge    Dial      connect from the target's namespace
    agent     Opened    … it is, and the app's connection may come
              Refused   … the errno's name
    bridge    Take      the app's connection, its descriptor beside it (SCM_RIGHTS, unix(7))
              Abort     the app has given up, or the flow is to be reset
    agent     Ended     both sides of a flow have ended, or one was reset

Numbers are the bridge's, each used once. A flow that was taken ends with Ended, after Abort too; one that was not, with Abort.

Limits: a packet of MAX_PACKET bytes. There is no version: both are of one release's images, and Hand (protocol/control.py) is only
answered by an agent that knows it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from bridge.errors import RemoteProtocolError
from bridge.model.fields import printable

SOCKET = "/run/mbridge-hand/bridge.sock"  # in both containers
TOKEN_BYTES = 32
MAX_PACKET = 512
_MAX_TEXT = 255

_NUMBERED = struct.Struct("!cQ")
_DIAL = struct.Struct("!cQH")
_ENDED = struct.Struct("!cQQQ")


@dataclass(frozen=True, slots=True)
class Hello:
    token: bytes


@dataclass(frozen=True, slots=True)
class Dial:
    """`address` is IPv4 or IPv6, as text."""

    number: int
    address: str
    port: int


@dataclass(frozen=True, slots=True)
class Opened:
    number: int


@dataclass(frozen=True, slots=True)
class Refused:
    number: int
    errno_name: str


@dataclass(frozen=True, slots=True)
class Take:
    number: int


@dataclass(frozen=True, slots=True)
class Abort:
    number: int


@dataclass(frozen=True, slots=True)
class Ended:
    """`sent` and `received` are bytes, as the app sees them; `how` is for the log."""

    number: int
    sent: int
    received: int
    how: str


ToAgent = Dial | Take | Abort
ToBridge = Hello | Opened | Refused | Ended
Message = ToAgent | ToBridge


def encode(message: Message) -> bytes:
    match message:
        case Dial(number, address, port):
            return _DIAL.pack(b"D", number, port) + address.encode()
        case Opened(number):
            return _NUMBERED.pack(b"O", number)
        case Take(number):
            return _NUMBERED.pack(b"T", number)
        case Ended(number, sent, received, how):
            return _ENDED.pack(b"E", number, sent, received) + _clipped(how)
        case Refused(number, errno_name):
            return _NUMBERED.pack(b"R", number) + errno_name.encode()
        case Abort(number):
            return _NUMBERED.pack(b"A", number)
        case Hello(token):
            return b"H" + token


def decode(packet: bytes) -> Message:
    """Raises RemoteProtocolError for what is no message."""
    try:
        match packet[:1]:
            case b"D":
                _, number, port = _DIAL.unpack_from(packet)
                return Dial(number, _text(packet, _DIAL.size), port)
            case b"O":
                return Opened(_number(packet))
            case b"T":
                return Take(_number(packet))
            case b"E":
                _, number, sent, received = _ENDED.unpack_from(packet)
                return Ended(number, sent, received, _text(packet, _ENDED.size))
            case b"R":
                return Refused(_NUMBERED.unpack_from(packet)[1], _text(packet, _NUMBERED.size))
            case b"A":
                return Abort(_number(packet))
            case b"H" if len(packet) == 1 + TOKEN_BYTES:
                return Hello(packet[1:])
    except (struct.error, UnicodeDecodeError) as exc:
        raise RemoteProtocolError("handing: a packet of another shape") from exc
    raise RemoteProtocolError("handing: an unknown packet")


def _clipped(text: str) -> bytes:
    """What fits of it; no half of a character at the end."""
    return text.encode()[:_MAX_TEXT].decode(errors="ignore").encode()


def _number(packet: bytes) -> int:
    kind_and_number: tuple[bytes, int] = _NUMBERED.unpack(packet)
    return kind_and_number[1]


def _text(packet: bytes, at: int) -> str:
    if not 0 < len(packet) - at <= _MAX_TEXT:
        raise RemoteProtocolError("handing: a text of no length, or too long")
    return printable(packet[at:].decode())

"""What bridge and agent say to each other beside the app's bytes: subsystem `mbridge-control`, JSON objects in frames.

    both          Hello      first, at once: protocol version, release, capabilities
    agent         FactsTold  the target's network identity, after the bridge's Hello
    bridge        Ask        put one DNS message to a nameserver of the target's own
    agent         Answer     its answer, or the errno's name of why there is none
    bridge        Hand       connections may be handed over (protocol/handing.py), to who says this token

Versions: two peers of one major version work together, whatever the minor: unknown message types and unknown fields are ignored,
so a newer peer must not depend on an answer to what the older one cannot know (`Hello.capabilities` says what it can).
Another major version is refused by both, each naming the two versions.

Limits: a frame of at most MAX_FRAME bytes; texts are checked for type and length before anyone sees them.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any

from bridge.errors import RemoteProtocolError, VersionMismatch
from bridge.model.facts import Facts
from bridge.model.fields import maybe_text, number, printable, read_object, text, texts

VERSION = (1, 0)
MAX_FRAME = 1 << 20
_MAX_DNS = 65535
_MAX_TEXT = 256
_MAX_CAPABILITIES = 64

SUBSYSTEM_CONTROL, SUBSYSTEM_UDP, SUBSYSTEM_SECRET = "mbridge-control", "mbridge-udp", "mbridge-secret"
SECRET_BYTES = 32
SECRET_TAKEN = b"\x01"  # the one byte that answers a secret


class FlowRefused(Exception):
    """The agent's dial failed: `errno_name` ("ECONNREFUSED") is what the target itself would have got."""

    def __init__(self, errno_name: str) -> None:
        super().__init__(errno_name)
        self.errno_name = errno_name


@dataclass(frozen=True, slots=True)
class Hello:
    version: tuple[int, int]
    release: str
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FactsTold:
    facts: Facts


@dataclass(frozen=True, slots=True)
class Ask:
    """`over_tcp`: only TCP will do (the app asked that way). Otherwise UDP."""

    number: int
    nameserver: str
    query: bytes
    over_tcp: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """`answer` is empty when `error` (an errno's name, "ETIMEDOUT") is set."""

    number: int
    answer: bytes
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Hand:
    token: bytes


Message = Hello | FactsTold | Ask | Answer | Hand


def encode(message: Message) -> bytes:
    """The body of one frame."""
    match message:
        case Hello(version, release, capabilities):
            value: dict[str, Any] = {"type": "hello", "version": version, "release": release, "capabilities": capabilities}
        case FactsTold(facts):
            value = {"type": "facts", "facts": facts.to_json()}
        case Ask(number, nameserver, query, over_tcp):
            value = {"type": "ask", "id": number, "nameserver": nameserver, "query": _base64(query), "tcp": over_tcp}
        case Answer(number, answer, error):
            value = {"type": "answer", "id": number, "answer": _base64(answer), "error": error}
        case Hand(token):
            value = {"type": "hand", "token": _base64(token)}
    return json.dumps(value, separators=(",", ":")).encode()


def decode(body: bytes) -> Message | None:
    """The message in one frame; None for a type that a newer peer knows. Raises RemoteProtocolError."""
    value = read_object(body, "control")
    match value.get("type"):
        case "hello":
            capabilities = texts(value, "capabilities", "control", most=_MAX_TEXT, most_items=_MAX_CAPABILITIES)
            return Hello(_version(value.get("version")), _text(value, "release"), capabilities)
        case "facts":
            return FactsTold(Facts.from_json(value.get("facts")))
        case "ask":
            return Ask(number(value, "id", "control"), _text(value, "nameserver"), _bytes(value, "query"), value.get("tcp") is True)
        case "answer":
            error = maybe_text(value, "error", "control", most=_MAX_TEXT)
            return Answer(number(value, "id", "control"), _bytes(value, "answer"), error)
        case "hand":
            return Hand(_bytes(value, "token"))
        case str():
            return None
        case _:
            raise RemoteProtocolError("control: a message without a type")


def check_version(theirs: Hello, them: str) -> None:
    """Raises VersionMismatch unless the peer (`them`: "agent", "bridge") speaks our major version."""
    if theirs.version[0] != VERSION[0]:
        raise VersionMismatch(
            f"the {them} speaks link version {theirs.version[0]}.{theirs.version[1]} (release {printable(theirs.release)}), "
            f"this side {VERSION[0]}.{VERSION[1]}",
            hint="use bridge and agent images of one release: mbridge images build",
        )


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(value: dict[str, Any], name: str) -> bytes:
    try:
        return base64.b64decode(text(value, name, "control", most=_MAX_DNS * 4 // 3 + 4), validate=True)
    except (ValueError, binascii.Error) as exc:
        raise RemoteProtocolError(f"control: {name} is no base64") from exc


def _text(value: dict[str, Any], name: str) -> str:
    return text(value, name, "control", most=_MAX_TEXT)


def _version(value: object) -> tuple[int, int]:
    if isinstance(value, list) and len(value) == 2:
        major, minor = value
        if type(major) is int and type(minor) is int and 0 <= major < 1 << 31 and 0 <= minor < 1 << 31:
            return major, minor
    raise RemoteProtocolError("control: version is not [major, minor]")

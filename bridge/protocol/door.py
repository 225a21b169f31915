"""What host CLI and bridge tell each other on a control connection: one JSON object a line, without I/O.

Theory of operation: docs/design/001-spine.md, "The door". The host connects, says `configure` once, then brings what the
bridge asks for by `dial`; the bridge answers `ready` or `failed`, and `status` at each change. Unknown keys are ignored, so
that a newer half may say more; an unknown type is `None` from `decode` for the same reason.

    host → bridge   Configure  CarrierFailed  Agent  Names  Stop
    bridge → host   Dial  Ready  Status  Failed

Limits: a line of 1 MiB.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from bridge.errors import LocalProtocolError, RemoteProtocolError
from bridge.model.facts import BridgeConfig, Facts

MAX_LINE_BYTES = 1 << 20

LinkState = Literal["connecting", "connected", "reconnecting", "failed"]
_LINK_STATES = ("connecting", "connected", "reconnecting", "failed")


@dataclass(frozen=True, slots=True)
class Configure:
    """All that a bridge is told; once per control connection."""

    config: BridgeConfig


@dataclass(frozen=True, slots=True)
class CarrierFailed:
    """The carrier that was asked for as `id` could not be had. `final`: asking again will not help before an `Agent`."""

    id: int
    why: str
    final: bool = False


@dataclass(frozen=True, slots=True)
class Agent:
    """The agent was made anew."""

    host_key: str
    agent_id: str


@dataclass(frozen=True, slots=True)
class Names:
    """The containers on the app's networks, all of them."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Stop:
    """Close the link in order and exit."""


@dataclass(frozen=True, slots=True)
class Dial:
    """Please bring a carrier; those of `avoid` ("direct", "exec") have just failed."""

    id: int
    avoid: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ready:
    """The netns is wired: the app may start. `engine_resolv_conf` is to be given back to a later bridge of this netns."""

    facts: Facts
    engine_resolv_conf: str


@dataclass(frozen=True, slots=True)
class LinkStatus:
    """`since` is in seconds of the Unix epoch; `why` is the last error's words, kept while it matters."""

    state: LinkState
    since: float
    via: str | None = None
    why: str | None = None


@dataclass(frozen=True, slots=True)
class Status:
    """`holder`: who holds SYNs, "nft" or "iptables"; None: connections are accepted first, and reset where the dial fails."""

    link: LinkStatus
    warnings: tuple[str, ...] = ()
    holder: str | None = None
    flows: int = 0
    flows_ever: int = 0
    associations: int = 0


@dataclass(frozen=True, slots=True)
class Failed:
    """The bridge cannot do its work; `error` names a class of bridge.errors."""

    error: str
    message: str
    hint: str | None = None


ToBridge = Configure | CarrierFailed | Agent | Names | Stop
ToHost = Dial | Ready | Status | Failed
Message = ToBridge | ToHost


def encode(message: Message) -> bytes:
    """One line, its newline included."""
    match message:
        case Configure(config):
            body = {"type": "configure", **config.to_json()}
        case CarrierFailed():
            body = {"type": "carrier-failed", **asdict(message)}
        case Ready(facts, resolv_conf):
            body = {"type": "ready", "facts": facts.to_json(), "engine_resolv_conf": resolv_conf}
        case _:
            body = {"type": type(message).__name__.lower(), **asdict(message)}
    line = json.dumps(body, separators=(",", ":")).encode() + b"\n"
    if len(line) > MAX_LINE_BYTES:
        raise LocalProtocolError(f"a {body['type']} message of {len(line)} bytes does not pass the bridge's door")
    return line


def decode(line: bytes) -> Message | None:
    """The message of one line, or None for a type that is not known here. Raises RemoteProtocolError."""
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise RemoteProtocolError("a line of the bridge's door is not JSON") from exc
    if not isinstance(data, dict):
        raise RemoteProtocolError("a line of the bridge's door is no object")
    match data.get("type"):
        case "configure":
            return Configure(BridgeConfig.from_json(data))
        case "carrier-failed":
            return CarrierFailed(_number(data, "id"), _text(data, "why"), data.get("final") is True)
        case "agent":
            return Agent(_text(data, "host_key"), _text(data, "agent_id"))
        case "names":
            return Names(_texts(data, "names"))
        case "stop":
            return Stop()
        case "dial":
            return Dial(_number(data, "id"), _texts(data, "avoid"))
        case "ready":
            return Ready(Facts.from_json(data.get("facts")), _text(data, "engine_resolv_conf"))
        case "status":
            return _status(data)
        case "failed":
            return Failed(_text(data, "error"), _text(data, "message"), _maybe(data, "hint"))
        case str():
            return None
    raise RemoteProtocolError("a line of the bridge's door has no type")


class LineReader:
    """Cuts what comes in into lines."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are now whole, without their newlines. Raises RemoteProtocolError past the limit."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES or any(len(line) > MAX_LINE_BYTES for line in lines):
            raise RemoteProtocolError("a line of the bridge's door is too long")
        return lines


def _status(data: dict[str, Any]) -> Status:
    link = data.get("link")
    if not isinstance(link, dict) or link.get("state") not in _LINK_STATES:
        raise RemoteProtocolError("status: the link's state is not known")
    since = link.get("since")
    if not isinstance(since, int | float) or isinstance(since, bool) or not math.isfinite(since):
        raise RemoteProtocolError("status: since is no number")
    return Status(
        LinkStatus(link["state"], float(since), _maybe(link, "via"), _maybe(link, "why")),
        _texts(data, "warnings"),
        _maybe(data, "holder"),
        *(_number(data, name) if name in data else 0 for name in ("flows", "flows_ever", "associations")),
    )


def _number(data: dict[str, Any], name: str) -> int:
    value = data.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise RemoteProtocolError(f"{name} is missing or no number")
    return value


def _text(data: dict[str, Any], name: str) -> str:
    value = data.get(name)
    if not isinstance(value, str):
        raise RemoteProtocolError(f"{name} is missing or no text")
    return value


def _maybe(data: dict[str, Any], name: str) -> str | None:
    return None if data.get(name) is None else _text(data, name)


def _texts(data: dict[str, Any], name: str) -> tuple[str, ...]:
    value = data.get(name) or []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise RemoteProtocolError(f"{name} is no list of texts")
    return tuple(value)

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
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from bridge.errors import LocalProtocolError, RemoteProtocolError
from bridge.model.facts import BridgeConfig, Facts
from bridge.model.fields import an_object, maybe_text, number, read_object, seconds, text, texts

MAX_LINE_BYTES = 1 << 20

LinkState = Literal["connecting", "connected", "reconnecting", "failed"]
_LINK_STATES = get_args(LinkState)


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
    """`since` is in seconds of the Unix epoch; `why` is the last error's words, kept while it matters.

    `handed`: connections are handed to the agent itself, which is on the same engine (engine/handing.py).
    """

    state: LinkState
    since: float
    via: str | None = None
    why: str | None = None
    handed: bool = False


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
    data = read_object(line, "a line of the bridge's door")
    kind = data.get("type")
    match kind:
        case "configure":
            return Configure(BridgeConfig.from_json(data))
        case "carrier-failed":
            return CarrierFailed(number(data, "id", kind), text(data, "why", kind), data.get("final") is True)
        case "agent":
            return Agent(text(data, "host_key", kind), text(data, "agent_id", kind))
        case "names":
            return Names(texts(data, "names", kind))
        case "stop":
            return Stop()
        case "dial":
            return Dial(number(data, "id", kind), texts(data, "avoid", kind))
        case "ready":
            return Ready(Facts.from_json(data.get("facts")), text(data, "engine_resolv_conf", kind))
        case "status":
            return _status(data)
        case "failed":
            return Failed(text(data, "error", kind), text(data, "message", kind), maybe_text(data, "hint", kind))
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
    link = an_object(data.get("link"), "status: link")
    if link.get("state") not in _LINK_STATES:
        raise RemoteProtocolError("status: the link's state is not known")
    return Status(
        LinkStatus(
            link["state"],
            seconds(link, "since", "status"),
            maybe_text(link, "via", "status"),
            maybe_text(link, "why", "status"),
            link.get("handed") is True,
        ),
        texts(data, "warnings", "status"),
        maybe_text(data, "holder", "status"),
        *(number(data, name, "status", 0) for name in ("flows", "flows_ever", "associations")),
    )

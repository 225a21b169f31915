"""A session's states, and its status as `mbridge status --json` prints it.

    starting --> ready <--> reconnecting
       |           |             |
       +-----------+------+------+--> stopping --> (gone)
       |           |      |
       +-----------+------+--> failed --> stopping

`reconnecting` means: the app runs, CLUSTER traffic waits. `failed` means: the session cannot go on by itself; what it has
made stands until `mbridge down`. The host process writes a status at each change to the session's status.json.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, Self

from bridge.errors import BridgeError, LocalProtocolError


class State(StrEnum):
    STARTING = "starting"
    READY = "ready"
    RECONNECTING = "reconnecting"
    STOPPING = "stopping"
    FAILED = "failed"


TRANSITIONS: dict[State, frozenset[State]] = {
    State.STARTING: frozenset({State.READY, State.RECONNECTING, State.STOPPING, State.FAILED}),
    State.READY: frozenset({State.RECONNECTING, State.STOPPING, State.FAILED}),
    State.RECONNECTING: frozenset({State.READY, State.STOPPING, State.FAILED}),
    State.STOPPING: frozenset({State.FAILED}),  # the undo itself failed
    State.FAILED: frozenset({State.STOPPING}),
}


@dataclass(frozen=True, slots=True)
class LinkStatus:
    """The link's part: `via` is its carrier ("direct"), `state` up, down or connecting, `since` as in SessionStatus."""

    via: str | None = None
    state: str = "down"
    since: str | None = None


@dataclass(frozen=True, slots=True)
class SessionStatus:
    """What is known of one session. `since` is the time of the last change of state, ISO 8601 in UTC ("2026-03-01T09:30:00Z").

    `ports` are the app's published ports; `agent` the agent's container; `holder` how SYNs are held ("nft", "iptables"; None:
    accepted first); `handed`: the app's new connections are handed to the agent itself, on the same engine, and go by no carrier;
    `warnings` what is degraded; `environ` that one of them which is about the app's environment: read once, it holds as long as the app,
    whoever serves it.
    """

    id: str
    target: str
    state: State
    since: str
    why: str | None = None
    link: LinkStatus = field(default_factory=LinkStatus)
    agent: str | None = None
    ports: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    environ: str | None = None
    holder: str | None = None
    handed: bool = False
    flows: int = 0
    app: str | None = None  # its key in `apps:`, else "app"
    container: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Lists for tuples, the state as its word: equal to what json.loads gives back."""
        data = asdict(self)
        return data | {"state": self.state.value, "ports": list(self.ports), "warnings": list(self.warnings)}

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Fields of later versions are left out. Raises BridgeError for what is no status."""
        try:
            if not isinstance(value, dict):
                raise TypeError("not an object")
            known = {item.name for item in fields(cls)}
            data: dict[str, Any] = {name: item for name, item in value.items() if name in known}
            link = data.get("link") or {}
            data["link"] = LinkStatus(**{item.name: link[item.name] for item in fields(LinkStatus) if item.name in link})
            data["state"] = State(data["state"])
            for name in ("ports", "warnings"):
                data[name] = tuple(str(item) for item in data.get(name) or ())
            return cls(**data)
        except (TypeError, ValueError, KeyError) as exc:
            raise BridgeError(f"the session's status cannot be read: {exc}", hint="mbridge down removes what the session made") from exc

    def changed(self, state: State, since: str, why: str | None = None) -> Self:
        """The status after a change of state. Raises LocalProtocolError for one that TRANSITIONS does not allow."""
        if state == self.state:
            return replace(self, why=why)
        if state not in TRANSITIONS[self.state]:
            raise LocalProtocolError(f"a session does not go from {self.state} to {state}")
        return replace(self, state=state, since=since, why=why)

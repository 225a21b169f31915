from __future__ import annotations

import json

import pytest

from bridge.errors import BridgeError, LocalProtocolError
from bridge.model.session import TRANSITIONS, LinkStatus, SessionStatus, State

STATUS = SessionStatus(
    "abcdef", "docker/x", State.READY, "2026-03-01T09:30:00Z", link=LinkStatus("direct", "up", "2026-03-01T09:30:00Z"), ports=("8000:8000",)
)


def test_a_status_survives_json_and_keeps_the_published_keys() -> None:
    data = json.loads(json.dumps(STATUS.to_json()))
    assert data == STATUS.to_json()
    assert SessionStatus.from_json(data) == STATUS
    assert {"id", "target", "state", "since", "why", "link", "agent", "ports"} <= set(data)
    assert set(data["link"]) == {"via", "state", "since"}


def test_a_status_of_a_later_version_is_read_and_nonsense_is_told() -> None:
    assert SessionStatus.from_json(STATUS.to_json() | {"later": 1}) == STATUS
    for broken in (None, {}, STATUS.to_json() | {"state": "flying"}, STATUS.to_json() | {"link": 5}):
        with pytest.raises(BridgeError):
            SessionStatus.from_json(broken)


def test_every_state_can_be_stopped_and_only_the_tables_changes_are_allowed() -> None:
    for state in State:
        assert state is State.STOPPING or State.STOPPING in TRANSITIONS[state]
    changed = STATUS.changed(State.RECONNECTING, "2026-03-01T10:00:00Z", "the carrier was cut")
    assert (changed.state, changed.since, changed.why) == (State.RECONNECTING, "2026-03-01T10:00:00Z", "the carrier was cut")
    with pytest.raises(LocalProtocolError):
        STATUS.changed(State.STARTING, "2026-03-01T10:00:00Z")


def test_another_reason_for_the_same_state_keeps_its_since() -> None:
    assert STATUS.changed(State.READY, "later", "x").since == STATUS.since

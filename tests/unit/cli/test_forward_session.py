"""A whole `mbridge forward` against a fake place: what ends it, and that nothing is left."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bridge.cli import places, sessions
from bridge.cli.cmd_forward import Forward
from bridge.cli.forward_session import forward
from bridge.errors import BridgeError, Forbidden, HostKeyMismatch, LinkLost, VersionMismatch
from tests.unit.cli.hosted import WISH, FakePlace, Quiet

FORBIDDEN = Forbidden("create", "pods/portforward", "shop")


@pytest.fixture
def place(state: Path, monkeypatch: pytest.MonkeyPatch) -> FakePlace:
    made = FakePlace()
    monkeypatch.setattr(places, "place_of", lambda wish, session="": made)
    sessions.root().mkdir(parents=True, exist_ok=True)
    for name in ("id_ed25519", "id_ed25519.pub"):
        (sessions.root() / name).write_text(name)
    return made


@pytest.mark.parametrize(
    "error", [FORBIDDEN, VersionMismatch("3, not 1"), HostKeyMismatch("a second host key")], ids=lambda one: type(one).__name__
)
def test_what_no_other_dial_can_help_ends_a_forward_and_leaves_nothing(place: FakePlace, error: BridgeError) -> None:
    place.dials = [LinkLost("no answer"), error]

    async def run() -> None:
        async with asyncio.timeout(10):
            await forward(WISH, [Forward("127.0.0.1", 0, "db", 5432)], Quiet())  # type: ignore[arg-type]  # a teller

    with pytest.raises(type(error), match=error.message):
        asyncio.run(run())
    assert not place.present
    assert place.distrusted == isinstance(error, HostKeyMismatch), "else a new start would meet the same agent"
    assert not sessions.all_sessions()

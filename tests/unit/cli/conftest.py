"""Every test in a folder of its own, and a whole session of the host process, played against fakes."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge.adapters.docker.engine import Engine
from bridge.cli import hosting, places, sessions
from bridge.cli.sessions import SessionFolder
from tests.unit.cli.hosted import Play, World
from tests.unit.fake_engine import FakeEngine


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No mbridge.yaml of whoever runs the tests, and no file of a test's in their folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the state folder is made."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def folder(state: Path) -> SessionFolder:
    return SessionFolder(sessions.root() / "abcdef")


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Iterator[Play]:
    """Runs a scenario; its world has been left as it was found when it returns."""
    folder = Path(tempfile.mkdtemp(prefix="mbt"))  # short: an address of a Unix socket has 107 bytes
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
    (folder / "mbridge").mkdir(mode=0o700)
    for name in ("id_ed25519", "id_ed25519.pub"):
        (folder / "mbridge" / name).write_text(name)

    def run(scenario: Callable[[World], Coroutine[Any, Any, None]]) -> None:
        async def all_of_it() -> None:
            async with asyncio.timeout(20), FakeEngine(folder) as engine:
                world = World(engine)

                async def own_engine() -> Engine:
                    return await Engine(engine.endpoint).connect()

                async def ensure(*_: object) -> str:
                    return "bridge:1"

                monkeypatch.setattr(places, "own_engine", own_engine)
                monkeypatch.setattr(places, "place_of", lambda wish, session="", hand_volume=None: world.place)
                monkeypatch.setattr(hosting, "ensure", ensure)
                await scenario(world)
                world.assert_nothing_is_left()

        asyncio.run(all_of_it())

    yield run
    shutil.rmtree(folder)

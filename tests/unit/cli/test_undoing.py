"""`down` of what nobody serves: by its plan, and by labels alone where the plan is damaged."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from bridge.adapters.docker.engine import Engine
from bridge.cli import sessions, undoing
from bridge.cli.sessions import SessionFolder
from bridge.errors import CleanupError
from bridge.model import plan as plans
from bridge.model.plan import Agent, Container, Folder, Op, Plan, Start, Volume
from bridge.model.session import SessionStatus, State
from tests.unit.fake_engine import FakeEngine

pytestmark = pytest.mark.usefixtures("state")
Damage = Callable[[str], str]


def _with_engine(tmp_path: Path, scenario: Callable[[FakeEngine], Coroutine[Any, Any, None]]) -> None:
    async def all_of_it() -> None:
        async with asyncio.timeout(10), FakeEngine(tmp_path) as engine:
            await scenario(engine)

    asyncio.run(all_of_it())


def _labels(session: str, role: str) -> dict[str, str]:
    return {"mbridge.session": session, "mbridge.role": role, "mbridge.owner": sessions.owner()}


async def _made(engine: FakeEngine, folder: SessionFolder) -> Plan:
    """A session as a killed process leaves it, and a neighbour's."""
    client = await Engine(engine.endpoint).connect()
    steps: list[Op] = [Folder(str(folder.run)), Agent("docker/x"), Volume("mbridge-abcdef")]
    for role in ("pause", "app"):
        body = {"Image": "app:1", "Labels": _labels(folder.id, role)}
        steps += [Container(role, f"mbridge-abcdef-{role}", body), Start(f"mbridge-abcdef-{role}")]
        await client.start(await client.create(f"mbridge-abcdef-{role}", body))
    await client.create("mbridge-abcdef-agent", {"Image": "app:1", "Labels": _labels(folder.id, "agent")})
    await client.create("neighbour", {"Image": "app:1", "Labels": _labels("zzzzzz", "app")})
    for session in ("abcdef", "zzzzzz"):
        await client.create_volume(f"mbridge-{session}", {"mbridge.session": session, "mbridge.owner": sessions.owner()})
    endpoint = engine.endpoint.to_json()
    plan = Plan(folder.id, "docker/x", "app", "who:what", endpoint, {"target": "docker/x", "endpoint": endpoint}, tuple(steps))
    folder.save(plan)
    folder.run.mkdir()
    return plan


def _neighbours_alone(engine: FakeEngine) -> None:
    assert [one.name for one in engine.containers.values()] == ["neighbour"]
    assert list(engine.volumes) == ["mbridge-zzzzzz"]


DAMAGES: dict[str, Damage] = {
    "truncated": lambda text: text[: len(text) * 2 // 3],
    "empty": lambda text: "",
    "no JSON": lambda text: "\x00\x01 nothing",
    "a list": lambda text: "[]",
    "another version": lambda text: text.replace('"version": 1', '"version": 99'),
    "unknown step": lambda text: text.replace('"do": "volume"', '"do": "fly"'),
    "wrong type": lambda text: text.replace('"name": "mbridge-abcdef"', '"name": 7'),
    "no endpoint": lambda text: json.dumps({**json.loads(text), "engine": {"socket": "x"}}),
    "no target": lambda text: json.dumps({**json.loads(text), "place": {"goal": "x"}}),
    "another session's": lambda text: text.replace('"session": "abcdef"', '"session": "zzzzzz"'),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_after_any_damage_to_the_plan_all_that_bears_the_sessions_label_goes_and_nothing_else(
    tmp_path: Path, folder: SessionFolder, monkeypatch: pytest.MonkeyPatch, damage: Damage
) -> None:
    async def scenario(engine: FakeEngine) -> None:
        monkeypatch.setenv("DOCKER_HOST", engine.endpoint.url)
        await _made(engine, folder)
        file = folder.path / "plan.json"
        file.write_text(damage(file.read_text()))
        told = await sessions.down(folder, lambda line: None)
        assert told is not None
        assert told.startswith("the ")
        assert "\n" not in told
        assert not folder.path.exists()
        _neighbours_alone(engine)

    _with_engine(tmp_path, scenario)


def test_of_a_plan_that_breaks_off_the_engine_is_asked_that_it_names(
    tmp_path: Path, folder: SessionFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the one that DOCKER_HOST names by now."""

    async def scenario(engine: FakeEngine) -> None:
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")
        text = plans.dumps(await _made(engine, folder))
        (folder.path / "plan.json").write_text(text[: text.index('"steps"')])
        assert await sessions.down(folder, lambda line: None)
        _neighbours_alone(engine)

    _with_engine(tmp_path, scenario)


def test_a_whole_plan_is_undone_without_a_word_and_finds_what_came_late(tmp_path: Path, folder: SessionFolder) -> None:
    async def scenario(engine: FakeEngine) -> None:
        await _made(engine, folder)
        client = await Engine(engine.endpoint).connect()
        await client.create("mbridge-abcdef-late", {"Image": "app:1", "Labels": _labels("abcdef", "bridge")})
        assert await sessions.down(folder, lambda line: None) is None
        _neighbours_alone(engine)

    _with_engine(tmp_path, scenario)


def test_what_the_engine_does_not_remove_is_named_and_the_plan_stays(tmp_path: Path, folder: SessionFolder) -> None:
    async def scenario(engine: FakeEngine) -> None:
        await _made(engine, folder)
        engine.refuse["DELETE /volumes/mbridge-abcdef"] = "device is busy"
        with pytest.raises(CleanupError, match="left: mbridge-abcdef"):
            await sessions.down(folder, lambda line: None)
        assert folder.plan() is not None

    _with_engine(tmp_path, scenario)


def test_what_a_lost_folder_left_is_swept_its_volume_too_and_known_sessions_stay(
    tmp_path: Path, folder: SessionFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(engine: FakeEngine) -> None:
        monkeypatch.setenv("DOCKER_HOST", engine.endpoint.url)
        await _made(engine, folder)
        client = await Engine(engine.endpoint).connect()
        await client.create(None, {"Image": "app:1", "Labels": _labels("", "probe")})  # a killed `doctor`'s
        for name in ("mbridge-yyyyyy", "mbridge-yyyyyy-hand"):
            await client.create_volume(name, {"mbridge.session": "yyyyyy", "mbridge.owner": sessions.owner()})
        odd = {"mbridge.session": "xxxxxx", "mbridge.owner": sessions.owner()}
        await client.create_volume("byhand", odd)  # somebody has copied our labels
        said: list[str] = []
        await undoing.sweep(said.append)
        assert sorted(said) == [
            "removing what a command left",
            "removing what session byhand left",
            "removing what session yyyyyy left",
            "removing what session zzzzzz left",
        ]
        assert list(engine.volumes) == ["mbridge-abcdef", "byhand"]
        assert engine.named("neighbour") is None
        assert engine.named("mbridge-abcdef-app") is not None

    _with_engine(tmp_path, scenario)


def test_a_damaged_plan_or_status_of_a_dead_session_is_shown_and_no_start_trips_over_it(folder: SessionFolder) -> None:
    with folder.lock():
        pass
    (folder.path / "plan.json").write_text("{")
    (folder.path / "status.json").write_text("{")
    status = sessions.current_status(folder)
    assert status is not None
    assert (status.state, status.target) == (State.FAILED, "?")
    assert "mbridge down" in str(status.why)
    assert sessions.orphan("who") is None
    assert sessions.running("who") is None


def test_a_session_that_has_just_begun_has_no_status_yet(folder: SessionFolder) -> None:
    with folder.lock():
        assert sessions.current_status(folder) is None
        folder.write_status(SessionStatus(folder.id, "docker/x", State.STARTING, sessions.now()))
        status = sessions.current_status(folder)
    assert status is not None
    assert status.state is State.STARTING

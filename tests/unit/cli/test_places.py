"""Where app and target are on one engine, and what a session makes there for handing; elsewhere nothing of it."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bridge.adapters.docker.endpoint import Endpoint
from bridge.adapters.docker.engine import Engine
from bridge.cli import hosting, places, sessions
from bridge.cli.place_docker import DockerPlace
from bridge.cli.sessions import SessionFolder
from bridge.model.facts import TargetFound
from bridge.model.plan import Agent, Container, Volume
from bridge.model.target import parse_target
from bridge.model.wish import AppWish, SessionWish

HAND = "/run/mbridge-hand"
Change = Callable[[SessionWish], SessionWish]
WISH = SessionWish(parse_target("docker/orders"), AppWish("app:1", command=("serve",)))


@pytest.fixture(autouse=True)
def contexts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two contexts: `here`, which is the current one, and `there`."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT"):
        monkeypatch.delenv(name, raising=False)
    for name in ("here", "there"):
        _context(tmp_path, name, f"tcp://{name}.example:2375")
    (tmp_path / "docker/config.json").write_text(json.dumps({"currentContext": "here"}))


def _context(tmp_path: Path, name: str, host: str) -> None:

    folder = tmp_path / "docker/contexts/meta" / hashlib.sha256(name.encode()).hexdigest()
    folder.mkdir(parents=True)
    (folder / "meta.json").write_text(json.dumps({"Name": name, "Endpoints": {"docker": {"Host": host}}}))


SHARED: dict[str, Change] = {
    "the same engine": lambda wish: wish,
    "of a compose service": lambda wish: replace(wish, target=parse_target("compose/shop/web")),
    "the current context by name": lambda wish: replace(wish, docker_context="here"),
}
APART: dict[str, Change] = {
    "another context": lambda wish: replace(wish, docker_context="there"),
    "a carrier by name: direct": lambda wish: replace(wish, via="direct"),
    "a carrier by name: exec": lambda wish: replace(wish, via="exec"),
    "a pod": lambda wish: replace(wish, target=parse_target("pod/orders-0")),
}


def test_an_engine_is_the_same_whoever_named_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://there.example:2375")
    assert places.shares_engine(replace(WISH, docker_context="there"))
    assert not places.shares_engine(replace(WISH, docker_context="here"))


def _planned(wish: SessionWish) -> tuple[list[Any], dict[str, Any]]:
    """The plan's steps, and the bridge's body."""
    folder = SessionFolder(sessions.root() / "abcdef")
    found = TargetFound("docker/orders", "container orders", "1", hostname="orders-1")
    plan = hosting._plan(wish, folder, found, Engine(Endpoint("unix:///nowhere.sock")), "bridge:1", {"Config": {}})
    (bridge,) = [step for step in plan.steps if isinstance(step, Container) and step.role == "bridge"]
    return list(plan.steps), bridge.body


@pytest.mark.parametrize("change", SHARED.values(), ids=SHARED.keys())
def test_on_one_engine_bridge_and_agent_share_a_volume_of_their_own(change: Change) -> None:
    wish = change(WISH)
    steps, bridge = _planned(wish)
    assert [step.name for step in steps if isinstance(step, Volume)] == ["mbridge-abcdef", "mbridge-abcdef-hand"]
    assert f"mbridge-abcdef-hand:{HAND}:nocopy" in bridge["HostConfig"]["Binds"]
    app = next(step.body for step in steps if isinstance(step, Container) and step.role == "app")
    assert HAND not in json.dumps(app), "whoever reaches that socket may knock; the app may not"
    assert any(isinstance(step, Agent) for step in steps)
    assert isinstance(places.place_of(wish, "abcdef", "mbridge-abcdef-hand"), DockerPlace)


@pytest.mark.parametrize("change", APART.values(), ids=APART.keys())
def test_elsewhere_there_is_no_such_volume(change: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "to_json", lambda wish: {})  # a cluster's is read from its kubeconfig
    steps, bridge = _planned(change(WISH))
    assert [step.name for step in steps if isinstance(step, Volume)] == ["mbridge-abcdef"]
    assert HAND not in json.dumps(bridge)


def test_a_hosted_session_tells_its_place_of_the_volume(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def place_of(wish: SessionWish, session: str = "", hand_volume: str | None = None) -> Any:
        asked.append((session, hand_volume))
        raise _Enough

    monkeypatch.setattr(places, "place_of", place_of)
    for wish in (WISH, replace(WISH, via="direct")):
        with pytest.raises(_Enough):
            asyncio.run(_host(wish))
    assert asked == [("abcdef", "mbridge-abcdef-hand"), ("abcdef", None)]


async def _host(wish: SessionWish) -> None:
    ui: Any = None
    hosting._Hosting(wish, ui, ui, Engine(Endpoint("unix:///nowhere.sock")), SessionFolder(sessions.root() / "abcdef"))


class _Enough(Exception):
    pass

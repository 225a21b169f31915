"""Where a target lives, from what the user wished, and again from a session's plan.

Each kind of place has a module of its own (place_docker, place_kube), imported when one of its targets is named.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from bridge.adapters.docker.endpoint import Endpoint, find_endpoint
from bridge.adapters.docker.engine import Engine
from bridge.cli import sessions
from bridge.engine.needs import Place
from bridge.errors import SpecError
from bridge.model.target import ComposeTarget, DockerTarget, parse_target
from bridge.model.wish import AppWish, SessionWish


async def own_engine() -> Engine:
    """The developer's own engine, where pause, bridge and app run. Raises EngineUnavailable."""
    return await Engine(find_endpoint(None, os.environ)).connect()


def place_of(wish: SessionWish, session: str = "", hand_volume: str | None = None) -> Place:
    """The place of the wish's target; asks nobody yet. `session` marks what is made there; look-ups alone need none.

    `hand_volume`: what the agent shares with a bridge of the same engine (`shares_engine`).
    """
    if isinstance(wish.target, DockerTarget | ComposeTarget):
        return _docker_place(wish, find_endpoint(wish.docker_context, os.environ), session, hand_volume)
    from bridge.adapters import images
    from bridge.cli.place_kube import KubePlace

    return KubePlace(wish, session, sessions.owner(), sessions.root(), images.tag("agent"))


def shares_engine(wish: SessionWish) -> bool:
    """Whether app and target are on one engine, and the user wishes for no carrier by name: then connections are handed over."""
    if wish.via != "auto" or not isinstance(wish.target, DockerTarget | ComposeTarget):
        return False
    return find_endpoint(wish.docker_context, os.environ).same_engine(find_endpoint(None, os.environ))


def to_json(wish: SessionWish) -> dict[str, Any]:
    """What `place_again` needs to clean up there later, from whatever environment."""
    words = ("namespace", "container", "context", "kubeconfig", "docker_context", "agent_kind", "agent_image")
    data: dict[str, Any] = {word: getattr(wish, word) for word in words}
    data["target"] = str(wish.target)
    if isinstance(wish.target, DockerTarget | ComposeTarget):
        data["endpoint"] = find_endpoint(wish.docker_context, os.environ).to_json()
    return data


def place_again(data: Mapping[str, Any], session: str) -> Place:
    """Raises SpecError for what `to_json` never wrote."""
    words = {key: value for key, value in data.items() if key not in ("target", "endpoint")}
    try:
        wish = SessionWish(target=parse_target(data["target"]), app=AppWish(image=""), **words)
    except (KeyError, TypeError, AttributeError) as exc:
        raise SpecError(f"the target's place cannot be read: {exc}") from exc
    if "endpoint" in data:
        return _docker_place(wish, Endpoint.from_json(data["endpoint"]), session)
    return place_of(wish, session)


def _docker_place(wish: SessionWish, endpoint: Endpoint, session: str, hand_volume: str | None = None) -> Place:
    from bridge.cli.place_docker import DockerPlace

    assert isinstance(wish.target, DockerTarget | ComposeTarget)  # the caller has looked
    return DockerPlace(
        wish.target,
        Engine(endpoint),
        session,
        sessions.owner(),
        via=wish.via,
        agent_image=wish.agent_image,
        ttl_s=wish.agent_ttl_s,
        hand_volume=hand_volume,
    )

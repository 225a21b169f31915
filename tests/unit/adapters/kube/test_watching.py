"""A target that is followed: what its pod's changes mean, and how often the API server is asked for them. In virtual time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any, cast

import pytest

from bridge.adapters.kube.api import Api, Missing, Unreachable
from bridge.adapters.kube.targets import PodFound
from bridge.adapters.kube.watching import Follower
from bridge.errors import Forbidden, TargetNotFound
from tests.unit import virtual

Json = dict[str, Any]


def pod(uid: str = "1", incarnation: str = "a", **status: Any) -> Json:
    running = {"name": "app", "containerID": f"containerd://{incarnation}", "state": {"running": {}}}
    return {"metadata": {"name": f"web-{uid}", "uid": uid}, "spec": {"containers": [{"name": "app"}]},
            "status": {"phase": "Running", "containerStatuses": [running], **status}}  # fmt: skip


def restarted(before: Json) -> Json:
    ended = {"terminated": {"reason": "OOMKilled", "exitCode": 137}}
    after = json.loads(json.dumps(before))
    after["status"]["containerStatuses"][0] |= {"containerID": "containerd://b", "lastState": ended}
    return cast("Json", after)


class Server:
    """Plays one watch after another: each a list of (kind, object), an error, or None for one that stays open for ever."""

    def __init__(self, *watches: list[tuple[str, Json]] | Exception | None, found: Json | None = None) -> None:
        self.watches = list(watches)
        self.found = found
        self.asked: list[tuple[str, float]] = []

    async def lines(self, path: str, query: Sequence[tuple[str, str]]) -> AsyncGenerator[bytes, None]:
        self.asked.append(("watch", asyncio.get_running_loop().time()))
        watch = self.watches.pop(0) if self.watches else None
        if isinstance(watch, Exception):
            raise watch
        for kind, value in watch or ():
            yield json.dumps({"type": kind, "object": value}).encode()
        if watch is None:
            await asyncio.Event().wait()

    async def get(self, path: str) -> Json:
        self.asked.append(("get", asyncio.get_running_loop().time()))
        if self.found is None:
            raise Missing('pods "web-1" not found')
        return self.found


async def never() -> PodFound:
    raise AssertionError("nobody looks for another pod")


def following(server: Server, find: Callable[[], Awaitable[PodFound]] = never) -> Follower:
    return Follower(cast("Api", server), "shop", PodFound(pod(), "app"), find)


def changes(server: Server, count: int, find: Callable[[], Awaitable[PodFound]] = never) -> list[tuple[str, str]]:
    seen: list[tuple[str, str]] = []

    async def follow() -> None:
        async for change in following(server, find).changes():
            seen.append(change)
            if len(seen) == count:
                return

    virtual.run(follow())
    return seen


def test_a_container_that_was_started_anew_is_back_with_how_the_last_one_ended() -> None:
    server = Server([("ADDED", pod()), ("MODIFIED", restarted(pod()))], None)
    assert changes(server, 1) == [("back", "container app of pod web-1 restarted (OOMKilled, exit code 137)")]


@pytest.mark.parametrize(
    ("last", "why"),
    [
        (("DELETED", pod()), "was deleted"),
        (("MODIFIED", pod("2")), "was replaced"),
        (("MODIFIED", pod(phase="Failed", reason="Evicted", message="The node was low on memory.")),
         "has ended (Evicted: The node was low on memory.)"),
    ],
)  # fmt: skip
def test_a_pod_that_is_no_more_is_gone_with_the_reason(last: tuple[str, Json], why: str) -> None:
    assert changes(Server([("ADDED", pod()), last], None), 1) == [("gone", f"pod web-1 {why}")]


def test_a_pod_that_went_between_two_watches_is_gone() -> None:
    assert changes(Server([]), 1) == [("gone", "pod web-1 was deleted")]


def test_after_the_end_the_next_ready_pod_is_waited_for_and_followed() -> None:
    answers: list[PodFound | Exception] = [TargetNotFound("no pod is ready"), Unreachable("away"), PodFound(pod("2"), "app")]

    async def find() -> PodFound:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    server = Server([("DELETED", pod())], [("ADDED", pod("2")), ("DELETED", pod("2"))])
    assert changes(server, 3, find) == [("gone", "pod web-1 was deleted"), ("moved", "pod web-2"), ("gone", "pod web-2 was deleted")]


def test_an_api_server_that_is_away_is_no_change() -> None:
    server = Server(Unreachable("away"), Unreachable("away"), [("ADDED", pod()), ("DELETED", pod())])
    assert changes(server, 1) == [("gone", "pod web-1 was deleted")]


def asked_in(server: Server, seconds: float) -> int:
    async def follow() -> None:
        async def nothing() -> None:
            async for change in following(server).changes():
                raise AssertionError(f"nothing has changed: {change}")

        task = asyncio.get_running_loop().create_task(nothing())
        await asyncio.sleep(seconds)
        task.cancel()
        assert not task.done()

    virtual.run(follow())
    return len(server.asked)


def test_where_watching_is_forbidden_the_pod_is_looked_at_every_thirty_seconds() -> None:
    assert asked_in(Server(Forbidden("watch", "pods", "shop"), found=pod()), 599) == 1 + 20


def test_watches_that_end_as_soon_as_they_begin_are_asked_for_less_and_less() -> None:
    """A proxy in between that lets no stream pass; at most four requests a minute in the end."""
    ends = Server(*[[("ADDED", pod())]] * 1000)
    assert asked_in(ends, 600) < 30
    refuses = Server(*[[("ERROR", {})]] * 1000, found=pod())
    assert asked_in(refuses, 600) < 60, "each with a look at the pod"


def test_an_idle_watch_costs_one_request() -> None:
    assert asked_in(Server(None), 600) == 1

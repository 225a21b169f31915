"""Follow a target: its pod's deletion, the pod that takes its place, restarts of its container.

    here --pod deleted, evicted, finished--> gone --another ready pod--> moved (here)
    here --its container started anew-----> back (the network agent lives on: it shares no PID namespace with it)

Theory of operation: one watch on the one pod, renewed every five minutes, so an idle session costs a request in five minutes;
where watching is forbidden, a look every 30 s. While nothing is there, the workload is asked at growing intervals. An API
server that does not answer is no change of the target: the watch is tried again until it is back. One that ends watches as soon as
they begin (a proxy that lets no stream pass) is asked at growing intervals too, 30 s in the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Literal

from bridge.adapters.kube.api import Api, Missing, Unreachable
from bridge.adapters.kube.targets import PodFound, container_status, path_of, pod_state
from bridge.errors import BridgeError, ClusterError, Forbidden, TargetNotFound

_log = logging.getLogger(__name__)
Json = dict[str, Any]
Change = tuple[Literal["gone", "back", "moved"], str]
_WATCH_S = 300
_POLL_S = 30.0
_AWAY_MAX_S = 5.0
_SOON_S = 10.0  # a watch that ended sooner was ended by somebody in between


class Follower:
    """Follows one target; `found` is the pod that is meant now."""

    def __init__(self, api: Api, namespace: str, found: PodFound, find: Callable[[], Awaitable[PodFound]]) -> None:
        self._api, self._namespace, self._find = api, namespace, find
        self.found = found
        self._may_watch = True

    async def changes(self) -> AsyncGenerator[Change, None]:
        """Until closed. Raises Forbidden alone."""
        while True:
            async with contextlib.aclosing(self._here()) as here:
                async for change in here:
                    yield change
            # the last one was `gone`
            self.found = await self._next()
            yield "moved", f"pod {self.found.name}"

    async def _here(self) -> AsyncGenerator[Change, None]:
        """Changes of this pod; the last one is `gone`."""
        started = _incarnation(self.found.pod, self.found.container)
        async with contextlib.aclosing(self._states()) as states:
            async for pod in states:
                if why := _gone(pod, self.found.uid):
                    yield "gone", f"pod {self.found.name} {why}"
                    return
                assert pod is not None  # _gone has an answer for None
                now = _incarnation(pod, self.found.container)
                if now and started and now != started:
                    ended = _last_end(pod, self.found.container)
                    yield "back", f"container {self.found.container} of pod {self.found.name} restarted{ended}"
                started = now or started

    async def _next(self) -> PodFound:
        pause, told = 0.2, ""
        while True:
            try:
                return await self._find()
            except TargetNotFound as error:
                if error.message != told:
                    _log.info("= target: %s", error.message)
                    told = error.message
            except Unreachable as error:
                _log.info("! %s", error.message)
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _AWAY_MAX_S)

    async def _states(self) -> AsyncGenerator[Json | None, None]:
        """The pod now and after each change; None once it is gone."""
        path, name, pause = path_of("pod", self._namespace), self.found.name, 0.2
        now = asyncio.get_running_loop().time
        while True:
            try:
                if not self._may_watch:
                    yield await self._api.get(f"{path}/{name}")
                    await asyncio.sleep(_POLL_S)
                    continue
                query = [("watch", "true"), ("fieldSelector", f"metadata.name={name}"), ("timeoutSeconds", str(_WATCH_S))]
                seen, began = False, now()
                async with contextlib.aclosing(self._api.lines(path, query)) as lines:
                    async for line in lines:
                        event = json.loads(line)
                        if event["type"] == "ERROR":
                            break
                        seen = True
                        yield None if event["type"] == "DELETED" else event["object"]
                if not seen:  # a watch begins with the object as it is: there is none
                    yield await self._api.get(f"{path}/{name}")
                if now() - began < _SOON_S:
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, _POLL_S)
                else:
                    pause = 0.2
            except Missing:
                yield None
            except Forbidden:
                if not self._may_watch:
                    raise
                self._may_watch = False
            except (Unreachable, ClusterError, ValueError) as error:
                _log.info("! watching pod %s: %s", name, error.message if isinstance(error, BridgeError) else error)
                await asyncio.sleep(pause)
                pause = min(pause * 2, _AWAY_MAX_S)


def _gone(pod: Json | None, uid: str) -> str:
    """Why this pod is the target no more; empty while it is."""
    if pod is None:
        return "was deleted"
    if pod["metadata"]["uid"] != uid:
        return "was replaced"
    if pod["metadata"].get("deletionTimestamp"):
        return "is being deleted"
    if pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
        said = pod["status"].get("message")
        return f"has ended ({pod_state(pod)}{': ' + said if said else ''})"
    return ""


def _incarnation(pod: Json, container: str) -> str:
    status = container_status(pod, container)
    return str(status.get("containerID") or "") if "running" in (status.get("state") or {}) else ""


def _last_end(pod: Json, container: str) -> str:
    ended = (container_status(pod, container).get("lastState") or {}).get("terminated") or {}
    return f" ({ended.get('reason')}, exit code {ended.get('exitCode')})" if ended else ""

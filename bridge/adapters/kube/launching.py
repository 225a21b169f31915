"""Bring an agent to life and see it start: request, its events while it waits, its first log line.

Theory of operation: the pod is watched where that is allowed, else looked at every 0.2 s; what the kubelet says while the
container waits is progress, and what it says when it gives up (an image that cannot be pulled) ends the wait, in its own words.
It says so in an event at once, in an ephemeral container's status up to 15 s later, so after 1.5 s events are read as well.
The first log line comes by following the log, so it costs one request however long Python takes to start.

    patch or create -> waiting -> running -> first line          Refused (admission, quota, Pod Security) at the first arrow
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

from bridge.adapters.kube import agents
from bridge.adapters.kube.api import STRATEGIC, Api, Missing, Refused, Unreachable
from bridge.adapters.kube.targets import path_of
from bridge.errors import AgentFailed, BridgeError, Forbidden, HostKeyMismatch

Json = dict[str, Any]
Progress = Callable[[str], None]
START_LIMIT_S = 120.0  # a big image on a slow registry; what is stuck ends long before
LINE_LIMIT_S = 20.0
_POLL_S = 0.2
_EVENTS_EACH_S = 1.5
_GUARD_AGAIN_S = 30.0  # behind a proxy that ends idle streams this is two requests each time; what was written meanwhile is read then
_GIVEN_UP = frozenset({"Failed", "BackOff", "InspectFailed", "ErrImageNeverPull"})


class Launcher:
    """Starts agents in one namespace."""

    def __init__(self, api: Api, namespace: str) -> None:
        self._api, self._namespace = api, namespace
        self._may_watch = True

    async def patch(self, pod: str, *containers: Json) -> Json:
        """Add ephemeral containers; the pod as it is then. Raises Refused with the API's own sentence, Forbidden."""
        path = path_of("pod", self._namespace, pod, "ephemeralcontainers")
        return await self._api.request("PATCH", path, (), agents.patch(*containers), STRATEGIC)

    async def create(self, pod: Json) -> Json:
        return await self._api.request("POST", path_of("pod", self._namespace), (), pod)

    async def delete(self, pod: str) -> None:
        with contextlib.suppress(Missing):
            await self._api.request("DELETE", path_of("pod", self._namespace, pod), [("gracePeriodSeconds", "0")])

    async def running(self, pod: str, container: str, progress: Progress) -> Json:
        """Wait until `container` runs; the pod as it is then. Raises AgentFailed in the kubelet's words."""
        said: list[str] = []

        def tell(message: str) -> None:
            if message and message not in said:
                said.append(message)
                progress(message)

        waits = [asyncio.ensure_future(self._by_status(pod, container, tell)), asyncio.ensure_future(self._by_events(pod, container, tell))]
        try:
            done, _ = await asyncio.wait(waits, timeout=START_LIMIT_S, return_when=asyncio.FIRST_COMPLETED)
            if done:
                return done.pop().result()
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        raise AgentFailed(f"the agent did not start in {START_LIMIT_S:.0f} s: {said[-1] if said else 'the node says nothing'}",
                          hint=f"kubectl describe pod {pod} -n {self._namespace}")  # fmt: skip

    async def _by_status(self, pod: str, container: str, tell: Progress) -> Json:
        async with contextlib.aclosing(self._states(pod)) as states:
            async for state in states:
                verdict, message = agents.waiting_for(state, container)
                message = message or _unscheduled(state)
                if verdict == "running":
                    return state
                if verdict == "ended":
                    raise AgentFailed(f"the agent ended at once: {message}", hint=self._logs(pod, container))
                if verdict == "stuck":
                    raise self._stuck(state, container, message)
                if message not in ("ContainerCreating", "PodInitializing"):
                    tell(message)
        raise AgentFailed(f"pod {pod} went away while the agent was starting")

    async def _by_events(self, pod: str, container: str, tell: Progress) -> Json:
        """Ends by raising only: where events may not be listed it waits for ever, beside `_by_status`."""
        path, query = f"/api/v1/namespaces/{self._namespace}/events", [("fieldSelector", f"involvedObject.name={pod}")]
        while True:
            await asyncio.sleep(_EVENTS_EACH_S)
            try:
                items = (await self._api.get(path, query))["items"]
            except BridgeError:
                await asyncio.Event().wait()
            for item in sorted(items, key=lambda item: str(item.get("lastTimestamp") or item.get("eventTime") or "")):
                field = str(item["involvedObject"].get("fieldPath") or "")
                if field and not field.endswith(f"{{{container}}}"):
                    continue  # of another container
                said = f"{item.get('reason')}: {item.get('message')}"
                if field and item.get("reason") in _GIVEN_UP:
                    raise self._stuck(await self._api.get(path_of("pod", self._namespace, pod)), container, said)
                if field:
                    tell(said)

    def _stuck(self, pod: Json, container: str, message: str) -> AgentFailed:
        left = ""
        if any(c["name"] == container for c in pod["spec"].get("ephemeralContainers") or ()):
            left = f"; the record of container {container} stays in the pod, Kubernetes cannot remove one"
        image = next((c["image"] for sort in ("ephemeralContainers", "containers") for c in pod["spec"].get(sort) or ()
                      if c["name"] == container), "?")  # fmt: skip
        if "image" in message.lower():
            ways = "another --agent-image that this cluster can pull, or --agent pod with a pull secret"
            hint = f"the node has no {image}: mbridge images load brings it into kind, k3d or minikube; else {ways}{left}"
        else:
            hint = f"kubectl describe pod {pod['metadata']['name']} -n {self._namespace}{left}"
        return AgentFailed(f"the agent cannot start: {message}", hint=hint)

    async def first_line(self, pod: str, container: str) -> tuple[str, int, str]:
        """(agent id, port, host key), from the very first line of the log. Raises AgentFailed."""
        lines = self._follow(pod, container)
        said: list[str] = []
        try:
            async with asyncio.timeout(LINE_LIMIT_S), contextlib.aclosing(lines):
                async for line in lines:
                    if (found := agents.first_line(line)) and not said:
                        return found
                    said.append(line.decode(errors="replace").strip())
                    if len(said) >= 40:
                        break
        except TimeoutError:
            said.append("it printed nothing")
        raise AgentFailed(f"the agent did not introduce itself: {' | '.join(said[-3:]) or 'it ended'}", hint=self._logs(pod, container))

    async def guard(self, pod: str, container: str) -> None:
        """Follow the log for as long as the container runs: a second introduction is someone else's. Raises HostKeyMismatch.

        The API server may go away meanwhile, or end the answer: the log is read from its beginning then.
        """
        while True:
            with contextlib.suppress(Unreachable):
                seen = 0
                async with contextlib.aclosing(self._follow(pod, container)) as lines:
                    async for line in lines:
                        seen += line.startswith(b"mbridge-agent ")
                        if seen > 1:
                            raise HostKeyMismatch(f"the log of {container} in pod {pod} holds a second host key: someone in that pod "
                                                  "writes into it", hint=self._logs(pod, container))  # fmt: skip
                if agents.waiting_for(await self._api.get(path_of("pod", self._namespace, pod)), container)[0] != "running":
                    return
            await asyncio.sleep(_GUARD_AGAIN_S)

    async def _follow(self, pod: str, container: str) -> AsyncGenerator[bytes, None]:
        path = path_of("pod", self._namespace, pod, "log")
        for attempt in range(20):
            try:
                async for line in self._api.lines(path, [("container", container), ("follow", "true")]):
                    yield line
                return
            except Refused as error:  # 400 while the kubelet has not yet told the API server that it runs
                if error.status != 400 or attempt == 19:
                    raise AgentFailed(f"the agent's log cannot be read: {error.said}") from error
                await asyncio.sleep(_POLL_S)

    async def _states(self, pod: str) -> AsyncGenerator[Json, None]:
        """The pod now and after each change, until it is deleted."""
        path = path_of("pod", self._namespace)
        started = asyncio.get_running_loop().time()
        while self._may_watch:
            query = [("watch", "true"), ("fieldSelector", f"metadata.name={pod}"), ("timeoutSeconds", "60")]
            try:
                async for line in self._api.lines(path, query):
                    event = json.loads(line)
                    if event["type"] == "DELETED":
                        return
                    if event["type"] == "ERROR":
                        break
                    yield event["object"]
            except Forbidden:
                self._may_watch = False
        while True:
            try:
                yield await self._api.get(path_of("pod", self._namespace, pod))
            except Missing:
                return
            await asyncio.sleep(_POLL_S if asyncio.get_running_loop().time() - started < 10 else 5 * _POLL_S)

    def _logs(self, pod: str, container: str) -> str:
        return f"kubectl logs {pod} -c {container} -n {self._namespace}"


def _unscheduled(pod: Json) -> str:
    for condition in pod.get("status", {}).get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return str(condition.get("message") or condition.get("reason") or "not scheduled")
    return ""

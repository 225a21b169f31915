"""The log of an agent in a pod, for `mbridge logs`.

Theory of operation: a session's status names its agent; one that was made anew bears the session's name and four letters more, maybe
in another pod. So the namespace's pods are looked through for both, and the one that began last is read. Its lines carry the
node's time stamps, which are taken off: after a connection that broke they say where to go on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from bridge.adapters.kube import agents
from bridge.adapters.kube.api import Missing, Refused
from bridge.adapters.kube.targets import container_status, path_of
from bridge.cli.kube_doctor import open_api
from bridge.errors import ClusterError, TargetNotFound

Json = dict[str, Any]


class PodLog:
    """`place` as the session's plan has it; `agent` looks up what its status names now. A reading.Source."""

    def __init__(self, place: Mapping[str, Any], session: str, agent: Callable[[], str | None]) -> None:
        self._place, self._session, self._agent = place, session, agent
        self._read: tuple[str, str] | None = None  # pod and container
        self._until = ""  # the time stamp of the last line read

    async def lines(self, follow: bool, tail: int | None, anew: Callable[[str], None]) -> AsyncIterator[str]:
        async with open_api(self._place.get("kubeconfig"), self._place.get("context")) as api:
            namespace = self._place.get("namespace") or api.access.namespace
            pods = (await api.get(path_of("pod", namespace)))["items"]
            found = newest(pods, self._session, self._agent())
            if found is None:
                raise TargetNotFound(f"no pod in namespace '{namespace}' holds an agent of session {self._session} that has begun",
                                     hint=f"mbridge status {self._session}")  # fmt: skip
            pod, container = found
            again = found == self._read
            if not again:
                if self._read is not None:
                    anew(f"{container} in pod {pod}")
                self._read, self._until = found, ""
            after = self._until
            query = [("container", container), ("timestamps", "true"), *([("follow", "true")] if follow else [])]
            query += [("tailLines", str(tail))] if tail is not None else []
            query += [("sinceTime", after)] if after else []  # to the second: what is older within it is left out below
            try:
                async for line in api.lines(path_of("pod", namespace, pod, "log"), query):
                    self._until, _, text = line.decode(errors="replace").rstrip("\r").partition(" ")
                    if self._until > after:
                        yield text
            except (Missing, Refused) as error:
                if again:  # its pod goes, and with it what it has said
                    return
                raise ClusterError(f"the log of {container} in pod {pod} cannot be read: {error.message}",
                                   hint=f"kubectl logs {pod} -c {container} -n {namespace}") from error  # fmt: skip


def newest(pods: list[Json], session: str, agent: str | None) -> tuple[str, str] | None:
    """(pod, container) of the session's agent that began last."""
    found: list[tuple[str, str, str]] = []
    for pod in pods:
        name = pod["metadata"]["name"]
        if (pod["metadata"].get("labels") or {}).get("mbridge.session") == session:
            found.append((_began(pod, "agent"), name, "agent"))
        for container in pod["spec"].get("ephemeralContainers") or ():
            if container["name"] == agent or agents.is_network_agent(container["name"], session):
                found.append((_began(pod, container["name"]), name, container["name"]))
    return max(begun)[1:] if (begun := [one for one in found if one[0]]) else None


def _began(pod: Json, container: str) -> str:
    state = container_status(pod, container).get("state") or {}
    return str((state.get("running") or state.get("terminated") or {}).get("startedAt") or "")

"""The log of an agent in a pod, for `mbridge logs`.

Theory of operation: a session's status names the agent that it began with; one that was made anew bears the session's name and four
letters more, maybe in another pod. So the namespace's pods are looked through for both, and the one that began last is read.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

from bridge.adapters.kube import agents
from bridge.adapters.kube.api import Missing, Refused
from bridge.adapters.kube.targets import container_status, path_of
from bridge.cli.kube_doctor import open_api
from bridge.cli.reading import Lines
from bridge.errors import ClusterError, TargetNotFound

Json = dict[str, Any]


def of_place(place: Mapping[str, Any], session: str, agent: str | None) -> Lines:
    """`place` as the session's plan has it, `agent` as its status names it."""

    async def lines(follow: bool, tail: int | None) -> AsyncIterator[str]:
        async with open_api(place.get("kubeconfig"), place.get("context")) as api:
            namespace = place.get("namespace") or api.access.namespace
            pods = (await api.get(path_of("pod", namespace)))["items"]
            found = newest(pods, session, agent)
            if found is None:
                raise TargetNotFound(f"no pod in namespace '{namespace}' holds an agent of session {session} any more",
                                     hint=f"mbridge status {session}")  # fmt: skip
            pod, container = found
            query = [("container", container), *([("follow", "true")] if follow else [])]
            query += [("tailLines", str(tail))] if tail is not None else []
            try:
                async for line in api.lines(path_of("pod", namespace, pod, "log"), query):
                    yield line.decode(errors="replace").rstrip("\r")
            except (Missing, Refused) as error:
                raise ClusterError(f"the log of {container} in pod {pod} cannot be read: {error.message}",
                                   hint=f"kubectl logs {pod} -c {container} -n {namespace}") from error  # fmt: skip

    return lines


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
    return max(found)[1:] if found else None


def _began(pod: Json, container: str) -> str:
    state = container_status(pod, container).get("state") or {}
    return str((state.get("running") or state.get("terminated") or {}).get("startedAt") or "")

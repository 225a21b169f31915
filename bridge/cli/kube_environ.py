"""The environment of the target's process in a pod, by the least that may read it.

    exec         cat /proc/1/environ in the target: nothing of it stays in the pod
    file agent   where the image has no cat, or process 1 is not the target's (a shared process namespace), or another user's
    spec         where neither is allowed: its literal values, and why no more

Limits: values pass through exec's stdout, never through a container's own, which is its log. The pod keeps a record of each file agent.
"""

from __future__ import annotations

import logging
from typing import Any

from bridge.adapters.kube import agents
from bridge.adapters.kube.api import Refused, Unreachable
from bridge.adapters.kube.carriers import Carriers
from bridge.adapters.kube.launching import Launcher
from bridge.adapters.kube.targets import PodFound, container_status
from bridge.errors import AgentFailed, ClusterError, Forbidden
from bridge.model.environ import Environ

log = logging.getLogger(__name__)
Json = dict[str, Any]


class EnvironReader:
    """For one session; `image` and `pull_policy` are the file agent's."""

    def __init__(self, launcher: Launcher, carriers: Carriers, image: str, pull_policy: str, session: str) -> None:
        self._launcher, self._carriers = launcher, carriers
        self._image, self._pull_policy, self._session = image, pull_policy, session

    async def read(self, found: PodFound) -> Environ:
        """The process's own; where that is refused the spec's, with a warning. Raises Unreachable."""
        try:
            shared = found.pod["spec"].get("shareProcessNamespace")
            environ = None if shared else await self._by_exec(found)
            return Environ(await self._by_agent(found) if environ is None else environ)
        except (AgentFailed, Refused, Forbidden) as refused:
            warning = f"the environment is the pod spec's, not the process's own: {refused.message}"
            return Environ(_of_spec(found.pod, found.container), warning)

    async def _by_exec(self, found: PodFound) -> bytes | None:
        """None where an agent may be able to; Forbidden where it would not be reached by exec either."""
        try:
            return await self._carriers.output(found.name, found.container, ["cat", "/proc/1/environ"])
        except (Forbidden, Unreachable):  # no answer is no reason to do with less
            raise
        except ClusterError as error:
            log.debug("! environment by exec: %s", error.message)
            return None

    async def _by_agent(self, found: PodFound) -> bytes:
        uid = agents.target_uid(found.pod, found.container)
        target_id = str(container_status(found.pod, found.container).get("containerID") or "").rpartition("//")[2]
        failed: ClusterError | None = None
        for rung in agents.file_rungs(uid):
            name = agents.fresh(f"{agents.PREFIX}{self._session}-env")
            body = agents.file_agent(name, self._image, self._pull_policy, found.container, rung, uid)
            try:
                await self._launcher.patch(found.name, body)
                await self._launcher.running(found.name, name, lambda _: None)
                command = [agents.PYTHON, "-m", "bridge.agent", "environ", "--container", target_id]
                return await self._carriers.output(found.name, name, command)
            except (Forbidden, Unreachable):
                raise
            except ClusterError as error:
                failed = error
                log.debug("! environment on rung %s: %s", rung, error.message)
        assert failed is not None  # there is at least one rung
        raise AgentFailed(f"no agent may read it: {failed.message}")


def _of_spec(pod: Json, container: str) -> bytes:
    """The literal values of a container's spec; references are left out."""
    for entry in (*pod["spec"].get("containers", ()), *pod["spec"].get("initContainers", ())):
        if entry["name"] == container:
            pairs = [f"{item['name']}={item['value']}" for item in entry.get("env") or () if "value" in item]
            return b"".join(pair.encode() + b"\0" for pair in pairs)
    return b""

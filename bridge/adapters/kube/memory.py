"""What we remember of agents that still run: enough to dial one again without asking for another.

    $XDG_STATE_HOME/mbridge/kube-agents/POD-UID.json     0600, by rename; one agent for each pod and key of the user

An entry is a claim, not a proof: it counts while the pod still runs that very container (its id), and the agent's host key,
which SSH pins, proves the rest. Another user has another state folder and another key, so never meets this agent.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path

_UID = re.compile(r"[0-9a-zA-Z-]{1,64}")


@dataclass(frozen=True, slots=True)
class Remembered:
    """`container_id` as the kubelet reports it; `made_of` is what the agent was asked to be (image, key, listen)."""

    name: str
    container_id: str
    agent_id: str
    host_key: str
    port: int
    made_of: str


class Memory:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def recall(self, pod_uid: str) -> Remembered | None:
        try:
            value = json.loads(self._path(pod_uid).read_text())
            return Remembered(**value)
        except (OSError, ValueError, TypeError):
            return None

    def keep(self, pod_uid: str, agent: Remembered) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._path(pod_uid)
        fresh = path.with_suffix(f".{os.getpid()}")
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "w") as file:
            json.dump(asdict(agent), file)
        fresh.replace(path)

    def forget(self, pod_uid: str) -> None:
        self._path(pod_uid).unlink(missing_ok=True)

    def _path(self, pod_uid: str) -> Path:
        if not _UID.fullmatch(pod_uid):
            raise ValueError(f"{pod_uid!r} is no uid")
        return self._folder / f"{pod_uid}.json"

"""How much memory a pod has left for an agent, which lives on the pod's limit: an ephemeral container has none of its own.

Theory of operation: the limit is the pod's own, or the sum of its containers' where all have one (what the kubelet writes into the pod's
cgroup); else there is none and nothing to ask. What is used is read in each running container, from its own cgroup, by exec: no
metrics server needs to be there, and no right beyond the one that the environment is read with. The target is asked first: it tells
which version of cgroups the node has. Page cache does not count, since the kernel gives it up first.

Limits: without exec, or without `cat` in the target's image, the limit alone is known. Memory of the kernel's own for the containers
counts on cgroup v2 alone. Of a pod's running containers six are asked, a request each; the others count as nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bridge.adapters.kube.targets import container_state, containers
from bridge.errors import ClusterError

log = logging.getLogger(__name__)
Json = dict[str, Any]
Read = Callable[[str, Sequence[str]], Awaitable[bytes]]  # (container, command): what it prints. Raises ClusterError
WANTED = 100 << 20
AGENT_TAKES = 82 << 20  # 50 MB idle, 32 MiB of buffers
MOST_ASKED = 6
_UNITS = {
    "Ki": 1 << 10,
    "Mi": 1 << 20,
    "Gi": 1 << 30,
    "Ti": 1 << 40,
    "Pi": 1 << 50,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "P": 10**15,
}


@dataclass(frozen=True, slots=True)
class _Stat:
    """Where a container reads what it uses, and which lines of it count."""

    path: str
    counted: frozenset[str]


_V2 = _Stat("/sys/fs/cgroup/memory.stat", frozenset({"anon", "shmem", "kernel"}))
_V1 = _Stat("/sys/fs/cgroup/memory/memory.stat", frozenset({"total_rss", "total_shmem"}))


@dataclass(frozen=True, slots=True)
class Headroom:
    """Bytes; `used` is None where nobody could be asked."""

    limit: int
    used: int | None = None

    @property
    def enough(self) -> bool:
        return self.limit - (self.used or 0) >= WANTED

    def __str__(self) -> str:
        if self.used is None:
            return f"its memory limit is {self.limit >> 20} MiB"
        return f"{max(0, self.limit - self.used) >> 20} of its {self.limit >> 20} MiB of memory are free"


def limit_of(pod: Json) -> int | None:
    """The pod's memory limit in bytes, as the kubelet sets it; None: it has none."""
    spec = pod["spec"]
    if (whole := _limit(spec)) is not None:
        return whole
    everyone = [*spec["containers"], *(spec.get("initContainers") or ())]
    limits = [_limit(one) for one in everyone]
    if any(one is None for one in limits):
        return None
    lasting = [_limit(one) or 0 for one in containers(pod)]
    return max(sum(lasting), *(one or 0 for one in limits))


def _limit(entry: Json) -> int | None:
    text = ((entry.get("resources") or {}).get("limits") or {}).get("memory")
    return None if text is None else quantity(str(text))


async def look(pod: Json, target: str, read: Read, but: str | None = None) -> Headroom | None:
    """None where the pod has no limit, and so nothing is asked.

    `target` is the container that must be told of to know anything; `but` is one that does not count: the agent that is used again.
    """
    limit = limit_of(pod)
    if limit is None:
        return None
    ephemeral = [one["name"] for one in pod["spec"].get("ephemeralContainers") or ()]
    names = [name for name in (*(one["name"] for one in containers(pod)), *ephemeral) if container_state(pod, name) == "running"]
    others = [name for name in names if name not in (target, but)][: MOST_ASKED - 1]
    for stat in (_V2, _V1):
        if (used := await _used(target, stat, read)) is not None:
            return Headroom(limit, used + sum(one or 0 for one in await asyncio.gather(*(_used(name, stat, read) for name in others))))
    return Headroom(limit)


async def _used(container: str, stat: _Stat, read: Read) -> int | None:
    try:
        said = await read(container, ["cat", stat.path])
    except ClusterError as error:
        log.debug("! memory of container %s: %s", container, error.message)
        return None
    pairs = (line.split() for line in said.decode(errors="replace").splitlines())
    return sum(int(pair[1]) for pair in pairs if len(pair) == 2 and pair[0] in stat.counted and pair[1].isdigit())


def quantity(text: str) -> int:
    """Kubernetes' quantities of bytes: 64Mi, 1G, 128974848, 129e6, 100m."""
    for unit, factor in _UNITS.items():
        if text.endswith(unit):
            return int(float(text.removesuffix(unit)) * factor)
    return int(float(text.removesuffix("m")) / 1000) if text.endswith("m") else int(float(text))

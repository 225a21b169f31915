"""What an engine's own lists say to a user of mbridge: which containers can be targets, and why some cannot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Json = Mapping[str, Any]
_PROJECT, _SERVICE = "com.docker.compose.project", "com.docker.compose.service"


@dataclass(frozen=True, slots=True)
class Listed:
    """`target` as it is written on the command line; `what` its image; `why_not` None where it can be one as it is."""

    target: str
    what: str
    state: str
    why_not: str | None = None


@dataclass(frozen=True, slots=True)
class Where:
    """Where targets are looked for: an engine, and a namespace of a cluster."""

    docker_context: str | None = None
    namespace: str | None = None
    context: str | None = None
    kubeconfig: str | None = None


def docker_targets(containers: Iterable[Json]) -> list[Listed]:
    """Each container that is not ours, by name."""
    return sorted((_listed(f"docker/{_name(one)}", one) for one in containers if not _ours(one)), key=_order)


def compose_targets(containers: Iterable[Json]) -> list[Listed]:
    """Each service of a compose project; of several containers the one that serves best stands for it."""
    found: dict[str, Listed] = {}
    for one in containers:
        labels = one.get("Labels") or {}
        if _ours(one) or _PROJECT not in labels or _SERVICE not in labels or labels.get("com.docker.compose.oneoff") == "True":
            continue
        item = _listed(f"compose/{labels[_PROJECT]}/{labels[_SERVICE]}", one)
        best = found.get(item.target)
        if best is None or (best.why_not is not None and item.why_not is None):
            found[item.target] = item
    return sorted(found.values(), key=_order)


def _listed(target: str, one: Json) -> Listed:
    image = str(one.get("Image", ""))
    if image.startswith("sha256:"):  # its name went to a newer image
        image = image.removeprefix("sha256:")[:12]
    return Listed(target, image, str(one.get("Status") or one.get("State", "")), _why_not(one))


def _why_not(one: Json) -> str | None:
    state = one.get("State")
    if state != "running":
        return "it is paused" if state == "paused" else "it does not run"
    if (one.get("HostConfig") or {}).get("NetworkMode") == "host":
        return "on its host's network: --yes-host-network"
    return None


def _ours(one: Json) -> bool:
    return "mbridge.session" in (one.get("Labels") or {})


def _name(one: Json) -> str:
    # A container that is linked to has further names, "/other/alias"; its own has one slash.
    names = [name.removeprefix("/") for name in one.get("Names") or ()]
    return next((name for name in names if "/" not in name), str(one.get("Id", ""))[:12])


def _order(item: Listed) -> tuple[bool, str]:
    return item.why_not is not None, item.target

"""What mbridge asks of a cluster, verb by verb, as data: `doctor` checks it, `doctor --role` prints it, docs/kubernetes.md shows it.

    run       find a ready pod, put the agent beside it, read its first log line, reach it by port-forward
    env       the target process's own environment, by exec (also the exec carrier)
    follow    watch instead of asking again and again           optional: without it mbridge looks every 30 s
    events    what the cluster says while the agent starts      optional: without it only the container's own state is shown
    helper    --agent pod, and targetless                       instead of pods/ephemeralcontainers

Nothing else is ever asked for: no Secret, no node, no cluster-wide right.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bridge.model.target import KubeTarget, Target, Targetless


@dataclass(frozen=True, slots=True)
class Right:
    """One verb on one resource; `without` says what is lost, None where it is needed."""

    verb: str
    resource: str  # "pods/ephemeralcontainers"
    feature: str
    group: str = ""
    without: str | None = None

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}"


_POLLING = "the target is looked at every 30 s instead of being watched"
_NO_ENV = "the environment is the pod spec's literal values, not the process's own; no exec carrier"
# A WebSocket is a GET, so "get" is what API servers up to 1.34 ask for; later ones ask for "create". kubectl needs both too.
RIGHTS = (
    Right("get", "pods", "run"),
    Right("list", "pods", "run"),
    Right("patch", "pods/ephemeralcontainers", "run"),
    Right("get", "pods/log", "run"),
    Right("get", "pods/portforward", "run"),
    Right("create", "pods/portforward", "run"),
    Right("get", "pods/exec", "env", without=_NO_ENV),
    Right("create", "pods/exec", "env", without=_NO_ENV),
    Right("watch", "pods", "follow", without=_POLLING),
    Right("list", "events", "events", without="an image that is being pulled shows no progress"),
    Right("create", "pods", "helper"),
    Right("delete", "pods", "helper"),
)
WORKLOADS = {
    "deploy": Right("get", "deployments", "run", "apps"),
    "sts": Right("get", "statefulsets", "run", "apps"),
    "ds": Right("get", "daemonsets", "run", "apps"),
    "rs": Right("get", "replicasets", "run", "apps"),
    "job": Right("get", "jobs", "run", "batch"),
    "cronjob": Right("get", "cronjobs", "run", "batch"),
    "svc": Right("get", "services", "run"),
    "rollout": Right("get", "rollouts", "run", "argoproj.io"),
}


def needed(target: Target | None, agent_kind: str = "auto") -> tuple[Right, ...]:
    """What a session with this target asks for; without a target, what sessions with any kind of workload do."""
    helper = isinstance(target, Targetless) or agent_kind == "pod"
    rights = [right for right in RIGHTS if right.feature != "helper" or helper]
    if helper:
        rights = [right for right in rights if right.resource != "pods/ephemeralcontainers"]
    if target is None or (isinstance(target, KubeTarget) and target.kind == "cronjob"):
        rights.append(Right("list", "jobs", "run", "batch"))  # which of them are the cronjob's
    if target is None:
        rights += [right for kind, right in WORKLOADS.items() if kind != "rollout"]
    elif isinstance(target, KubeTarget) and target.kind in WORKLOADS:
        rights.append(WORKLOADS[target.kind])
    if isinstance(target, Targetless):
        rights = [right for right in rights if right.feature != "env"]
    return tuple(rights)


def role(rights: Iterable[Right], namespace: str, name: str = "mbridge") -> str:
    """A Role that grants exactly these, as YAML for `kubectl apply -f -`."""
    verbs: dict[tuple[str, str], list[str]] = {}
    for right in rights:
        known = verbs.setdefault((right.group, right.resource), [])
        if right.verb not in known:
            known.append(right.verb)
    grouped: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (group, resource), asked in verbs.items():
        grouped.setdefault((group, tuple(asked)), []).append(resource)
    lines = [
        "apiVersion: rbac.authorization.k8s.io/v1",
        "kind: Role",
        f"metadata: {{name: {name}, namespace: {namespace}}}",
        "rules:",
    ]
    for (group, asked_verbs), resources in grouped.items():
        lines.append(f'- {{apiGroups: ["{group}"], resources: [{", ".join(resources)}], verbs: [{", ".join(asked_verbs)}]}}')
    return "\n".join(lines) + "\n"

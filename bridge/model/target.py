"""What the user names: `docker/shop-api`, `compose/shop/api`, `deploy/orders`, `targetless`.

`parse_target` reads the text, `str()` writes it back; both agree for every target. Kinds have short and long names as
kubectl has them ("deployment/x" is "deploy/x"); the short one is what we print.

Limits: a name is checked for its characters and length only; whether it exists is the place's to find out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches

from bridge.errors import SpecError


@dataclass(frozen=True, slots=True)
class DockerTarget:
    """A container by name, or by the beginning of its id."""

    name: str

    def __str__(self) -> str:
        return f"docker/{self.name}"


@dataclass(frozen=True, slots=True)
class ComposeTarget:
    """A service of a running compose project."""

    project: str
    service: str

    def __str__(self) -> str:
        return f"compose/{self.project}/{self.service}"


@dataclass(frozen=True, slots=True)
class KubeTarget:
    """A pod, or a workload that stands for any ready pod of it; `kind` is the short name ("deploy")."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}"


@dataclass(frozen=True, slots=True)
class Targetless:
    """A namespace only: a helper pod of ours stands in for the target."""

    def __str__(self) -> str:
        return "targetless"


Target = DockerTarget | ComposeTarget | KubeTarget | Targetless

KUBE_KINDS = {
    "pod": ("po", "pods"),
    "deploy": ("deployment", "deployments"),
    "sts": ("statefulset", "statefulsets"),
    "ds": ("daemonset", "daemonsets"),
    "rs": ("replicaset", "replicasets"),
    "job": ("jobs",),
    "cronjob": ("cj", "cronjobs"),
    "svc": ("service", "services"),
    "rollout": ("ro", "rollouts"),
}
KINDS = (*KUBE_KINDS, "docker", "compose", "targetless")

_KUBE_KIND = {alias: kind for kind, aliases in KUBE_KINDS.items() for alias in (kind, *aliases)}
_ALIASES = {**_KUBE_KIND, "docker": "docker", "container": "docker", "compose": "compose", "targetless": "targetless"}
# Docker: [a-zA-Z0-9][a-zA-Z0-9_.-]+ (daemon/names); compose service names are of the same characters.
_CONTAINER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}")
# Kubernetes: DNS-1123 subdomain, which every workload's name is.
_KUBE_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_FORMS = {"docker": "docker/NAME", "compose": "compose/PROJECT/SERVICE", "targetless": "targetless"}


def parse_target(text: str) -> Target:
    """The target that `text` names. Raises SpecError with the form that was meant, or the nearest kind."""
    word, _, rest = text.strip().partition("/")
    kind = _ALIASES.get(word.lower())
    if kind is None:
        raise _unknown(text, word, rest)
    match kind:
        case "targetless" if not rest:
            return Targetless()
        case "docker" if _CONTAINER.fullmatch(rest):
            return DockerTarget(rest)
        case "compose":
            project, _, service = rest.partition("/")
            if _CONTAINER.fullmatch(project) and _CONTAINER.fullmatch(service):
                return ComposeTarget(project, service)
        case _ if kind in KUBE_KINDS and _KUBE_NAME.fullmatch(rest):
            return KubeTarget(kind, rest)
    form = _FORMS.get(kind, f"{kind}/NAME")
    raise SpecError(f"{text!r} is no target: write {form}", hint="mbridge ls lists what can be a target")


def _unknown(text: str, word: str, rest: str) -> SpecError:
    near = get_close_matches(word.lower(), _ALIASES, 1)
    if not rest and _CONTAINER.fullmatch(word):
        hint = f"a container is docker/{word}, a compose service compose/PROJECT/{word}, a deployment deploy/{word}"
        return SpecError(f"{text!r} is no target: its kind is missing", hint=hint)
    if not word:
        return SpecError(
            f"{text!r} is no target: its kind is missing", hint=f"kinds are {', '.join(KINDS)}; mbridge ls shows what there is"
        )
    if near:
        return SpecError(f"{text!r} is no target: unknown kind {word!r}, did you mean {near[0]!r}", hint=f"kinds are {', '.join(KINDS)}")
    return SpecError(f"{text!r} is no target: unknown kind {word!r}", hint=f"kinds are {', '.join(KINDS)}")

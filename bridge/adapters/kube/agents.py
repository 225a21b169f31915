"""What we ask the API server to run beside a target: an ephemeral container or a helper pod, as JSON, and rung by rung.

    restricted   uid of the target's (not root), no capability, RuntimeDefault seccomp: passes Pod Security "restricted"
    baseline     uid 0 with the runtime's default capabilities: passes "baseline"
    full         uid 0 and SYS_PTRACE: for the environment of a target with any uid

The network agent has no `targetContainerName`: a container in the target's PID namespace dies with it. The file agent has one;
it sleeps, and is asked through exec, because what a container prints itself ends up in its log.

Limits: Kubernetes forbids resources on an ephemeral container and never forgets one. Pull secrets, tolerations, resources and
annotations exist for helper pods only. Everything here but `fresh` is a function of values.
"""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bridge.adapters.kube.targets import container_status
from bridge.model.wish import HelperWish

Json = dict[str, Any]
Rung = Literal["restricted", "baseline", "full"]
PYTHON = "/opt/mbridge/bin/python"
OUR_UID = 65532  # the agent image's own
PREFIX = "mbridge-"
# /run is root's in a pod's container, and an ephemeral one may not mount a tmpfs; /tmp is everyone's, and this container's own.
_ENV = [{"name": "MBRIDGE_AGENT_SOCKET", "value": "/tmp/mbridge-agent.sock"}]
# Reasons with which a waiting container will not start by itself in the next seconds; each has its message beside it.
STUCK = frozenset({
    "ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName", "ImageInspectError", "RegistryUnavailable",
    "CreateContainerConfigError", "CreateContainerError", "RunContainerError", "CrashLoopBackOff",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """The agent itself, whatever carries it."""

    image: str
    public_key: str
    ttl_s: int = 180
    listen: Literal["any", "loopback"] = "loopback"
    pull_policy: str = "IfNotPresent"

    def command(self) -> list[str]:
        return [PYTHON, "-m", "bridge.agent", "--listen", self.listen, "--key", self.public_key, "--ttl", str(self.ttl_s)]


def security_context(rung: Rung, uid: int | None) -> Json:
    """`uid` is the target's, or None where it is not known; root's own is never asked for on the lowest rung."""
    if rung == "restricted":
        return {
            "runAsUser": uid or OUR_UID,
            "runAsNonRoot": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        }
    body: Json = {"runAsUser": 0, "runAsNonRoot": False}
    return body | {"capabilities": {"add": ["SYS_PTRACE"]}} if rung == "full" else body


def ephemeral(name: str, settings: AgentSettings, rung: Rung, uid: int | None) -> Json:
    """The network agent as an ephemeral container."""
    return {
        "name": name,
        "image": settings.image,
        "imagePullPolicy": settings.pull_policy,
        "command": settings.command(),
        "env": _ENV,
        "securityContext": security_context(rung, uid),
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def file_agent(name: str, image: str, pull_policy: str, target: str, rung: Rung, uid: int | None) -> Json:
    """A container in the target's PID namespace, for one question asked through exec; it ends by itself."""
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": pull_policy,
        "targetContainerName": target,
        "command": ["sleep", "30"],
        "securityContext": security_context(rung, uid),
    }


def fresh(stem: str) -> str:
    """A name that is not taken yet: a pod's containers never give theirs back."""
    return f"{stem}-{''.join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(4))}"


def patch(*containers: Json) -> Json:
    return {"spec": {"ephemeralContainers": list(containers)}}


def helper_pod(name: str, settings: AgentSettings, helper: HelperWish, labels: Mapping[str, str], owner: Json | None) -> Json:
    """A pod of our own: where ephemeral containers are refused, and without a target. `owner` is the target's pod: it goes, this goes."""
    metadata: Json = {"name": name, "labels": dict(labels)}
    if helper.annotations:
        metadata["annotations"] = dict(helper.annotations)
    if owner is not None:
        metadata["ownerReferences"] = [
            {"apiVersion": "v1", "kind": "Pod", "name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"]}
        ]
    spec: Json = {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": helper.deadline_s,
        "terminationGracePeriodSeconds": 1,
        "automountServiceAccountToken": helper.service_account is not None,
        "enableServiceLinks": False,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [
            {
                "name": "agent",
                "image": settings.image,
                "imagePullPolicy": settings.pull_policy,
                "command": settings.command(),
                "env": _ENV,
                "securityContext": security_context("restricted", None),
                "resources": dict(helper.resources) or {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}},
            }
        ],
    }
    if helper.service_account:
        spec["serviceAccountName"] = helper.service_account
    if helper.pull_secrets:
        spec["imagePullSecrets"] = [{"name": secret} for secret in helper.pull_secrets]
    if helper.tolerations:
        spec["tolerations"] = [dict(one) for one in helper.tolerations]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def target_uid(pod: Json, container: str) -> int | None:
    """The uid of the target's process: from its spec, else its status; None where only the image knows."""
    spec = pod["spec"]
    for entry in (*spec.get("containers", ()), *spec.get("initContainers", ())):
        if entry["name"] == container:
            for context in (entry.get("securityContext") or {}, spec.get("securityContext") or {}):
                if context.get("runAsUser") is not None:
                    return int(context["runAsUser"])
    seen = ((container_status(pod, container).get("user") or {}).get("linux") or {}).get("uid")
    return int(seen) if seen is not None else None


def file_rungs(uid: int | None) -> tuple[Rung, ...]:
    """The rungs on which the target's environment may be read, lowest first."""
    if uid == 0:
        return ("baseline", "full")
    return ("restricted", "full") if uid else ("baseline", "full")


def waiting_for(pod: Json, name: str) -> tuple[str, str]:
    """(state, its message) of one container: "running", "ended", "stuck" or "waiting"."""
    state = container_status(pod, name).get("state") or {}
    if "running" in state:
        return "running", ""
    if ended := state.get("terminated"):
        return "ended", str(ended.get("message") or f"{ended.get('reason', 'exited')}, exit code {ended.get('exitCode')}").strip()
    waiting = state.get("waiting") or {}
    reason, message = str(waiting.get("reason") or ""), str(waiting.get("message") or "")
    said = f"{reason}: {message}" if message else reason
    return ("stuck" if reason in STUCK else "waiting"), said


def running_agent(pod: Json, name: str) -> str | None:
    """The container id of our agent `name`, if it runs in this pod."""
    status = container_status(pod, name)
    return str(status.get("containerID") or "") or None if "running" in (status.get("state") or {}) else None


def is_network_agent(container: str, session: str) -> bool:
    """Whether an ephemeral container is, by its name, an agent of this session's; a file agent is none."""
    return re.fullmatch(rf"{PREFIX}{re.escape(session)}(-[a-z0-9]{{4}})?", container) is not None


def first_line(line: bytes) -> tuple[str, int, str] | None:
    """(agent id, port, host key) of `mbridge-agent 1 <16 hex> <port> ssh-ed25519 <base64>`; None for any other line."""
    words = line.decode("ascii", "replace").split()
    if len(words) != 6 or words[:2] != ["mbridge-agent", "1"] or words[4] != "ssh-ed25519":
        return None
    if not re.fullmatch(r"[0-9a-f]{16}", words[2]) or not words[3].isdigit() or not 0 < int(words[3]) < 65536:
        return None
    return words[2], int(words[3]), f"{words[4]} {words[5]}"

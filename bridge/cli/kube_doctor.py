"""The cluster's half of `mbridge doctor` and `mbridge ls`: may this user do what mbridge asks for, and what can be a target?

Theory of operation: the API server itself is asked (SelfSubjectAccessReview), for each right of model/rights.py, all at once.
Nothing is changed. `ls` lists what it may; a kind that may not be listed is left out and named.
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from bridge.adapters.kube import headroom, kubeconfig
from bridge.adapters.kube.api import Api, Missing
from bridge.adapters.kube.carriers import Carriers
from bridge.adapters.kube.targets import Finder, is_ready, path_of, pod_state
from bridge.cli.cmd_doctor import Check
from bridge.cli.looking import Listed
from bridge.errors import BridgeError, Forbidden
from bridge.model import rights
from bridge.model.rights import Right
from bridge.model.target import KUBE_KINDS, KubeTarget, Target
from bridge.model.wish import SessionWish

Json = dict[str, Any]
_REVIEW = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


def open_api(kubeconfig_file: str | None, context: str | None, environ: Mapping[str, str] | None = None) -> Api:
    """As the flags, KUBECONFIG and ~/.kube/config say. Raises ClusterError."""
    return Api(kubeconfig.load(kubeconfig_file, context, os.environ if environ is None else environ, Path.home()))


async def may(api: Api, namespace: str, right: Right) -> bool:
    resource, _, subresource = right.resource.partition("/")
    attributes = {"namespace": namespace, "verb": right.verb, "group": right.group, "resource": resource, "subresource": subresource}
    body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": {"resourceAttributes": attributes}}
    answer = await api.request("POST", _REVIEW, (), body)
    return bool(answer.get("status", {}).get("allowed"))


async def cluster_checks(wish: SessionWish) -> AsyncIterator[Check]:
    """API server, target and rights; ends where the next look would have no sense."""
    try:
        api = open_api(wish.kubeconfig, wish.context)
    except BridgeError as error:
        yield Check("kubeconfig", False, error.message, error.hint)
        return
    async with api:
        namespace = wish.namespace or api.access.namespace
        try:
            version = await api.get("/version")
        except BridgeError as error:
            yield Check("cluster", False, error.message, error.hint)
            return
        yield Check("cluster", True, f"Kubernetes {version.get('gitVersion', '?')} at {api.access.server}, context {api.access.context}")
        async for check in _rights(api, namespace, wish.target, wish.agent_kind):
            yield check
        if isinstance(wish.target, KubeTarget):
            async for check in _target(api, namespace, wish.target, wish):
                yield check


async def _rights(api: Api, namespace: str, target: Target, agent_kind: str) -> AsyncIterator[Check]:
    wanted = rights.needed(target, agent_kind)
    try:
        answers = await asyncio.gather(*(may(api, namespace, right) for right in wanted))
    except BridgeError as error:
        yield Check("rights", None, f"not to be told: {error.message}", error.hint)
        return
    lacking = [right for right, allowed in zip(wanted, answers, strict=True) if not allowed]
    needed = [right for right in lacking if right.without is None]
    if needed:
        hint = "mbridge doctor --role prints the Role to ask an administrator for"
        yield Check("rights", False, f"not allowed in namespace '{namespace}': {', '.join(map(str, needed))}", hint)
    else:
        yield Check("rights", True, f"all that is needed in namespace '{namespace}'")
    for lost in dict.fromkeys(right.without for right in lacking if right.without is not None):
        verbs = ", ".join(str(right) for right in lacking if right.without == lost)
        yield Check("rights", None, f"without {verbs}: {lost}")


async def _target(api: Api, namespace: str, target: KubeTarget, wish: SessionWish) -> AsyncIterator[Check]:
    try:
        found = await Finder(api, namespace).find(target.kind, target.name, wish.container)
    except BridgeError as error:
        yield Check("target", False, error.message, error.hint)
        return
    if found.host_network and not wish.yes_host_network:
        yield Check("target", False, f"pod {found.name} is on its node's own network", "--yes-host-network")
        return
    yield Check("target", True, f"pod {found.name}, container {found.container}")
    if wish.agent_kind == "pod":
        return
    carriers = Carriers(api, namespace)
    room = await headroom.look(found.pod, found.container, functools.partial(carriers.output, found.name))
    if room is not None:
        takes = f"; the agent takes up to {headroom.AGENT_TAKES >> 20} of them, and is the first to be ended where they do not do"
        yield Check("memory", True if room.enough else None, f"pod {found.name}: {room}{'' if room.enough else takes}",
                    "raise the limit, or --agent pod")  # fmt: skip


async def targets(api: Api, namespace: str, kind: str | None) -> list[Listed]:
    """Pods and workloads that can be targets here. Raises Forbidden when the one kind that was asked for may not be listed."""
    refused: BridgeError | None = None
    found: list[Listed] = []
    for one in [kind] if kind else [*KUBE_KINDS]:
        try:
            items = (await api.get(path_of(one, namespace)))["items"]
        except Missing:
            continue  # its CRD is not installed
        except Forbidden as error:
            refused = error
            continue
        if one == "pod":
            found += [_listed(f"pod/{_name(pod)}", pod, is_ready(pod)) for pod in items]
        else:  # a ReplicaSet of a Deployment, a Job of a CronJob: their owner is listed
            found += [_workload(one, item) for item in items if not item["metadata"].get("ownerReferences")]
    if refused is not None and not found:
        raise refused
    return found


def _listed(target: str, pod: Json, ready: bool) -> Listed:
    why = None if ready else "not ready"
    if ready and pod["spec"].get("hostNetwork"):
        why = "on its node's network: --yes-host-network"
    images = ", ".join(str(c.get("image", "?")) for c in pod["spec"]["containers"])
    return Listed(target, images, pod_state(pod), why)


def _workload(kind: str, item: Json) -> Listed:
    spec, status = item.get("spec", {}), item.get("status", {})
    template = (spec.get("jobTemplate", {}).get("spec", spec)).get("template", {}).get("spec", {})
    images = ", ".join(str(c.get("image", "?")) for c in template.get("containers") or ()) or str(spec.get("type", ""))
    name = f"{kind}/{_name(item)}"
    if kind == "svc":
        where = str(spec.get("clusterIP") or spec.get("externalName") or "")
        return Listed(name, images, where, None if spec.get("selector") else "no selector")
    if kind == "cronjob":
        active = len(status.get("active") or ())
        return Listed(name, images, f"{active} active", None if active else "no run under way")
    ready = int(status.get("readyReplicas") or status.get("numberReady") or status.get("ready") or 0)
    wanted = status.get("desiredNumberScheduled", spec.get("replicas", spec.get("completions", 1)))
    return Listed(name, images, f"{ready}/{wanted} ready", None if ready else "no ready pod")


def _name(item: Json) -> str:
    return str(item["metadata"]["name"])

"""The cluster's half of `mbridge doctor` and `mbridge ls`: may this user do what mbridge asks for, and what can be a target?

Theory of operation: the API server itself is asked (SelfSubjectAccessReview), for each right of model/rights.py, all at once.
Nothing is changed. `ls` lists what it may; kinds that may not be listed are left out and named.
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bridge.adapters.kube import headroom, kubeconfig
from bridge.adapters.kube.api import Api, Missing
from bridge.adapters.kube.carriers import Carriers
from bridge.adapters.kube.targets import Finder, is_ready, path_of, pod_state
from bridge.cli.cmd_doctor import Check
from bridge.cli.looking import Listed, Where
from bridge.errors import BridgeError, ClusterError, Forbidden, TargetNotFound
from bridge.model import rights
from bridge.model.rights import Right
from bridge.model.target import KUBE_KINDS, KubeTarget
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


async def cluster_checks(where: Where, wish: SessionWish | None) -> AsyncIterator[Check]:
    """API server, namespace, rights and, with a wish, its target; ends where the next look would have no sense."""
    try:
        api = open_api(where.kubeconfig, where.context)
    except BridgeError as error:
        yield Check("kubeconfig", False, error.message, error.hint)
        return
    async with api:
        namespace = where.namespace or api.access.namespace
        try:
            version = await api.get("/version")
        except BridgeError as error:
            yield Check("cluster", False, error.message, error.hint)
            return
        yield Check("cluster", True, f"Kubernetes {version.get('gitVersion', '?')} at {api.access.server}, context {api.access.context}")
        if absent := await _absent(api, namespace):
            yield Check("namespace", False, absent.message, absent.hint)
            return
        async for check in _rights(api, namespace, wish):
            yield check
        if wish is not None and isinstance(wish.target, KubeTarget):
            async for check in _target(api, namespace, wish.target, wish):
                yield check


async def _absent(api: Api, namespace: str) -> TargetNotFound | None:
    """What to say of a namespace that is not there; whoever may not look at it is told nothing, since it may be there."""
    try:
        await api.get(f"/api/v1/namespaces/{quote(namespace, safe='')}")
    except Missing:
        return TargetNotFound(f"namespace '{namespace}' does not exist", hint="kubectl get namespaces lists them; -n NAME names one")
    except ClusterError:
        pass
    return None


async def _rights(api: Api, namespace: str, wish: SessionWish | None) -> AsyncIterator[Check]:
    wanted = rights.needed(wish.target, wish.agent_kind) if wish else rights.needed(None)
    try:
        answers = await asyncio.gather(*(may(api, namespace, right) for right in wanted))
    except BridgeError as error:
        yield Check("rights", None, f"not to be told: {error.message}", error.hint)
        return
    lacking = [right for right, allowed in zip(wanted, answers, strict=True) if not allowed]
    needed = [right for right in lacking if right.without is None]
    if needed:
        target = f" {wish.target}" if wish else ""
        hint = f"mbridge doctor{target} -n {namespace} --role prints the Role to ask an administrator for"
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


async def targets(api: Api, namespace: str, kind: str | None, note: Callable[[str], None] = lambda _: None) -> list[Listed]:
    """Pods and workloads that can be targets here; `note` hears which kinds may not be listed.

    Raises Forbidden where none may, ClusterError for a kind that this cluster does not know, TargetNotFound for no such namespace.
    """
    kinds = [kind] if kind else [*KUBE_KINDS]
    answers = await asyncio.gather(*(_items(api, namespace, one) for one in kinds))
    found: list[Listed] = []
    refused: dict[str, Forbidden] = {}
    for one, items in zip(kinds, answers, strict=True):
        if isinstance(items, Forbidden):
            refused[one] = items
        elif items is None and kind:
            plural = path_of(one, namespace).rpartition("/")[2]
            raise ClusterError(f"this cluster knows no {plural}", hint="kubectl api-resources lists what it knows")
        elif one == "pod":
            found += [_listed(f"pod/{_name(pod)}", pod, is_ready(pod)) for pod in items or ()]
        else:  # a ReplicaSet of a Deployment, a Job of a CronJob: their owner is listed
            found += [_workload(one, item) for item in items or () if not item["metadata"].get("ownerReferences")]
    if len(refused) == len(kinds):
        raise refused[kinds[0]]
    if not found and (absent := await _absent(api, namespace)):
        raise absent
    refused.pop("rollout", None)  # its CRD is rarely there, and then it is refused all the same
    if refused:
        note(f"left out, since you may not list them in namespace '{namespace}': {', '.join(refused)}")
    return found


async def _items(api: Api, namespace: str, kind: str) -> list[Json] | Forbidden | None:
    """None: its CRD is not installed."""
    try:
        items: list[Json] = (await api.get(path_of(kind, namespace)))["items"]
    except Missing:
        return None
    except Forbidden as error:
        return error
    return items


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

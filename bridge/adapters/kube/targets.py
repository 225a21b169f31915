"""From "deploy/web" to one pod and one container of it, or the candidates and why none of them serves.

Theory of operation: a workload's own selector finds its pods, as kubectl does. Ready means: running, not being deleted,
its Ready condition true, the container running. Of several ready ones the newest is taken: in the midst of a rollout it is
the one that stays. A container that is not named is the only one, or the one of kubectl's default-container annotation.

Everything but `Finder` is a function of JSON.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bridge.adapters.kube.api import Api, Missing
from bridge.errors import ClusterError, Forbidden, TargetNotFound

Json = dict[str, Any]
DEFAULT_CONTAINER = "kubectl.kubernetes.io/default-container"

# kind -> (path of its API group, plural)
KINDS: Mapping[str, tuple[str, str]] = {
    "pod": ("/api/v1", "pods"),
    "deploy": ("/apis/apps/v1", "deployments"),
    "sts": ("/apis/apps/v1", "statefulsets"),
    "ds": ("/apis/apps/v1", "daemonsets"),
    "rs": ("/apis/apps/v1", "replicasets"),
    "job": ("/apis/batch/v1", "jobs"),
    "cronjob": ("/apis/batch/v1", "cronjobs"),
    "svc": ("/api/v1", "services"),
    "rollout": ("/apis/argoproj.io/v1alpha1", "rollouts"),
}


@dataclass(frozen=True, slots=True)
class PodFound:
    """One ready pod, as the API gave it, and the container of it that is meant."""

    pod: Json
    container: str

    @property
    def name(self) -> str:
        return str(self.pod["metadata"]["name"])

    @property
    def uid(self) -> str:
        return str(self.pod["metadata"]["uid"])

    @property
    def host_network(self) -> bool:
        return bool(self.pod["spec"].get("hostNetwork"))

    @property
    def hostname(self) -> str:
        return str(self.pod["spec"].get("hostname") or (self.pod["spec"].get("nodeName") if self.host_network else None) or self.name)[:63]


def path_of(kind: str, namespace: str, name: str = "", sub: str = "") -> str:
    group, plural = KINDS[kind]
    return f"{group}/namespaces/{namespace}/{plural}" + (f"/{name}" if name else "") + (f"/{sub}" if sub else "")


def containers(pod: Json) -> list[Json]:
    """Containers that run for as long as the pod: sidecars (init containers that restart) are among them."""
    spec = pod["spec"]
    return [*spec.get("containers", ()), *(c for c in spec.get("initContainers", ()) if c.get("restartPolicy") == "Always")]


def container_state(pod: Json, name: str) -> str:
    state = container_status(pod, name).get("state") or {}
    if "running" in state:
        return "running"
    if "terminated" in state:
        return str(state["terminated"].get("reason") or f"exited {state['terminated'].get('exitCode')}")
    if "waiting" in state:
        return str(state["waiting"].get("reason") or "waiting")
    return "not started"


def container_status(pod: Json, name: str) -> Json:
    """The status of a container of any sort; empty before the kubelet has seen it."""
    status = pod.get("status", {})
    for sort in ("containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"):
        for entry in status.get(sort) or ():
            if entry["name"] == name:
                return dict(entry)
    return {}


def pod_state(pod: Json) -> str:
    """One word as in kubectl's STATUS column, with what keeps it from being ready."""
    if pod["metadata"].get("deletionTimestamp"):
        return "Terminating"
    status = pod.get("status", {})
    for container in containers(pod):
        state = container_state(pod, container["name"])
        if state not in ("running", "waiting", "not started"):
            return state
    phase = str(status.get("reason") or status.get("phase") or "Pending")
    if phase == "Running" and not _condition(pod, "Ready"):
        return "Running, not ready"
    if phase == "Pending":
        unscheduled = next((c for c in status.get("conditions", ()) if c["type"] == "PodScheduled" and c["status"] == "False"), None)
        return f"Pending: {unscheduled['message']}" if unscheduled and unscheduled.get("message") else "Pending"
    return phase


def is_ready(pod: Json) -> bool:
    return pod.get("status", {}).get("phase") == "Running" and not pod["metadata"].get("deletionTimestamp") and _condition(pod, "Ready")


def choose_container(pod: Json, wanted: str | None) -> str:
    """The container that is meant. Raises TargetNotFound with the candidates and their states."""
    names = [str(c["name"]) for c in containers(pod)]
    listed = ", ".join(f"{name} ({container_state(pod, name)})" for name in names)
    pod_name = pod["metadata"]["name"]
    if wanted is not None:
        if wanted in names:
            return wanted
        near = difflib.get_close_matches(wanted, names, 1)
        raise TargetNotFound(f"pod {pod_name} has no container '{wanted}': {listed}", hint=f"-c {near[0] if near else names[0]}")
    default = (pod["metadata"].get("annotations") or {}).get(DEFAULT_CONTAINER)
    if default in names:
        return str(default)
    if len(names) == 1:
        return names[0]
    raise TargetNotFound(f"pod {pod_name} has {len(names)} containers and none was named: {listed}", hint=f"-c {names[0]}")


def choose_pod(pods: list[Json], text: str, wanted: str | None, prefer: Callable[[Json], bool]) -> PodFound:
    """The ready pod to use. Raises TargetNotFound: there is none, and what each one is doing."""
    ready = [pod for pod in pods if is_ready(pod)]
    if not ready:
        states = ", ".join(f"{pod['metadata']['name']} ({pod_state(pod)})" for pod in _newest_first(pods)[:5])
        raise TargetNotFound(f"no pod of {text} is ready: {states}" if states else f"{text} has no pods")
    usable = [pod for pod in _newest_first(ready) if (pod["spec"].get("os") or {}).get("name", "linux") == "linux"]
    if not usable:
        raise TargetNotFound(f"{text} runs on Windows nodes only: the agent needs a Linux node")
    chosen = next((pod for pod in usable if prefer(pod)), usable[0])
    container = choose_container(chosen, wanted)
    if (state := container_state(chosen, container)) != "running":
        raise TargetNotFound(f"container '{container}' of pod {chosen['metadata']['name']} is not running: {state}")
    return PodFound(chosen, container)


def label_query(selector: Json) -> str:
    """A LabelSelector (or a service's plain map) as the API's labelSelector parameter."""
    if "matchLabels" not in selector and "matchExpressions" not in selector:
        selector = {"matchLabels": selector}
    parts = [f"{key}={value}" for key, value in (selector.get("matchLabels") or {}).items()]
    for term in selector.get("matchExpressions") or ():
        key, values = term["key"], ",".join(term.get("values") or ())
        shapes = {"In": f"{key} in ({values})", "NotIn": f"{key} notin ({values})", "Exists": key, "DoesNotExist": f"!{key}"}
        parts.append(shapes[term["operator"]])
    return ",".join(parts)


class Finder:
    """Asks the API server. Remembers the workload's selector, so that following it costs one request each time."""

    def __init__(self, api: Api, namespace: str) -> None:
        self._api, self._namespace = api, namespace
        self._selectors: dict[tuple[str, str], str] = {}

    async def pod(self, name: str) -> Json:
        return await self._api.get(path_of("pod", self._namespace, name))

    async def find(self, kind: str, name: str, container: str | None, prefer: Callable[[Json], bool] = lambda _: False) -> PodFound:
        """Raises TargetNotFound, Forbidden, Unreachable."""
        text = f"{kind}/{name}"
        if kind == "pod":
            try:
                pod = await self.pod(name)
            except Missing as error:
                raise await self._missing(kind, name) from error
            if not is_ready(pod):
                raise TargetNotFound(f"pod {name} is not ready: {pod_state(pod)}", hint=f"kubectl describe pod {name} -n {self._namespace}")
            return choose_pod([pod], text, container, prefer)
        query = await self._selector(kind, name)
        pods = (await self._api.get(path_of("pod", self._namespace), [("labelSelector", query)]))["items"]
        try:
            return choose_pod(pods, text, container, prefer)
        except TargetNotFound as error:
            error.hint = error.hint or f"kubectl get pods -n {self._namespace} -l '{query}'"
            raise

    async def _selector(self, kind: str, name: str) -> str:
        if (kind, name) in self._selectors and kind != "cronjob":
            return self._selectors[kind, name]
        try:
            workload = await self._api.get(path_of(kind, self._namespace, name))
        except Missing as error:
            raise await self._missing(kind, name) from error
        spec = workload.get("spec", {})
        if kind == "cronjob":
            query = f"job-name={await self._run_of(workload)}"
        elif kind == "svc" and spec.get("type") == "ExternalName":
            raise TargetNotFound(f"svc/{name} is a name for {spec.get('externalName')}, outside of the cluster: it has no pods")
        elif kind == "rollout" and not spec.get("selector") and workload.get("status", {}).get("selector"):
            query = workload["status"]["selector"]  # with `workloadRef` the selector is the other workload's, and Argo writes it here alone
        elif not spec.get("selector"):
            raise TargetNotFound(f"{kind}/{name} has no selector, so no pods of its own")
        else:
            query = label_query(spec["selector"])
        self._selectors[kind, name] = query
        return query

    async def _run_of(self, cronjob: Json) -> str:
        """The newest job of this cronjob that is under way, made by its schedule or by `kubectl create job --from`."""
        name, uid = cronjob["metadata"]["name"], cronjob["metadata"]["uid"]
        jobs = (await self._api.get(path_of("job", self._namespace)))["items"]
        own = [job for job in jobs if any(owner["uid"] == uid for owner in job["metadata"].get("ownerReferences") or ())]
        active = [job for job in own if job.get("status", {}).get("active")]
        if not active:
            hint = f"kubectl create job --from=cronjob/{name} {name}-now -n {self._namespace}"
            raise TargetNotFound(f"cronjob/{name} has no run under way", hint=hint)
        return str(_newest_first(active)[0]["metadata"]["name"])

    async def _missing(self, kind: str, name: str) -> TargetNotFound:
        """Says what there is instead, as far as the caller may list it."""
        hint = f"mbridge ls {kind} -n {self._namespace}"
        try:
            items = (await self._api.get(path_of(kind, self._namespace)))["items"]
            if not items and kind != "pod":
                await self._api.get(path_of("pod", self._namespace), [("limit", "1")])
        except Missing:
            group, plural = KINDS[kind]
            why = f"Argo's CRD {plural}.argoproj.io is not installed" if kind == "rollout" else f"it does not serve {group}"
            return TargetNotFound(f"the cluster knows no {plural}: {why}", hint=f"mbridge ls -n {self._namespace}")
        except (Forbidden, ClusterError):
            return TargetNotFound(f"{kind}/{name} not found in namespace '{self._namespace}'", hint=hint)
        names = [item["metadata"]["name"] for item in items]
        near = difflib.get_close_matches(name, names, 3) or names[:3]
        if near:
            hint = "did you mean " + " or ".join(f"{kind}/{one}" for one in near)
        return TargetNotFound(f"{kind}/{name} not found in namespace '{self._namespace}'", hint=hint)


def _condition(pod: Json, kind: str) -> bool:
    return any(c["type"] == kind and c["status"] == "True" for c in pod.get("status", {}).get("conditions", ()))


def _newest_first(pods: list[Json]) -> list[Json]:
    return sorted(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp")), reverse=True)

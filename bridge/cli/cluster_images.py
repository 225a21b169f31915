"""The agent's image from the developer's engine into a cluster: `mbridge images load`.

Theory of operation: which cluster is meant is read from its nodes, since contexts get renamed, else from the context's name;
`--to` says it outright. Then, in this order:

    --command    a command of the user's gets the image on its stdin: any cluster that some command line reaches
    its tool     kind, k3d, minikube, where it is on the PATH
    its nodes    where they are containers of this very engine: the runtime's own client in each gets the image on its stdin

    kind         node's providerID  kind://docker/NAME/NODE     context  kind-NAME     containers' label  io.x-k8s.kind.cluster
    k3d                             k3s://k3d-NAME-server-0              k3d-NAME                         k3d.cluster
    minikube     node's label       minikube.k8s.io/name                 minikube                         name.minikube.sigs.k8s.io

Limits: a cluster elsewhere pulls from a registry (`mbridge images push`), or is reached by --command.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bridge.adapters import cluster_tools
from bridge.adapters.cluster_tools import TOOLS, Tool
from bridge.adapters.docker.engine import Engine
from bridge.adapters.docker.wire import Hijacked
from bridge.cli.looking import Where
from bridge.errors import BridgeError, ClusterError, EngineUnavailable, HostError, SpecError

Json = Mapping[str, Any]
Progress = Callable[[str], None]
_DEFAULT_NAMES: Mapping[Tool, str] = {"kind": "kind", "k3d": "k3s-default", "minikube": "minikube"}
_LABELS: Mapping[Tool, str] = {"kind": "io.x-k8s.kind.cluster", "k3d": "k3d.cluster", "minikube": "name.minikube.sigs.k8s.io"}
# What else bears the cluster's label: load balancers, a registry, k3d's own helper.
_ROLES = ("io.x-k8s.kind.role", "k3d.role")
_NODE_ROLES = frozenset({"control-plane", "worker", "server", "agent"})
_IMPORTS = {"containerd": ("ctr", "-n", "k8s.io", "images", "import", "-"), "docker": ("docker", "load")}
_END = bytes(1024)  # of a tar: what broke off has none
_ELSEWHERE = "mbridge images push REPOSITORY, then agent.image in mbridge.yaml; or --command, which gets the image on its stdin"


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster that images can be brought into. `tool` is None for one that is known by its nodes alone.

    `nodes` are containers of this engine; `shared`: its node runs on this very engine and has all of its images.
    """

    tool: Tool | None
    name: str
    nodes: tuple[str, ...] = ()
    runtime: str = "containerd"
    shared: bool = False

    def __str__(self) -> str:
        return f"{self.tool} cluster {self.name}" if self.tool else f"cluster {self.name}"


def named(to: str) -> Cluster:
    """The cluster of `--to kind:dev`; without a name the tool's own default. Raises SpecError."""
    word, _, name = to.partition(":")
    for tool in TOOLS:
        if word == tool:
            return Cluster(tool, name or _DEFAULT_NAMES[tool], runtime="docker" if tool == "minikube" else "containerd")
    raise SpecError(f"--to {to}: not one of kind, k3d, minikube, each with :NAME where it is not the default", hint=_ELSEWHERE)


def recognised(context: str, nodes: Iterable[Json]) -> Cluster | None:
    """The cluster by its nodes, else by the context's name; None where neither tells."""
    for node in nodes:
        runtime = _runtime(node)
        provider = str(node.get("spec", {}).get("providerID") or "")
        if provider.startswith("kind://"):
            return Cluster("kind", provider.split("/")[3], runtime=runtime)
        if provider.startswith("k3s://k3d-"):  # k3d-NAME-server-0, k3d-NAME-agent-1
            return Cluster("k3d", provider.removeprefix("k3s://k3d-").rsplit("-", 2)[0], runtime=runtime)
        if profile := node["metadata"].get("labels", {}).get("minikube.k8s.io/name"):
            return Cluster("minikube", str(profile), runtime=runtime)
    for tool in ("kind", "k3d"):
        if context.startswith(f"{tool}-"):
            return Cluster(tool, context.removeprefix(f"{tool}-"))
    return named("minikube") if context == "minikube" else None


def _runtime(node: Json) -> str:
    """Of "containerd://1.7.27" the first word."""
    return str(node["status"]["nodeInfo"]["containerRuntimeVersion"]).partition(":")[0]


def nodes_of(cluster: Cluster, containers: Iterable[Json]) -> tuple[str, ...]:
    """The running containers of this engine that are the cluster's nodes."""
    if cluster.tool is None:
        return ()
    label, found = _LABELS[cluster.tool], []
    for container in containers:
        labels = container.get("Labels") or {}
        role = next((labels[key] for key in _ROLES if key in labels), None)
        if labels.get(label) == cluster.name and container.get("State") == "running" and (role is None or role in _NODE_ROLES):
            found.append(str(container["Id"]))
    return tuple(found)


def same_names(nodes: Iterable[Json], containers: Sequence[Json]) -> tuple[str, ...]:
    """Containers that are called like nodes, each by its name or, as its hostname is by default, the beginning of its id."""
    names = {str(node["metadata"]["name"]) for node in nodes}
    return tuple(
        str(c["Id"]) for c in containers if c["Id"][:12] in names or any(n.removeprefix("/") in names for n in c.get("Names") or ())
    )


async def find(to: str | None, where: Where, engine: Engine) -> Cluster:
    """The cluster that is meant. Raises SpecError, ClusterError (no kubeconfig, or none of those that images can be brought into)."""
    if to:
        cluster = named(to)
        return replace(cluster, nodes=nodes_of(cluster, await (await engine.connect()).containers()))
    from bridge.cli import kube_doctor

    nodes: list[Json] = []
    failure: BridgeError | None = None
    async with kube_doctor.open_api(where.kubeconfig, where.context) as api:
        context = api.access.context
        try:
            nodes = (await api.get("/api/v1/nodes"))["items"]
        except BridgeError as error:  # whoever may not list nodes, or whose cluster is stopped, may still have a telling context
            failure = error
    found = recognised(context, nodes)
    containers = await (await engine.connect()).containers()
    if found is not None:
        return replace(found, nodes=nodes_of(found, containers))
    if alike := same_names(nodes, containers):
        return Cluster(None, context, alike, _runtime(nodes[0]))
    if nodes and {node["metadata"]["name"] for node in nodes} == {await _host(engine)} and _runtime(nodes[0]) == "docker":
        return Cluster(None, context, runtime="docker", shared=True)
    if failure is not None:
        raise ClusterError(f"context '{context}' names no cluster of kind, k3d or minikube, and {failure.message}", hint=_ELSEWHERE)
    raise ClusterError(f"context '{context}' is no cluster of kind, k3d or minikube, and its nodes are not on this engine", hint=_ELSEWHERE)


async def _host(engine: Engine) -> str:
    """The name of the machine that the engine runs on; a kubelet there calls its node the same."""
    info: Json = await engine.wire.request("GET", "/info")
    return str(info.get("Name"))


async def load(image: str, cluster: Cluster, engine: Engine, progress: Progress, environ: Mapping[str, str]) -> str:
    """Bring `image` into `cluster`; the way that was taken, in words."""
    if cluster.shared:
        return "its node runs on this engine and has it"
    program = cluster_tools.path_of(cluster.tool, environ) if cluster.tool else None
    if cluster.tool and program:
        await cluster_tools.run(cluster_tools.import_command(cluster.tool, program, image, cluster.name), environ, progress)
        return f"by {cluster.tool}"
    if not cluster.nodes:
        raise HostError(f"{cluster}: there is no {cluster.tool} on the PATH, and none of its nodes runs on this engine", hint=_ELSEWHERE)
    command = _IMPORTS.get(cluster.runtime)
    if command is None:
        raise HostError(f"{cluster}: its runtime {cluster.runtime} is not known here", hint=_ELSEWHERE)
    for node in cluster.nodes:
        async with exported(image, engine, progress) as data:
            await _run_in(engine, node, command, data)
    return f"into {len(cluster.nodes)} node{'s' if len(cluster.nodes) > 1 else ''}"


def environ_of(docker_context: str | None, environ: Mapping[str, str]) -> dict[str, str]:
    """For programs that look for the engine themselves: the one that is meant here."""
    if docker_context is None:
        return dict(environ)
    others = {name: value for name, value in environ.items() if name != "DOCKER_HOST"}  # it would beat the context
    return {**others, "DOCKER_CONTEXT": docker_context}


async def load_by(command: str, image: str, engine: Engine, progress: Progress, environ: Mapping[str, str]) -> None:
    """Give `image` to a command of the user's."""
    async with exported(image, await engine.connect(), progress) as data:
        await cluster_tools.run(command, environ, lambda _: None, data)


@contextlib.asynccontextmanager
async def exported(image: str, engine: Engine, progress: Progress) -> AsyncIterator[AsyncIterator[bytes]]:
    """The image as `docker save` writes it, as the engine packs it; `progress` hears how much has been taken."""
    found = await engine.image(image)
    total = int(found["Size"]) if found else 0

    async def counted(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        taken, told, end = 0, 0, b""
        async for chunk in chunks:
            yield chunk
            end = (end + chunk if len(chunk) < len(_END) else chunk)[-len(_END) :]
            taken += len(chunk)
            if taken - told >= 1 << 20:
                told = taken
                progress(f"{taken / 1e6:.0f} of about {total / 1e6:.0f} MB")
        if end != _END:
            raise EngineUnavailable(f"the engine broke off while it packed {image}", hint="docker version")

    async with engine.wire.stream("GET", f"/images/{image}/get") as chunks:
        yield counted(chunks)


async def _run_in(engine: Engine, container: str, command: Sequence[str], data: AsyncIterator[bytes]) -> None:
    """`docker exec -i`. Raises HostError with the command's own words where it fails."""
    body = {"Cmd": list(command), "AttachStdin": True, "AttachStdout": True, "AttachStderr": True, "Tty": False}
    made: Json = await engine.wire.request("POST", f"/containers/{container}/exec", body=body)
    stream = await engine.wire.hijack(f"/exec/{made['Id']}/start", body={"Detach": False, "Tty": False})
    feeding = asyncio.ensure_future(_feed(stream, data))
    said = bytearray()
    try:
        async for _, piece in stream.chunks():
            said += piece
        if feeding.done():
            feeding.result()  # what kept the image from coming is the reason for all that follows
    finally:
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)
        stream.close()
    ended: Json = await engine.wire.request("GET", f"/exec/{made['Id']}/json")
    if ended.get("ExitCode") != 0:
        lines = said.decode(errors="replace").strip().splitlines() or ["no word"]
        raise HostError(f"`{' '.join(command)}` in node {container[:12]} ended with {ended.get('ExitCode')}: {lines[-1]}", hint=_ELSEWHERE)


async def _feed(stream: Hijacked, data: AsyncIterator[bytes]) -> None:
    try:
        async for chunk in data:
            stream.writer.write(chunk)
            await stream.writer.drain()
    except ConnectionError:
        pass  # as in cluster_tools: the exit code tells
    finally:
        stream.end_input()

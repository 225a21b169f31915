"""Kubernetes as a place where targets live (needs.Place): finds the pod, puts the agent beside it, brings carriers, follows it.

Theory of operation: one API session for as long as the place lives. An agent of this user's that still runs in the pod (a
remembered container id, proven by its pinned host key) is used again: the carrier of that trial is kept for the first dial.
Else one PATCH adds an ephemeral container on the lowest rung, or, by `--agent pod` and without a target, a helper pod is made.

    carriers      port-forward; else exec, until port-forward works again (engine/way_back.py)
    environment   the process's own; where nothing may read it the spec's, with a warning (cli/kube_environ.py)

Limits: an ephemeral container cannot be removed: it ends by its TTL, and the pod keeps its record. A helper pod has an address
of its own: the target's network policy, its loopback and its source address are not had there.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import logging
import os
import socket
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from bridge.adapters.kube import agents, headroom, kubeconfig
from bridge.adapters.kube.agents import AgentSettings
from bridge.adapters.kube.api import Api, Missing, Refused, Unavailable
from bridge.adapters.kube.carriers import Carriers
from bridge.adapters.kube.launching import Launcher
from bridge.adapters.kube.memory import Memory, Remembered
from bridge.adapters.kube.targets import Finder, PodFound, is_ready, path_of
from bridge.adapters.kube.watching import Follower
from bridge.cli import direct
from bridge.cli.kube_environ import EnvironReader
from bridge.engine.needs import TargetChange, Via
from bridge.engine.way_back import WayBack
from bridge.errors import (
    AgentFailed,
    BridgeError,
    ClusterError,
    Forbidden,
    HostKeyMismatch,
    LinkError,
    LinkLost,
    SpecError,
    TargetNotFound,
    VersionMismatch,
)
from bridge.model.environ import Environ
from bridge.model.facts import AgentIdentity, TargetFound
from bridge.model.target import KubeTarget, Targetless
from bridge.model.wish import SessionWish
from bridge.protocol import preamble

log = logging.getLogger(__name__)
Json = dict[str, Any]
Progress = Callable[[str], None]
_Topic = Literal["helper", "memory"]
CARRIERS: tuple[Via, ...] = ("port-forward", "exec")
_DIAL_S = 5.0
_MEMORY_LIMIT_S = 3.0  # for a look that may be done without


class KubePlace:
    """One target of one session. `state` is the user's state folder, `image` the agent's where the wish names none."""

    def __init__(
        self, wish: SessionWish, session: str, owner: str, state: Path, image: str, *, environ: Mapping[str, str] | None = None
    ) -> None:
        if not isinstance(wish.target, KubeTarget | Targetless):
            raise SpecError(f"{wish.target} is no Kubernetes target")
        environ = os.environ if environ is None else environ
        access = kubeconfig.load(wish.kubeconfig, wish.context, environ, Path.home())
        self._wish, self._target, self._session, self._owner = wish, wish.target, session or "look", owner
        self._looks_only = not session  # nobody will end this place: each answer ends its connections itself
        self.namespace = wish.namespace or access.namespace
        self.api = Api(access)
        self.on_warnings: Callable[[], None] = lambda: None
        self._warnings: dict[_Topic, str] = {}
        self._image = wish.agent_image or image
        self._memory = Memory(state / "kube-agents")
        self._finder = Finder(self.api, self.namespace)
        self._launcher = Launcher(self.api, self.namespace)
        self._carriers = Carriers(self.api, self.namespace)
        self._environ = EnvironReader(self._launcher, self._carriers, self._image, wish.agent_pull_policy, self._session)
        self._found: PodFound | None = None
        self._fresh = False  # nothing was made since it was found
        self._agent: tuple[str, str] | None = None  # pod and container that hold it
        self._way_back = WayBack(lambda agent: self._one(CARRIERS[0], agent))
        self._fault: BridgeError | None = None
        self._guarding: asyncio.Future[None] | None = None
        self._looking: asyncio.Future[None] | None = None  # at the pod's memory

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(self._warnings.values())

    def _warn(self, topic: _Topic, text: str | None) -> None:
        """What is so now; None: nothing to warn of."""
        if self._warnings.get(topic) == text:
            return
        if text is None:
            del self._warnings[topic]
        else:
            self._warnings[topic] = text
            log.warning("%s", text)
        self.on_warnings()

    async def close(self) -> None:
        for task in (self._guarding, self._looking):
            if task is not None:
                task.cancel()
        self._way_back.close()
        await self._carriers.close()
        await self.api.close()

    @contextlib.asynccontextmanager
    async def _asking(self) -> AsyncGenerator[None, None]:
        done = False
        try:
            yield
            done = True
        finally:
            if self._looks_only or not done:  # a session whose target is not found ends here too
                await self.close()

    async def find(self) -> TargetFound:
        if isinstance(self._target, Targetless):
            return TargetFound(text="targetless", where=f"namespace {self.namespace}", uid=f"{self.namespace}/{self._session}")
        async with self._asking():
            found = self._found = await self._look()
        self._fresh = True
        return TargetFound(
            text=str(self._target),
            where=f"pod {found.name} in namespace {self.namespace}",
            uid=found.uid,
            host_network=found.host_network,
            hostname=found.hostname,
        )

    async def _now(self) -> PodFound:
        """The pod that was found, as it is now; another one of the target where it is ready no more."""
        fresh, self._fresh = self._fresh, False  # what is made from now on is not in what was found
        if self._found is not None and fresh:
            return self._found
        if self._found is not None:
            with contextlib.suppress(Missing):
                pod = await self._finder.pod(self._found.name)
                if is_ready(pod) and pod["metadata"]["uid"] == self._found.uid:
                    return PodFound(pod, self._found.container)
        return await self._look()

    async def _look(self) -> PodFound:
        assert isinstance(self._target, KubeTarget)  # the callers know
        return await self._finder.find(self._target.kind, self._target.name, self._wish.container, self._has_our_agent)

    def _has_our_agent(self, pod: Json) -> bool:
        known = self._memory.recall(pod["metadata"]["uid"])
        return known is not None and agents.running_agent(pod, known.name) == known.container_id

    async def start_agent(self, public_key: str, progress: Progress) -> AgentIdentity:
        self._way_back.drop()
        settings = AgentSettings(
            image=self._image,
            public_key=public_key,
            ttl_s=self._wish.agent_ttl_s,
            listen="any" if self._wish.via == "direct" else "loopback",
            pull_policy=self._wish.agent_pull_policy,
        )
        self._warn("helper", None)
        if isinstance(self._target, Targetless):
            return await self._helper(settings, None, progress)
        found = self._found = await self._now()
        if found.host_network and not self._wish.yes_host_network:
            raise ClusterError(f"pod {found.name} is on its node's own network: the app would be the node", hint="--yes-host-network")
        if self._wish.agent_kind == "pod":
            return await self._helper(settings, found, progress)
        if agent := await self._reuse(found, settings):
            progress(f"using agent {agent.name} again")
            self._look_at_memory(found, agent.name)
        else:
            self._look_at_memory(found)
            agent = await self._ephemeral(found, settings, progress)
        self._guard(found, agent.name)
        return agent

    async def _reuse(self, found: PodFound, settings: AgentSettings) -> AgentIdentity | None:
        known = self._memory.recall(found.uid)
        if known is None or known.made_of != _made_of(settings) or agents.running_agent(found.pod, known.name) != known.container_id:
            return None
        host = found.pod["status"].get("podIP") if settings.listen == "any" else None
        identity = AgentIdentity(known.agent_id, known.host_key, known.port, known.name, host, reused=True)
        self._agent = (found.name, known.name)
        try:
            self._way_back.keep(identity, *await self._dial(identity, ()))
        except (LinkError, AgentFailed) as error:  # it has just ended, or is about to: make another
            log.debug("! agent %s cannot be used again: %s", known.name, error.message)
            self._memory.forget(found.uid)
            return None
        return identity

    async def _ephemeral(self, found: PodFound, settings: AgentSettings, progress: Progress) -> AgentIdentity:
        name = agents.PREFIX + self._session
        taken = {c["name"] for c in found.pod["spec"].get("ephemeralContainers") or ()}
        if name in taken:  # an earlier one of this session: a name is never free again in a pod
            name = agents.fresh(name)
        uid = agents.target_uid(found.pod, found.container)
        progress(f"adding ephemeral container {name} to pod {found.name}")
        try:
            await self._launcher.patch(found.name, agents.ephemeral(name, settings, "restricted", uid))
        except Refused as error:
            raise AgentFailed(f"the API server refused the agent (rung restricted): {error.said}",
                              hint="--agent pod puts it into a pod of its own, if that is allowed") from error  # fmt: skip
        except Missing as error:
            raise TargetNotFound(f"pod {found.name} went away before the agent could be added: {error.message}") from error
        pod = await self._launcher.running(found.name, name, progress)
        progress("waiting for the agent's first words")
        identity = await self._introduced(found.name, name, pod, settings)
        container_id = agents.running_agent(pod, name)
        if container_id:
            remembered = Remembered(name, container_id, identity.agent_id, identity.host_key, identity.port, _made_of(settings))
            self._memory.keep(found.uid, remembered)
        return identity

    async def _helper(self, settings: AgentSettings, found: PodFound | None, progress: Progress) -> AgentIdentity:
        name = agents.fresh(agents.PREFIX + self._session)
        labels = {"mbridge.session": self._session, "mbridge.role": "agent", "mbridge.owner": self._owner}
        body = agents.helper_pod(name, settings, self._wish.helper, labels, found.pod if found else None)
        progress(f"creating helper pod {name}")
        try:
            await self._launcher.create(body)
        except Refused as error:
            raise AgentFailed(f"the API server refused the helper pod (rung restricted): {error.said}",
                              hint=f"kubectl describe quota,limitrange -n {self.namespace}") from error  # fmt: skip
        try:
            pod = await self._launcher.running(name, "agent", progress)
            identity = await self._introduced(name, "agent", pod, settings)
        except BaseException:
            with contextlib.suppress(BridgeError):
                await self._launcher.delete(name)
            raise
        if found:
            self._warn("helper", f"helper pod {name}: its own address, loopback and network policy, not those of {found.name}")
        return identity

    def _look_at_memory(self, found: PodFound, reused: str | None = None) -> None:
        """Beside all else that a start does, which takes longer."""

        async def look() -> None:
            text = None
            with contextlib.suppress(BridgeError, TimeoutError):
                async with asyncio.timeout(_MEMORY_LIMIT_S):
                    room = await headroom.look(found.pod, found.container, functools.partial(self._carriers.output, found.name), reused)
                if room is not None and not room.enough:
                    text = (
                        f"pod {found.name}: {room}, and the agent takes up to {headroom.AGENT_TAKES >> 20}: raise the limit, or --agent pod"
                    )
            self._warn("memory", text)

        if self._looking is not None:
            self._looking.cancel()
        self._looking = asyncio.ensure_future(look())

    async def _introduced(self, pod_name: str, container: str, pod: Json, settings: AgentSettings) -> AgentIdentity:
        agent_id, port, host_key = await self._launcher.first_line(pod_name, container)
        self._agent = (pod_name, container)
        host = pod["status"].get("podIP") if settings.listen == "any" else None
        name = container if container != "agent" else pod_name
        return AgentIdentity(agent_id, host_key, port, name, host)

    async def dial(self, agent: AgentIdentity, avoid: Sequence[str]) -> tuple[Via, socket.socket]:
        if self._fault is not None:
            raise self._fault
        return self._way_back.take(agent, avoid) or await self._dial(agent, avoid)

    async def _dial(self, agent: AgentIdentity, avoid: Sequence[str]) -> tuple[Via, socket.socket]:
        """The first carrier that works. When none does, raises what another try may help, else the first one's error.

        A server that answers that it cannot may mean this way alone (a gateway's limit or time-out); one that does not answer, all ways.
        """
        ways: Sequence[str] = CARRIERS if self._wish.via == "auto" else (self._wish.via,)
        ways = [way for way in ways if way not in avoid] or ways
        first: BridgeError | None = None
        for way in ways:
            try:
                return await self._one(way, agent, first)
            except VersionMismatch:  # of the agent, whatever the way to it
                raise
            except (LinkError, Forbidden, Refused, Missing) as error:
                first = first or error
            except Unavailable as error:
                first = error
        assert first is not None  # there is at least one way
        if isinstance(first, Forbidden):
            raise first
        raise await self._explained(first)

    async def _one(self, way: str, agent: AgentIdentity, why: BridgeError | None = None) -> tuple[Via, socket.socket]:
        """`why`: what a better way has failed with."""
        if self._agent is None:
            raise LinkLost("there is no agent yet")
        pod, container = self._agent
        match way:
            case "port-forward":
                opened = await self._carriers.port_forward(pod, agent.port, preamble.SIZE)
            case "exec":
                opened = await self._carriers.exec(pod, container, [agents.PYTHON, "-m", "bridge.agent", "door"], preamble.SIZE)
            case "direct":
                return way, await direct.dial(agent, _DIAL_S)
            case _:
                raise SpecError(f"{way!r} is no carrier of a Kubernetes target", hint="--via auto, port-forward, exec or direct")
        try:
            preamble.check(opened.head, agent.agent_id)
        except BaseException:
            opened.sock.close()
            raise
        if way == "exec" and self._wish.via == "auto":
            self._way_back.stands_in(agent, opened.pump.ended, opened.pump.stop, why)
        return way, opened.sock

    async def _explained(self, error: BridgeError) -> BridgeError:
        """A dial failed: has the agent ended (make another), or is only the way to it broken (try again)?"""
        if self._agent is None:
            return error
        name, container = self._agent
        try:
            pod = await self._finder.pod(name)
        except Missing:
            return LinkLost(f"pod {name} is gone")
        except BridgeError:
            return error if isinstance(error, Unavailable) else LinkLost(error.message)
        verdict, said = agents.waiting_for(pod, container)
        if verdict == "running":
            return error if isinstance(error, LinkLost | Unavailable) else LinkLost(error.message)
        self._memory.forget(pod["metadata"]["uid"])
        return AgentFailed(f"agent {container} in pod {name} has ended: {said or verdict}")

    async def environ(self) -> Environ:
        if isinstance(self._target, Targetless):
            return Environ(b"")
        async with self._asking():
            if self._found is None:
                self._found = await self._look()
            environ = await self._environ.read(self._found)
        if environ.warning is not None:
            log.warning("%s", environ.warning)
        return environ

    async def watch(self) -> AsyncGenerator[TargetChange, None]:
        if isinstance(self._target, Targetless) or self._found is None:
            await asyncio.Event().wait()
            return
        follower = Follower(self.api, self.namespace, self._found, self._look)
        async with contextlib.aclosing(follower.changes()) as changes:
            async for kind, why in changes:
                self._found = follower.found
                if kind == "moved":
                    self._agent = None
                    self._way_back.drop()
                yield TargetChange(kind, why)

    def _guard(self, found: PodFound, agent: str) -> None:
        """Only where the target shares the agent's PID namespace can it write into the agent's log."""

        async def guard() -> None:
            try:
                await self._launcher.guard(found.name, agent)
            except HostKeyMismatch as error:
                self._fault = error
                await self._carriers.close()
            except BridgeError as error:
                log.info("! the log of agent %s is watched no more: %s", agent, error.message)

        if self._guarding is not None:
            self._guarding.cancel()
        if found.pod["spec"].get("shareProcessNamespace"):
            self._guarding = asyncio.ensure_future(guard())

    def distrust_agent(self) -> None:
        """Nobody can end it before its TTL does; who does not remember it makes another."""
        if self._found is not None:
            self._memory.forget(self._found.uid)

    async def remove_agent(self) -> None:
        try:
            await remove(self.api, self.namespace, self._session)
        finally:
            await self.close()


async def remove(api: Api, namespace: str, session: str) -> None:
    """Delete the session's helper pods; ephemeral containers end by their TTL."""
    query = [("labelSelector", f"mbridge.session={session},mbridge.role=agent")]
    try:
        items = (await api.get(path_of("pod", namespace), query))["items"]
    except Forbidden:
        return  # whoever may not list made none either: a helper pod's start looks at it
    for item in items:
        with contextlib.suppress(Missing):
            await api.request("DELETE", path_of("pod", namespace, item["metadata"]["name"]), [("gracePeriodSeconds", "0")])


def _made_of(settings: AgentSettings) -> str:
    return hashlib.sha256("\0".join((settings.image, settings.public_key, settings.listen)).encode()).hexdigest()

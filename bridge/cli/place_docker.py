"""Targets on a Docker engine: `docker/NAME` and `compose/PROJECT/SERVICE`.

Theory of operation: the agent is a container in the target's network namespace (`--network container:TARGET`), with no right at
all; it dies with that namespace's use, so a target that restarted gets a new one. Its carriers, best first:

    direct   this process dials the target's address, which a local Linux engine's bridge networks let it; we never join them
    exec     `python -m bridge.agent door` in the agent's container, its stdio pumped into a socket pair

Either is checked by the agent's first 16 bytes before it is handed on. A carrier by exec makes way for a direct one when the agent can
be dialled again (engine/way_back.py).

The environment is read from /proc/PID/environ: by this process where it may (same machine, same user or root), else by a
container in the target's PID namespace that ends at once.

Limits: Linux containers. A target in another container's network namespace is reached at its owner's addresses.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from bridge.adapters.docker import bodies
from bridge.adapters.docker.engine import Engine
from bridge.adapters.docker.wire import STDOUT, EngineRefused, Hijacked
from bridge.adapters.hostdoor import join
from bridge.cli import direct
from bridge.cli.own_images import ensure
from bridge.engine.needs import TargetChange, Via
from bridge.engine.up import untorn
from bridge.engine.way_back import WayBack
from bridge.errors import AgentFailed, BridgeError, HostError, HostKeyMismatch, LinkError, LinkLost, TargetNotFound
from bridge.model.environ import Environ
from bridge.model.facts import AgentIdentity, TargetFound
from bridge.model.target import ComposeTarget, DockerTarget
from bridge.protocol import preamble

log = logging.getLogger(__name__)

_FIRST_LINE = re.compile(r"mbridge-agent 1 ([0-9a-f]{16}) (\d{1,5}) (ssh-ed25519 [A-Za-z0-9+/=]{60,100})")
_AGENT_DOOR = ("/opt/mbridge/bin/python", "-m", "bridge.agent", "door")
_START_S = 15.0
_DIAL_S = 1.5  # to an address of this very machine's
_EVENTS_RETRY_S = 1.0
Json = dict[str, Any]


class DockerPlace:
    """One session's target on one engine. Implements engine/needs.py: Place."""

    def __init__(
        self,
        target: DockerTarget | ComposeTarget,
        engine: Engine,
        session: str,
        owner: str,
        *,
        via: str = "auto",
        agent_image: str | None = None,
        ttl_s: int = 180,
        hand_volume: str | None = None,
    ) -> None:
        self.target = target
        self.engine = engine
        self._session, self._owner = session, owner
        self._via, self._agent_image, self._ttl_s = via, agent_image, ttl_s
        self._hand_volume = hand_volume
        self.warnings: tuple[str, ...] = ()
        self.on_warnings: Callable[[], None] = lambda: None
        self._container: Json | None = None  # as last found
        self._dialled: str | None = None  # the agent of the last dial
        self._way_back = WayBack(self._dial_direct)
        self._changes: asyncio.Queue[TargetChange | BridgeError] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def name(self) -> str:
        """Of the agent's container."""
        return f"mbridge-{self._session}-agent"

    async def find(self) -> TargetFound:
        await self.engine.connect()
        container = await (self._by_name(self.target) if isinstance(self.target, DockerTarget) else self._by_service(self.target))
        state = container["State"]
        name = container["Name"].lstrip("/")
        if not state["Running"] or state.get("Restarting") or state.get("Paused"):
            raise TargetNotFound(f"container {name} is {state['Status']}, not running", hint=_hint_for(state["Status"], name))
        self._container = container
        owner = await self._netns_owner(container)
        return TargetFound(
            str(self.target),
            f"container {name}",
            container["Id"],
            host_network=owner["HostConfig"]["NetworkMode"] == "host",
            hostname=container["Config"].get("Hostname") or None,
            networks=tuple(owner["NetworkSettings"].get("Networks") or ()),
        )

    async def start_agent(self, public_key: str, progress: Callable[[str], None]) -> AgentIdentity:
        found = await self.find()
        image = self._agent_image
        if image is None:
            image = await ensure(self.engine, "agent", progress)
        elif await self.engine.image(image) is None:
            await self.engine.pull(image, None, progress)
        listen = "loopback" if found.host_network else "any"
        marks = bodies.labels(self._session, "agent", self._owner)
        of_volume = bodies.volume_labels(self._session, self._owner)
        hand = bodies.hand_mount(self._hand_volume, of_volume) if self._hand_volume else None
        body = bodies.agent(image, found.uid, public_key, self._ttl_s, listen, marks, hand)
        progress(f"starting {self.name}")
        with contextlib.suppress(HostError):
            await self.engine.remove(self.name)
        try:
            await untorn(self.engine.create(self.name, body), name="create agent")
            await self.engine.start(self.name)
        except EngineRefused as exc:
            raise AgentFailed(f"the agent beside {found.where} does not start: {exc.message}") from exc
        line = await self._first_line()
        agent_id, port, key = line
        container = self._container
        assert container is not None
        return AgentIdentity(agent_id, key, port, self.name, next(iter(await self._addresses(container)), None))

    async def dial(self, agent: AgentIdentity, avoid: Sequence[str]) -> tuple[Via, socket.socket]:
        ways = [way for way in ("direct", "exec") if self._via in ("auto", way)]
        if not ways:
            raise LinkLost(f"a carrier by {self._via} does not exist for {self.target}: there are direct and exec")
        if agent.agent_id != self._dialled:  # what failed was another agent
            self._dialled, avoid = agent.agent_id, ()
        if (ready := self._way_back.take(agent, avoid)) is not None:
            return ready
        faults: list[str] = []
        for way in sorted(ways, key=lambda way: way in avoid):  # stable: what has not just failed comes first
            try:
                return await (self._dial_direct(agent) if way == "direct" else self._dial_exec(agent))
            except LinkError as exc:
                faults.append(f"{way}: {exc.message}")
        container = await self.engine.inspect(agent.name)
        if container is None or not container["State"]["Running"]:
            last = await self.engine.last_lines(agent.name, 5) if container else []
            raise AgentFailed(f"the agent {agent.name} has ended", hint="\n".join(last) or None)
        raise LinkLost("; ".join(faults))

    async def environ(self) -> Environ:
        container = self._container or await self._found()
        here = await asyncio.to_thread(_own_proc, container)
        if here is not None:
            return Environ(here)
        image = self._agent_image or await ensure(self.engine, "agent", log.info)
        body = bodies.reader(image, container["Id"], bodies.labels(self._session, "agent", self._owner))
        try:
            return Environ(await untorn(self._read_environ(body), name="read environ"))
        except HostError as exc:
            warning = f"the environment is the container's settings, not the process's own: {exc.message}"
            log.warning("%s", warning)
            return Environ(b"".join(entry.encode() + b"\0" for entry in container["Config"].get("Env") or ()), warning)

    async def watch(self) -> AsyncIterator[TargetChange]:
        task = asyncio.get_running_loop().create_task(self._follow_events(), name="target-events")
        try:
            while True:
                change = await self._changes.get()
                if isinstance(change, BridgeError):
                    raise change
                yield change
        finally:
            task.cancel()

    def distrust_agent(self) -> None:
        """Each start makes an agent of its own, here."""

    async def close(self) -> None:
        self._way_back.close()
        for task in self._tasks:
            task.cancel()

    async def remove_agent(self) -> None:
        await self.close()
        await self.engine.connect()
        for container in await self.engine.containers(label=[f"mbridge.session={self._session}", "mbridge.role=agent"]):
            await self.engine.remove(container["Id"])

    # looking the target up

    async def _by_name(self, target: DockerTarget) -> Json:
        container = None
        try:
            container = await self.engine.inspect(target.name)
        except EngineRefused as exc:
            if "multiple ids" not in exc.message.lower():  # the engine's words for several with that beginning; told better below
                raise
        if container is not None:
            return container
        listed = await self.engine.containers()
        same = [_name(one) for one in listed if one["Id"].startswith(target.name)]
        if len(same) > 1:
            raise TargetNotFound(
                f"{target.name!r} is the beginning of several containers' ids: {', '.join(same)}", hint="use a name of these"
            )
        names = sorted(_name(one) for one in listed if one["State"] == "running" and "mbridge.role" not in one["Labels"])
        near = get_close_matches(target.name, names, 3) or [name for name in names if target.name in name][:3]
        said = f"did you mean {' or '.join(f'docker/{name}' for name in near)}?" if near else "mbridge ls docker lists what can be a target"
        raise TargetNotFound(f"no container is called {target.name!r}", hint=said)

    async def _by_service(self, target: ComposeTarget) -> Json:
        project = await self.engine.containers(label=[f"com.docker.compose.project={target.project}"])
        of_service = [
            one
            for one in project
            if one["Labels"].get("com.docker.compose.service") == target.service
            and one["Labels"].get("com.docker.compose.oneoff") != "True"
        ]
        if of_service:
            of_service.sort(key=lambda one: (one["State"] != "running", int(one["Labels"].get("com.docker.compose.container-number", "1"))))
            container = await self.engine.inspect(of_service[0]["Id"])
            if container is not None:
                return container
        services = sorted({one["Labels"].get("com.docker.compose.service", "") for one in project} - {""})
        if services:
            near = get_close_matches(target.service, services, 1)
            hint = f"did you mean compose/{target.project}/{near[0]}?" if near else f"it has {', '.join(services)}"
            raise TargetNotFound(f"compose project {target.project!r} has no service {target.service!r}", hint=hint)
        listed = await self.engine.containers(label=["com.docker.compose.project"])
        projects = sorted({one["Labels"]["com.docker.compose.project"] for one in listed})
        near = get_close_matches(target.project, projects, 1)
        hint = f"did you mean compose/{near[0]}/{target.service}?" if near else "docker compose ls --all"
        raise TargetNotFound(f"no compose project is called {target.project!r}", hint=hint)

    async def _found(self) -> Json:
        await self.find()
        assert self._container is not None
        return self._container

    async def _netns_owner(self, container: Json) -> Json:
        """The container whose network the target uses: itself, or the one that `--network container:X` names."""
        for _ in range(8):
            mode = container["HostConfig"]["NetworkMode"]
            if not mode.startswith("container:"):
                break
            other = await self.engine.inspect(mode.removeprefix("container:"))
            if other is None:
                break
            container = other
        return container

    async def _addresses(self, container: Json) -> list[str]:
        """Where this machine may reach the target's namespace, if anywhere."""
        if not self.engine.endpoint.is_unix or sys.platform != "linux":
            return []
        owner = await self._netns_owner(container)
        if owner["HostConfig"]["NetworkMode"] == "host":
            return ["127.0.0.1"]
        networks = (owner["NetworkSettings"].get("Networks") or {}).values()
        return [address for network in networks for address in (network.get("IPAddress"), network.get("GlobalIPv6Address")) if address]

    # the agent

    async def _first_line(self) -> tuple[str, int, str]:
        """(agent id, port, host key) of the agent's first log line; the rest of the log is watched for a second such line."""
        found: asyncio.Future[tuple[str, int, str]] = asyncio.get_running_loop().create_future()
        self._spawn(self._read_log(found), "agent-log")
        try:
            async with asyncio.timeout(_START_S):
                return await found
        except TimeoutError as exc:
            raise AgentFailed(f"the agent said nothing within {_START_S:.0f} s", hint=f"docker logs {self.name}") from exc

    async def _read_log(self, found: asyncio.Future[tuple[str, int, str]]) -> None:
        try:
            async with self.engine.logs(self.name, follow=True) as stream:
                async for line in _lines(stream):
                    match = _FIRST_LINE.fullmatch(line)
                    if not found.done():
                        if not match:
                            await asyncio.sleep(0.2)  # it is about to end: its last words come with it
                            raise await self._failed("its first line is not an agent's")
                        found.set_result((match[1], int(match[2]), match[3]))
                    elif match or line.startswith("mbridge-agent "):
                        hint = "something in the target writes into the agent's log; do not use this target"
                        self._changes.put_nowait(HostKeyMismatch(f"a second host key in the log of {self.name}", hint=hint))
            if not found.done():
                raise await self._failed("it ended at once")
        except BridgeError as exc:
            if not found.done():
                found.set_exception(exc)

    async def _failed(self, why: str) -> AgentFailed:
        last = await self.engine.last_lines(self.name, 5)
        return AgentFailed(f"the agent did not start: {why}", hint="\n".join(last) or f"docker logs {self.name}")

    # carriers

    async def _dial_direct(self, agent: AgentIdentity) -> tuple[Via, socket.socket]:
        return "direct", await direct.dial(agent, _DIAL_S)

    async def _dial_exec(self, agent: AgentIdentity) -> tuple[Via, socket.socket]:
        try:
            joined = await self.engine.exec(agent.name, _AGENT_DOOR)
        except EngineRefused as exc:
            raise LinkLost(exc.message) from exc
        rest = _Rest(joined)
        try:
            async with asyncio.timeout(direct.GREETING_S):
                first = await rest.take(preamble.SIZE)
            preamble.check(first, agent.agent_id)
        except OSError as exc:  # a TimeoutError is one, without words
            joined.close()
            raise LinkLost((exc.strerror or "no answer").lower()) from exc
        except BaseException:
            joined.close()
            raise
        ours, theirs = socket.socketpair()
        for sock in (ours, theirs):
            sock.setblocking(False)
        carrier = self._spawn(join(ours, rest), "exec-carrier")
        if self._via == "auto" and agent.host is not None:
            self._way_back.stands_in(agent, carrier, carrier.cancel, None)
        return "exec", theirs

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # the environment

    async def _read_environ(self, body: Json) -> bytes:
        container = await self.engine.create(None, body)
        try:
            stream = await self.engine.attach(container, stdin=False, tty=False)
            started = asyncio.Event()
            waiting = asyncio.get_running_loop().create_task(self.engine.wait(container, started), name="environ-wait")
            await started.wait()
            await self.engine.start(container)
            said = {1: b"", 2: b""}
            async for kind, data in stream.chunks():
                said[kind] = said.get(kind, b"") + data
            if await waiting:
                raise HostError(said[2].decode(errors="replace").strip()[-300:] or "the reader failed")
            return said[1]
        finally:
            await self.engine.remove(container)

    # changes

    async def _follow_events(self) -> None:
        container = await self._found() if self._container is None else self._container
        started = container["State"]["StartedAt"]
        filters: dict[str, list[str]] = {"type": ["container"], "event": ["die", "start"]}
        if isinstance(self.target, ComposeTarget):
            filters["label"] = [f"com.docker.compose.project={self.target.project}", f"com.docker.compose.service={self.target.service}"]
        else:
            filters["container"] = [container["Name"].lstrip("/")]
        gone = False
        while True:
            with contextlib.suppress(BridgeError, OSError):
                async with self.engine.events(since=time.time() if self.engine.endpoint.is_unix else None, **filters) as events:
                    now = await self.engine.inspect(container["Id"])  # what happened before we listened
                    if now is not None and now["State"]["Running"] and now["State"]["StartedAt"] != started:
                        started, gone = now["State"]["StartedAt"], False
                        self._changes.put_nowait(TargetChange("moved", "the target was restarted"))
                    elif (now is None or not now["State"]["Running"]) and not gone:
                        gone = True
                        await self._on_gone(f"the target {_name_of(container)} has stopped")
                    async for event in events:
                        attributes = event["Actor"]["Attributes"]
                        if event["Action"] == "die" and event["Actor"]["ID"] == container["Id"] and not gone:
                            gone = True
                            code = attributes.get("exitCode", "?")
                            await self._on_gone(f"the target {_name_of(container)} has stopped (exit code {code})")
                        elif event["Action"] == "start" and (gone or event["Actor"]["ID"] == container["Id"]):
                            with contextlib.suppress(TargetNotFound):  # it stopped again at once
                                container = await self._refound()
                                started, gone = container["State"]["StartedAt"], False
                                self._changes.put_nowait(TargetChange("moved", f"the target {_name_of(container)} has started"))
            await asyncio.sleep(_EVENTS_RETRY_S)

    async def _on_gone(self, why: str) -> None:
        """The agent sits in a namespace without interfaces now, where every dial is refused at once: ended, it lets dials wait."""
        self._changes.put_nowait(TargetChange("gone", why))
        await self.engine.kill(self.name)

    async def _refound(self) -> Json:
        self._container = None
        return await self._found()


class _Rest:
    """A joined process whose first bytes have been taken."""

    def __init__(self, joined: Hijacked) -> None:
        self._joined = joined
        self._chunks = joined.chunks()
        self._kept: list[tuple[int, bytes]] = []
        self.writer = joined.writer
        self.end_input = joined.end_input
        self.close = joined.close

    async def take(self, size: int) -> bytes:
        taken = b""
        while len(taken) < size:
            try:
                kind, data = await anext(self._chunks)
            except StopAsyncIteration:  # anext's own default may be no tuple: a SystemError in CPython 3.11
                break
            if kind != STDOUT:
                raise LinkLost(f"the agent's door: {data.decode(errors='replace').strip()[-200:]}")
            taken += data
        if len(taken) > size:
            self._kept.append((STDOUT, taken[size:]))
        return taken[:size]

    async def chunks(self) -> AsyncIterator[tuple[int, bytes]]:
        for chunk in self._kept:
            yield chunk
        async for chunk in self._chunks:
            yield chunk


async def _lines(stream: Hijacked) -> AsyncIterator[str]:
    rest = b""
    async for _, data in stream.chunks():
        *lines, rest = (rest + data).split(b"\n")
        rest = rest[-4096:]
        for line in lines:
            yield line.decode(errors="replace").rstrip("\r")


def _own_proc(container: Json) -> bytes | None:
    """/proc/PID/environ where the engine's processes are this machine's own and we may read it; the cgroup proves whose it is."""
    proc = Path("/proc") / str(container["State"].get("Pid") or 0)
    try:
        if container["Id"] not in (proc / "cgroup").read_text():
            return None
        return (proc / "environ").read_bytes()
    except OSError:
        return None


def _name(listed: Json) -> str:
    names: list[str] = listed["Names"]
    return min((name.lstrip("/") for name in names), key=lambda name: name.count("/"), default=str(listed["Id"])[:12])


def _name_of(container: Json) -> str:
    return str(container["Name"]).lstrip("/")


def _hint_for(status: str, name: str) -> str:
    return {"paused": f"docker unpause {name}", "restarting": f"docker logs {name}"}.get(status, f"docker start {name}")

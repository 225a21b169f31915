"""`mbridge logs`: the logs of a session's parts as one stream of lines, each with its part's name.

The host process's log is a file of ours; bridge and app log to the developer's engine, the agent to the target's or, in a pod, to
its cluster (`kube_logs.py`). Without --follow the parts come one after another, with it as they speak. A part that cannot be read is
told, and keeps no other from it. Lines are escaped: what an app logs must not move the reader's cursor.

With --follow a part outlives its container: a bridge that is started again, an agent that is made anew, in Docker or in another pod,
are looked for while the session lives, and read on. Its container being away for a while, or its engine or cluster, is no end.

Limits: what was logged in a container that was removed before it was looked at is not seen.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from bridge.cli.ui import Ui, printable
from bridge.errors import BridgeError, Forbidden, TargetNotFound

if TYPE_CHECKING:
    from bridge.adapters.docker.engine import Engine

_POLL_S = 0.2
_LOOK_S = (0.25, 4.0)  # for the next container of a part: the first pause, and the longest
_LAST_WORDS_S = 1.0  # of an agent in a pod, which outlives the session by its TTL
_NEVER = "0001-"  # the year in which the engine says that a container started which never did


class Folder(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def log(self) -> Path: ...


class Source(Protocol):
    """Where a part logs: in a container, and when that has ended maybe in another."""

    def lines(self, follow: bool, tail: int | None, anew: Callable[[str], None]) -> AsyncIterator[str]:
        """What the part's newest container has logged since the last call; `anew` is told which, where the last call read another."""


async def show_logs(
    folder: Folder, parts: Sequence[str], follow: bool, tail: int | None, ui: Ui, engine: Engine | None, agent: Source | None = None
) -> int:
    """Print the parts' lines; with `follow` until Ctrl-C or the session's end. The exit code: that of a part that cannot be read.

    `agent` is where the agent logs, if that is not `engine`.
    """
    width = max(map(len, parts))
    code = 0
    alive = folder.log.parent.exists

    async def tell(part: str) -> None:
        nonlocal code
        if part == "host":
            lines = file_lines(folder.log, follow, tail, alive)
        elif part == "agent" and agent is not None:
            lines = _lines_of(part, agent, follow, tail, alive, ui)
        elif engine is not None:
            lines = _lines_of(part, EngineLog(engine, folder.id, part), follow, tail, alive, ui)
        else:
            return
        try:
            async for line in lines:
                ui.say(f"{part:<{width}} | {printable(line)}")
        except BridgeError as error:
            ui.fault(error)
            code = error.exit_code

    if not follow:
        for part in parts:
            await tell(part)
        return code
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(tell(part), name=f"logs-{part}") for part in parts]
        while alive() and not all(task.done() for task in tasks):
            await asyncio.wait(tasks, timeout=_POLL_S)
        await asyncio.wait(tasks, timeout=_LAST_WORDS_S)
        for task in tasks:
            task.cancel()
    return code


async def _lines_of(part: str, source: Source, follow: bool, tail: int | None, alive: Callable[[], bool], ui: Ui) -> AsyncIterator[str]:
    """A part's lines; with `follow` those of one container after another, and what keeps them away for a while is told once."""

    def anew(which: str) -> None:
        ui.note(f"the {part} was made anew: {which}; its log goes on here")

    began, pause_s, told = False, _LOOK_S[0], ""
    while True:
        try:
            async for line in source.lines(follow, None if began else tail, anew):
                began, pause_s, told = True, _LOOK_S[0], ""
                yield line
            if not follow:
                return
        except TargetNotFound:  # scaled to none, or between two pods: the next agent may come
            if not follow:
                raise
        except BridgeError as error:
            if not began or isinstance(error, Forbidden):
                raise
            if error.message != told:
                ui.warn(f"the {part}'s log is out of reach ({error.message}); trying again")
            told = error.message
        if not alive():
            return
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, _LOOK_S[1])


class EngineLog:
    """What a session's containers of one role have logged to an engine; nothing where there is none."""

    def __init__(self, engine: Engine, session: str, part: str) -> None:
        self._engine, self._labels = engine, [f"mbridge.session={session}", f"mbridge.role={part}"]
        self._read: tuple[str, str] | None = None  # the container, and the start of it, that was read last

    async def lines(self, follow: bool, tail: int | None, anew: Callable[[str], None]) -> AsyncIterator[str]:
        if self._engine.wire.version is None:
            await self._engine.connect()
        found = await self._engine.containers(label=self._labels)
        newest = await self._engine.inspect(found[0]["Id"]) if found else None
        if newest is None or newest["State"]["StartedAt"].startswith(_NEVER):
            return
        life, before = (newest["Id"], newest["State"]["StartedAt"]), self._read
        if life == before:
            return
        self._read, since = life, None
        if before is not None and before[0] == life[0]:  # not its start: lines may be older than what the engine calls that
            since = datetime.fromisoformat(newest["State"]["FinishedAt"]).timestamp()
        elif before is not None:
            anew(f"container {newest['Name'].lstrip('/')}, {newest['Id'][:12]}")
        async for line in container_lines(self._engine, newest["Id"], follow, tail, since):
            yield line


async def file_lines(path: Path, follow: bool, tail: int | None, alive: Callable[[], bool], poll_s: float = _POLL_S) -> AsyncIterator[str]:
    """Lines of a file that may not be there yet; with `follow` until `alive` says no."""
    try:
        with path.open("rb") as file:
            for line in deque(file, maxlen=tail):
                yield _text(line)
            rest = b""
            while follow and alive():
                *lines, rest = (rest + file.read()).split(b"\n")
                for line in lines:
                    yield _text(line)
                await asyncio.sleep(poll_s)
    except FileNotFoundError:
        return


async def container_lines(engine: Engine, container: str, follow: bool, tail: int | None, since: float | None = None) -> AsyncIterator[str]:
    rests: dict[int, bytes] = {}
    async with engine.logs(container, follow=follow, tail=tail, since=since) as stream:
        async for channel, data in stream.chunks():
            *lines, rests[channel] = (rests.get(channel, b"") + data).split(b"\n")
            for line in lines:
                yield _text(line)
    for rest in rests.values():
        if rest:
            yield _text(rest)


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip("\r\n")

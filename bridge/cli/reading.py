"""`mbridge logs`: the logs of a session's parts as one stream of lines, each with its part's name.

The host process's log is a file of ours; bridge and app log to the developer's engine, the agent to the target's or, in a pod, to
its cluster (`kube_logs.py`). Without --follow the parts come one after another, with it as they speak. A part that cannot be read is
told, and keeps no other from it. Lines are escaped: what an app logs must not move the reader's cursor.

Limits: --follow ends with the agent that runs now; one that is made anew later is seen by the next call.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from bridge.cli.ui import Ui, printable
from bridge.errors import BridgeError

if TYPE_CHECKING:
    from bridge.adapters.docker.engine import Engine

_POLL_S = 0.2
Lines = Callable[[bool, int | None], AsyncIterator[str]]  # (follow, tail)


class Folder(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def log(self) -> Path: ...


async def show_logs(
    folder: Folder, parts: Sequence[str], follow: bool, tail: int | None, ui: Ui, engine: Engine | None, agent: Lines | None = None
) -> int:
    """Print the parts' lines; with `follow` until Ctrl-C or the session's end. The exit code: that of a part that cannot be read.

    `agent` is where the agent logs, if that is not `engine`.
    """
    width = max(map(len, parts))
    code = 0

    async def tell(part: str) -> None:
        nonlocal code
        try:
            lines = agent(follow, tail) if part == "agent" and agent else await _source(part, folder, follow, tail, engine)
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
        for part in parts:
            group.create_task(tell(part), name=f"logs-{part}")
    return code


async def _source(part: str, folder: Folder, follow: bool, tail: int | None, engine: Engine | None) -> AsyncIterator[str]:
    if part == "host":
        return file_lines(folder.log, follow, tail, folder.log.parent.exists)
    return of_engine(engine, folder.id, part)(follow, tail) if engine is not None else _nothing()


def of_engine(engine: Engine, session: str, part: str) -> Lines:
    """What a session's container on an engine has logged; nothing where it has none."""

    async def lines(follow: bool, tail: int | None) -> AsyncIterator[str]:
        if engine.wire.version is None:
            await engine.connect()
        found = await engine.containers(label=[f"mbridge.session={session}", f"mbridge.role={part}"])
        if found:
            async for line in container_lines(engine, found[0]["Id"], follow, tail):
                yield line

    return lines


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


async def container_lines(engine: Engine, container: str, follow: bool, tail: int | None) -> AsyncIterator[str]:
    rests: dict[int, bytes] = {}
    async with engine.logs(container, follow=follow, tail=tail) as stream:
        async for channel, data in stream.chunks():
            *lines, rests[channel] = (rests.get(channel, b"") + data).split(b"\n")
            for line in lines:
                yield _text(line)
    for rest in rests.values():
        if rest:
            yield _text(rest)


async def _nothing() -> AsyncIterator[str]:
    no_lines: tuple[str, ...] = ()
    for line in no_lines:
        yield line


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip("\r\n")

"""`mbridge logs`: the logs of a session's parts as one stream of lines, each with its part's name.

The host process's log is a file of ours; bridge, agent and app log to their engine. Without --follow the parts come one after
another, with it as they speak. Lines are escaped: what an app logs must not move the reader's cursor.

Limits: an agent in Kubernetes is read by `kubectl logs`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from bridge.cli.ui import Ui, printable

if TYPE_CHECKING:
    from bridge.adapters.docker.engine import Engine

_POLL_S = 0.2


class Folder(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def log(self) -> Path: ...


async def show_logs(folder: Folder, parts: Sequence[str], follow: bool, tail: int | None, ui: Ui, engine: Engine | None) -> int:
    """Print the parts' lines; with `follow` until Ctrl-C or the session's end."""
    width = max(map(len, parts))
    sources = [await _source(part, folder, follow, tail, engine) for part in parts]

    async def tell(part: str, lines: AsyncIterator[str]) -> None:
        async for line in lines:
            ui.say(f"{part:<{width}} | {printable(line)}")

    if not follow:
        for part, lines in zip(parts, sources, strict=True):
            await tell(part, lines)
        return 0
    async with asyncio.TaskGroup() as group:
        for part, lines in zip(parts, sources, strict=True):
            group.create_task(tell(part, lines), name=f"logs-{part}")
    return 0


async def _source(part: str, folder: Folder, follow: bool, tail: int | None, engine: Engine | None) -> AsyncIterator[str]:
    if part == "host":
        return file_lines(folder.log, follow, tail, folder.log.parent.exists)
    if engine is None:
        return _nothing()
    if engine.wire.version is None:
        await engine.connect()
    found = await engine.containers(label=[f"mbridge.session={folder.id}", f"mbridge.role={part}"])
    return container_lines(engine, found[0]["Id"], follow, tail) if found else _nothing()


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

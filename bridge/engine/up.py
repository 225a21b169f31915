"""Plan → journal → apply → serve → undo: the only way in which a session changes the world.

Theory of operation: the journal is on disk before the first change, and each step is noted as made before it is made, so a step
that fails or is cancelled half way is undone with the rest. A step that is under way is never torn: a cancellation (Ctrl-C) waits
for it, because an engine that was asked for a container makes it whether or not we still listen.

    apply() …………… serve …………… undo()      at the app's end, at Ctrl-C, at a failure
    kill -9 at any point → the journal → undo() of all its steps, by `mbridge down` or the next start

The undo tolerates absence, cannot be cancelled, goes on past a failure and returns all that is left. It runs in waves: what runs
(containers, agents) all at once, then volumes, which running things hold, then folders.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from bridge.errors import BridgeError, CleanupError
from bridge.model.plan import Agent, Container, Folder, Op, Plan, Volume

log = logging.getLogger(__name__)
_Result = TypeVar("_Result")
Failure = tuple[Op, BridgeError]

_WAVES: tuple[tuple[type[Op], ...], ...] = ((Container, Agent), (Volume,), (Folder,))


class World(Protocol):
    """What carries out steps. Both calls may be repeated: `do` adopts what an earlier run of the same plan has made."""

    async def do(self, op: Op) -> None: ...
    async def undo(self, op: Op) -> None: ...


class Journal(Protocol):
    def save(self, plan: Plan) -> None:
        """On disk when this returns."""

    def forget(self) -> None:
        """All is undone."""


async def apply(steps: Sequence[Op], world: World, made: list[Op]) -> None:
    """Carry out each step in order, noted in `made` before it begins. The plan is in the journal already."""
    for op in steps:
        made.append(op)
        await untorn(world.do(op), name=str(op))


async def undo(steps: Sequence[Op], world: World) -> list[Failure]:
    """Undo these steps, in waves; those that could not be, with the reason."""
    failures: list[Failure] = []

    async def one(op: Op) -> None:
        try:
            await world.undo(op)
        except BridgeError as exc:
            log.warning("! undo: %s: %s", op, exc.message)
            failures.append((op, exc))

    async def all_waves() -> None:
        for kinds in _WAVES:
            async with asyncio.TaskGroup() as group:
                for op in dict.fromkeys(map(_Same, reversed(steps))):
                    if isinstance(op.op, kinds):
                        group.create_task(one(op.op), name=f"undo: {op.op}")

    await untorn(all_waves(), name="undo", to_the_end=True)
    return failures


class _Same:
    """An op by what it makes: a step that was made twice is undone once (bodies are dicts, so ops have no hash)."""

    def __init__(self, op: Op) -> None:
        self.op = op
        self._words = str(op)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._words == other._words

    def __hash__(self) -> int:
        return hash(self._words)


def what_is_left(session: str, failures: Sequence[Failure]) -> CleanupError:
    """For the user: the names of all that is left, the first reason, and the command to try again with."""
    names = ", ".join(dict.fromkeys(getattr(op, "name", None) or getattr(op, "path", None) or "the agent" for op, _ in failures))
    return CleanupError(f"not all could be undone; left: {names} ({failures[0][1].message})", hint=f"mbridge down {session}")


async def untorn(work: Coroutine[Any, Any, _Result], name: str, *, to_the_end: bool = False) -> _Result:
    """Await `work` to its end even when cancelled, then pass the cancellation on (not at all with `to_the_end`)."""
    task = asyncio.get_running_loop().create_task(work, name=name)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as exc:
            cancelled = exc
    if cancelled is not None and not to_the_end:
        if not task.cancelled() and task.exception() is not None:
            log.debug("! %s: %s", name, task.exception())
        raise cancelled
    return task.result()

"""Plan → journal → apply → serve → undo: the only way in which a session changes the world.

Theory of operation: the journal is on disk before the first change, and each step's undo is registered before the step is made,
so a step that fails or is cancelled half way is undone with the rest, newest first. A step that is under way is never torn:
a cancellation (Ctrl-C) waits for it, because an engine that was asked for a container makes it whether or not we still listen.
The undo itself cannot be cancelled, tolerates absence, goes on past a failure and reports in the end all that is left.

    apply() …………… serve …………… undo (by the AsyncExitStack, at Ctrl-C, at a failure, at the app's end)
    kill -9 at any point → the journal → undo_all() by `mbridge down` or the next start
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from bridge.errors import BridgeError, CleanupError
from bridge.model.plan import Op, Plan

log = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class World(Protocol):
    """What carries out steps. Both calls may be repeated: `do` adopts what an earlier run of the same plan has made."""

    async def do(self, op: Op) -> None: ...
    async def undo(self, op: Op) -> None: ...


class Journal(Protocol):
    def save(self, plan: Plan) -> None:
        """On disk when this returns."""

    def forget(self) -> None:
        """All is undone."""


async def apply(steps: Sequence[Op], world: World, stack: contextlib.AsyncExitStack, failures: list[tuple[Op, BridgeError]]) -> None:
    """Carry out each step in order; what cannot be undone later is put into `failures`. The plan is saved by the caller, before."""
    for op in steps:
        stack.push_async_callback(_undo, world, op, failures)
        await untorn(world.do(op), name=str(op))


async def undo_all(steps: Sequence[Op], world: World) -> list[tuple[Op, BridgeError]]:
    """Undo a plan from its journal, newest first; the steps that could not be, with the reason."""
    failures: list[tuple[Op, BridgeError]] = []
    for op in reversed(steps):
        await _undo(world, op, failures)
    return failures


async def _undo(world: World, op: Op, failures: list[tuple[Op, BridgeError]]) -> None:
    try:
        await untorn(world.undo(op), name=f"undo: {op}", to_the_end=True)
    except BridgeError as exc:
        log.warning("! undo: %s: %s", op, exc.message)
        failures.append((op, exc))


def what_is_left(session: str, failures: Sequence[tuple[Op, BridgeError]]) -> CleanupError:
    first = failures[0][1]
    names = ", ".join(getattr(op, "name", None) or getattr(op, "path", None) or str(op) for op, _ in failures)
    return CleanupError(f"not all could be undone; left: {names} ({first.message})", hint=f"mbridge down {session}")


async def untorn(work: Coroutine[Any, Any, _Result], name: str, *, to_the_end: bool = False) -> _Result:
    """Await `work` to its end even when cancelled, then pass the cancellation on (not at all with `to_the_end`)."""
    task = asyncio.get_running_loop().create_task(work, name=name)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as exc:
            if task.done() and task.cancelled():
                raise
            cancelled = exc
        except BaseException:  # the task's own failure: raised below, by result()
            break
    if cancelled is not None and not to_the_end:
        if not task.cancelled() and task.exception() is not None:
            log.debug("! %s: %s", name, task.exception())
        raise cancelled
    return task.result()

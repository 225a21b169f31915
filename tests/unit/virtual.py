"""An event loop whose clock jumps to the next timer when nothing else is ready: hours pass in no time."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any

LIMIT_S = 100_000.0


class _Selector(selectors.DefaultSelector):
    """Waits in virtual time; I/O within this process is ready at once, or will never be."""

    now = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None or self.now > LIMIT_S:
            raise AssertionError("the test waits for something that will never happen")
        self.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.selector = _Selector()
        super().__init__(self.selector)

    def time(self) -> float:
        return self.selector.now


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run `test` in virtual time; an error that only reached the loop fails it too."""
    errors: list[dict[str, Any]] = []
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.get_loop().set_exception_handler(lambda _, context: errors.append(context))
        runner.run(test)
    assert errors == []

from __future__ import annotations

import asyncio
import logging

import pytest

from bridge.errors import KernelLacks
from bridge.sidecar import networks
from tests.unit.descriptors import no_descriptors


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "SETTLED_S", 0.01)


class Said(logging.Handler):
    """Until something was logged."""

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__()
        self._logger = logger
        self._said = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self._said.set()

    async def something(self) -> None:
        self._logger.addHandler(self)
        try:
            await self._said.wait()
        finally:
            self._logger.removeHandler(self)


def test_a_look_that_fails_is_done_again() -> None:
    failures = [KernelLacks("the kernel does not answer"), OSError("no descriptor")] * 2

    async def scenario() -> None:
        looked = asyncio.Event()

        async def look() -> None:
            if failures:
                raise failures.pop()
            looked.set()

        async with asyncio.timeout(5), asyncio.TaskGroup() as group:
            task = group.create_task(networks.follow(look), name="networks")
            await looked.wait()
            task.cancel()

    asyncio.run(scenario())


def test_without_a_descriptor_for_the_kernels_messages_it_is_tried_again_and_all_is_looked_at_then() -> None:
    async def scenario() -> None:
        looked = asyncio.Event()

        async def look() -> None:
            looked.set()

        async with asyncio.timeout(5), asyncio.TaskGroup() as group:
            with no_descriptors():
                task = group.create_task(networks.follow(look), name="networks")
                await Said(networks.log).something()
                assert not looked.is_set()
            await looked.wait()
            task.cancel()

    asyncio.run(scenario())

"""The container level's tests that only look through a bridged app: other levels run these very functions with another lab."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable
from types import ModuleType

_OF_A_SESSION_OF_ITS_OWN = {"bridge", "own_cli", "cli", "client", "db", "cache"}


def looking(modules: Iterable[ModuleType], without: Collection[str]) -> dict[str, object]:
    """Name → test."""
    return {
        name: test
        for module in modules
        for name, test in vars(module).items()
        if name.startswith("test_") and name not in without and not set(inspect.signature(test).parameters) & _OF_A_SESSION_OF_ITS_OWN
    }

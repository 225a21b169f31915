"""How long to wait before the next attempt: 0.1 s, doubled up to 10 s, each with jitter.

The jitter takes away up to half of a wait, so that many sessions cut by one event do not come back in step, and no wait
is longer than its nominal value.
"""

from __future__ import annotations

from collections.abc import Callable

FIRST_S = 0.1
LAST_S = 10.0


class Backoff:
    """`random` gives numbers in [0, 1)."""

    def __init__(self, random: Callable[[], float], first_s: float = FIRST_S, last_s: float = LAST_S) -> None:
        self._random = random
        self._first_s = first_s
        self._last_s = last_s
        self._next_s = first_s

    def wait_s(self) -> float:
        """The wait before the next attempt; each call counts as one failed attempt."""
        nominal = self._next_s
        self._next_s = min(self._last_s, nominal * 2)
        return nominal * (1 - self._random() / 2)

    def reset(self) -> None:
        """An attempt went well."""
        self._next_s = self._first_s

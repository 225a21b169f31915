"""What the bench prints: one Row per figure of the table, with its verdict.

Theory of operation: a machine's speed changes from minute to minute, so only ratios within one round mean something. Rounds
alternate (ours, peer, ours, peer, ...); each round has a ratio of its own, and the row says the median of these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. `at_least`: more is better; `detail` holds the figures behind it."""

    name: str
    what: str
    value: float
    unit: str
    must: float
    goal: float
    detail: str = ""
    at_least: bool = False

    def reaches(self, bound: float) -> bool:
        return self.value >= bound if self.at_least else self.value <= bound

    @property
    def verdict(self) -> str:
        return "goal" if self.reaches(self.goal) else "must" if self.reaches(self.must) else "SHORT"

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": self.verdict}


def alternate(rounds: int, samples: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Each sample once a round; the one that comes first changes, for the first finds the machine in another state."""
    taken: dict[str, list[float]] = {name: [] for name in samples}
    for number in range(rounds):
        order = list(samples) if number % 2 == 0 else list(reversed(samples))
        for name in order:
            taken[name].append(samples[name]())
    return taken


def ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """The median of the rounds' own ratios."""
    return median(one / other for one, other in zip(over, under, strict=True))


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(rows: Sequence[Row]) -> str:
    """Markdown, aligned for a terminal as well."""
    head = ("what", "value", "must", "goal", "verdict", "behind it")
    lines = [
        (
            row.what,
            f"{number(row.value)} {row.unit}",
            f"{'≥' if row.at_least else '≤'} {number(row.must)}",
            f"{'≥' if row.at_least else '≤'} {number(row.goal)}",
            row.verdict,
            row.detail,
        )
        for row in rows
    ]
    widths = [max(len(line[at]) for line in (head, *lines)) for at in range(5)]
    cells = [head, (*tuple("-" * width for width in widths), "---"), *lines]
    aligned = [[*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[5]] for line in cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in aligned)

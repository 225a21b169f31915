"""What every level shares: skips that must not happen, and a report that `./dev test` adds up.

Theory of operation: the folder under tests/ is the level. `MBRIDGE_MUST_RUN=netns,container` turns a skip of those levels
into a failure, because there a missing prerequisite is a hole in the proof. One kind of skip stays one: a reason that begins
`lacks(`, as in `pytest.skip("lacks(nft queue)")`, names a feature of the kernel that no set-up can bring.

With `--mbridge-report FILE` one JSON object a line is written as tests start and end, so that a level which hangs or dies
still tells how far it came (tests/levels.py reads it).
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

LEVELS = ("unit", "assumptions", "fuzz", "netns", "container", "engine", "cluster")
_HERE = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--mbridge-report", metavar="FILE", help="append one JSON object a line for each test")


def _must_run() -> frozenset[str]:
    return frozenset(word.strip() for word in os.environ.get("MBRIDGE_MUST_RUN", "").split(",") if word.strip())


def pytest_configure(config: pytest.Config) -> None:
    if unknown := _must_run() - set(LEVELS):
        raise pytest.UsageError(f"MBRIDGE_MUST_RUN: no level {', '.join(sorted(unknown))}; there are {', '.join(LEVELS)}")


def level_of(path: Path) -> str | None:
    """The folder under tests/ that `path` lies in."""
    parts = path.relative_to(_HERE).parts if path.is_relative_to(_HERE) else ()
    return parts[0] if parts and parts[0] in LEVELS else None


def reason_of(longrepr: Any) -> str:
    """Why a report says skipped: pytest gives (file, line, "Skipped: reason")."""
    text = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
    return str(text).removeprefix("Skipped: ")


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport, level: str | None) -> None:
    if not report.skipped or hasattr(report, "wasxfail") or level not in _must_run():
        return
    reason = reason_of(report.longrepr)
    if not reason.startswith("lacks("):
        report.outcome = "failed"
        report.longrepr = f"skipped, where MBRIDGE_MUST_RUN names the level {level}: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _refuse_skip(report, level_of(item.path))
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse_skip(report, level_of(collector.path))
    return report


class _Report:
    """Writes the lines that tests/levels.py reads."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def _write(self, **line: Any) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._write(test=nodeid, outcome="started")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            sections = "\n".join(f"--- {name}\n{text}" for name, text in report.sections)
            self._write(test=report.nodeid, outcome="failed", text=f"{report.longreprtext}\n{sections}", when=report.when)
        elif report.skipped:
            self._write(test=report.nodeid, outcome="skipped", text=reason_of(report.longrepr))
        elif report.when == "call":
            self._write(test=report.nodeid, outcome="passed", seconds=round(report.duration, 3))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._write(test=report.nodeid, outcome="failed", text=report.longreprtext, when="collect")
        elif report.skipped:
            self._write(test=report.nodeid, outcome="skipped", text=reason_of(report.longrepr))


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    if path := session.config.getoption("--mbridge-report"):
        session.config.pluginmanager.register(_Report(Path(path)), "mbridge-report")

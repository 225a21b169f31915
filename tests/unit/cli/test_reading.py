"""`mbridge logs`: lines of a session's parts, each with its part's name, as they come."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bridge.cli.reading import file_lines, show_logs
from bridge.cli.ui import Ui
from tests.unit.cli.fakes import Stream


@dataclass
class Folder:
    path: Path
    id: str = "kqzwtb"

    @property
    def log(self) -> Path:
        return self.path / "log"


@dataclass
class Engine:
    """Containers by role, with what they have logged in pieces of (stream, bytes)."""

    logged: dict[str, list[tuple[int, bytes]]]
    asked: list[dict[str, Any]] = field(default_factory=list)
    wire: Any = field(default_factory=lambda: SimpleNamespace(version="1.41"))

    async def containers(self, label: list[str]) -> list[dict[str, Any]]:
        assert label[0] == "mbridge.session=kqzwtb"
        role = label[1].removeprefix("mbridge.role=")
        return [{"Id": role}] if role in self.logged else []

    @contextlib.asynccontextmanager
    async def logs(self, container: str, *, follow: bool, tail: int | None) -> AsyncIterator[Any]:
        self.asked.append({"container": container, "follow": follow, "tail": tail})

        async def chunks() -> AsyncIterator[tuple[int, bytes]]:
            for piece in self.logged[container]:
                yield piece

        yield SimpleNamespace(chunks=chunks)


def shown(folder: Path, engine: Any, *parts: str, follow: bool = False, tail: int | None = None) -> str:
    out = Stream()
    asyncio.run(show_logs(Folder(folder), parts, follow, tail, Ui(out, Stream()), engine))
    return out.getvalue()


def test_each_line_carries_its_parts_name(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("one\ntwo\n")
    engine = Engine({"bridge": [(1, b"wi"), (2, b"oops\n"), (1, b"red\nrest")]})
    assert shown(tmp_path, engine, "host", "bridge", "agent") == (
        "host   | one\nhost   | two\nbridge | oops\nbridge | wired\nbridge | rest\n"
    )  # fmt: skip


def test_a_session_that_has_made_nothing_yet_has_its_own_log_alone(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("starting\n")
    assert shown(tmp_path, None, "host", "bridge") == "host   | starting\n"


def test_the_last_lines_alone(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("1\n2\n3\n")
    engine = Engine({"app": [(1, b"x\n")]})
    assert shown(tmp_path, engine, "host", "app", tail=2) == "host | 2\nhost | 3\napp  | x\n"
    assert engine.asked == [{"container": "app", "follow": False, "tail": 2}]


def test_what_an_app_logs_moves_no_cursor(tmp_path: Path) -> None:
    assert shown(tmp_path, Engine({"app": [(1, b"\x1b[2Jx\r\n\xff\n")]}), "app") == "app | \\x1b[2Jx\napp | �\n"


def test_following_ends_with_the_session_and_misses_no_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("first\n")
    alive = iter([True, True, False])

    async def follow() -> list[str]:
        found = []
        lines = file_lines(path, True, None, lambda: next(alive), poll_s=0)
        async for line in lines:
            found.append(line)
            if line == "first":
                with path.open("a") as file:
                    file.write("second\nthi")
            if line == "second":
                with path.open("a") as file:
                    file.write("rd\n")
        return found

    assert asyncio.run(follow()) == ["first", "second", "third"]

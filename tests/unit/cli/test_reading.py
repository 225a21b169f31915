"""`mbridge logs`: lines of a session's parts, each with its part's name, as they come."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bridge.cli.kube_logs import newest
from bridge.cli.reading import file_lines, show_logs
from bridge.cli.ui import Ui
from bridge.errors import Forbidden
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


def test_a_part_that_cannot_be_read_is_told_and_keeps_no_other_from_it(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("one\n")

    async def refused(follow: bool, tail: int | None) -> AsyncIterator[str]:
        yield "first"
        raise Forbidden("get", "pods/log", "shop")

    for follow in (False, True):
        out, err = Stream(), Stream()
        folder = Folder(tmp_path / "ended" if follow else tmp_path)
        shown = show_logs(folder, ("agent", "host"), follow, None, Ui(out, err, environ={}), None, refused)
        assert asyncio.run(shown) == 4
        assert out.getvalue() == ("agent | first\n" if follow else "agent | first\nhost  | one\n")
        assert err.getvalue().startswith("mbridge: error: not allowed to get pods/log in namespace 'shop'\nmbridge: hint: ")


def pod(name: str, *agents: tuple[str, str, str], **labels: str) -> dict[str, Any]:
    """`agents`: (container, state, when it began)."""
    statuses = [{"name": container, "state": {state: {"startedAt": began}}} for container, state, began in agents]
    return {"metadata": {"name": name, "labels": labels}, "spec": {"ephemeralContainers": [{"name": one["name"]} for one in statuses]},
            "status": {"ephemeralContainerStatuses": statuses}}  # fmt: skip


def test_of_a_sessions_agents_in_pods_the_one_that_began_last_is_read() -> None:
    old = pod(
        "web-1", ("mbridge-kqzwtb", "terminated", "2026-01-01T10:00:00Z"), ("mbridge-kqzwtb-env-abcd", "running", "2026-01-01T12:00:00Z")
    )
    new = pod("web-2", ("mbridge-kqzwtb-x7y8", "running", "2026-01-01T11:00:00Z"), ("mbridge-kqzwtc", "running", "2026-01-01T13:00:00Z"))
    assert newest([old], "kqzwtb", "mbridge-kqzwtb") == ("web-1", "mbridge-kqzwtb")
    assert newest([old, new], "kqzwtb", "mbridge-kqzwtb") == ("web-2", "mbridge-kqzwtb-x7y8")
    assert newest([new], "aaaaaa", "mbridge-kqzwtc") == ("web-2", "mbridge-kqzwtc"), "an agent of another session, used again"
    assert newest([pod("mbridge-aaaaaa-1234", **{"mbridge.session": "aaaaaa"})], "aaaaaa", None) == ("mbridge-aaaaaa-1234", "agent")
    assert newest([old, new], "aaaaaa", None) is None


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

"""`mbridge logs`: lines of a session's parts, each with its part's name, as they come."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bridge.cli import reading
from bridge.cli.kube_logs import newest
from bridge.cli.reading import EngineLog, file_lines, show_logs
from bridge.cli.ui import Ui
from bridge.errors import EngineUnavailable, Forbidden, TargetNotFound
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
    state: dict[str, str] = field(default_factory=lambda: {"StartedAt": "2026-01-01T10:00:00Z", "FinishedAt": "0001-01-01T00:00:00Z"})
    asked: list[dict[str, Any]] = field(default_factory=list)
    wire: Any = field(default_factory=lambda: SimpleNamespace(version="1.41"))

    async def containers(self, label: list[str]) -> list[dict[str, Any]]:
        assert label[0] == "mbridge.session=kqzwtb"
        role = label[1].removeprefix("mbridge.role=")
        return [{"Id": role}] if role in self.logged else []

    async def inspect(self, container: str) -> dict[str, Any]:
        return {"Id": container, "Name": f"/mbridge-kqzwtb-{container}", "State": self.state}

    @contextlib.asynccontextmanager
    async def logs(self, container: str, *, follow: bool, tail: int | None, since: float | None) -> AsyncIterator[Any]:
        self.asked.append({"container": container, "follow": follow, "tail": tail, "since": since})

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


@dataclass
class Agent:
    """An agent's log, as one look after another finds it: its lines, an error that ends the look, or the name of a new container."""

    looks: list[list[str | Exception | tuple[str]]]
    tails: list[int | None] = field(default_factory=list)
    no_more: Callable[[], None] = lambda: None  # called in the last look

    async def lines(self, follow: bool, tail: int | None, anew: Callable[[str], None]) -> AsyncIterator[str]:
        self.tails.append(tail)
        look = self.looks.pop(0) if self.looks else []
        if not self.looks:
            self.no_more()
            self.no_more = lambda: None
        for said in look:
            if isinstance(said, Exception):
                raise said
            if isinstance(said, tuple):
                anew(*said)
            else:
                yield said


def followed(agent: Agent, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str, str]:
    """Until the session's folder goes, which is when the agent has no more to say."""
    monkeypatch.setattr(reading, "_LOOK_S", (0.001, 0.001))
    monkeypatch.setattr(reading, "_POLL_S", 0.001)
    out, err, home = Stream(), Stream(), folder / "kqzwtb"
    home.mkdir()

    agent.no_more = home.rmdir

    async def run() -> int:
        async with asyncio.timeout(5):
            return await show_logs(Folder(home), ["agent"], True, 3, Ui(out, err, environ={}), None, agent)

    return asyncio.run(run()), out.getvalue(), err.getvalue()


def test_following_goes_on_with_an_agent_that_was_made_anew_until_the_session_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = Agent([["one"], [], [TargetNotFound("no pod holds an agent")], [("mbridge-kqzwtb-x7y8 in pod web-2",), "two"]])
    assert followed(agent, tmp_path, monkeypatch) == (
        0, "agent | one\nagent | two\n", "mbridge: the agent was made anew: mbridge-kqzwtb-x7y8 in pod web-2; its log goes on here\n"
    )  # fmt: skip
    assert agent.tails[:2] == [3, None], "--tail is of what was there at the start"


def test_following_outlives_an_engine_or_cluster_that_is_away_and_says_so_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    away = EngineUnavailable("cannot connect")
    code, out, err = followed(Agent([["one", away], [away], ["two", away], ["three"]]), tmp_path, monkeypatch)
    assert (code, out) == (0, "agent | one\nagent | two\nagent | three\n")
    assert err == 2 * "mbridge: warning: the agent's log is out of reach (cannot connect); trying again\n"


@pytest.mark.parametrize("looks", [[[EngineUnavailable("no")]], [["one", Forbidden("get", "pods/log", "shop")]]])
def test_following_ends_with_an_error_that_time_does_not_mend(
    looks: list[list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = followed(Agent(looks), tmp_path, monkeypatch)
    assert code in (3, 4)
    assert "mbridge: error: " in err


def test_a_log_that_never_ends_is_left_when_the_session_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent in a pod lives on for its TTL, or for another session."""
    monkeypatch.setattr(reading, "_LAST_WORDS_S", 0.05)

    class Endless(Agent):
        async def lines(self, follow: bool, tail: int | None, anew: Callable[[str], None]) -> AsyncIterator[str]:
            async for line in super().lines(follow, tail, anew):
                yield line
            await asyncio.Event().wait()

    assert followed(Endless([["one"]]), tmp_path, monkeypatch) == (0, "agent | one\n", "")


def test_of_a_container_that_was_started_again_only_what_is_new_is_read(tmp_path: Path) -> None:
    engine = Engine({"bridge": [(1, b"said\n")]})
    log = EngineLog(engine, "kqzwtb", "bridge")  # type: ignore[arg-type]  # the fake has what is asked for here

    async def look() -> list[str]:
        return [line async for line in log.lines(True, None, lambda which: None)]

    assert asyncio.run(look()) == ["said"]
    assert asyncio.run(look()) == [], "the same life"
    engine.state = {"StartedAt": "2026-01-01T10:00:05.1Z", "FinishedAt": "2026-01-01T10:00:05.000000123Z"}
    assert asyncio.run(look()) == ["said"]
    assert [asked["since"] for asked in engine.asked] == [None, 1767261605.0]


def test_a_container_that_has_not_started_yet_is_waited_for(tmp_path: Path) -> None:
    engine = Engine({"app": [(1, b"said\n")]}, {"StartedAt": "0001-01-01T00:00:00Z", "FinishedAt": "0001-01-01T00:00:00Z"})
    assert shown(tmp_path, engine, "app") == ""
    assert not engine.asked


def test_a_part_that_cannot_be_read_is_told_and_keeps_no_other_from_it(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("one\n")

    for follow in (False, True):
        out, err = Stream(), Stream()
        folder = Folder(tmp_path / "ended" if follow else tmp_path)
        agent = Agent([["first", Forbidden("get", "pods/log", "shop")]])
        shown = show_logs(folder, ("agent", "host"), follow, None, Ui(out, err, environ={}), None, agent)
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
    helper = pod("mbridge-aaaaaa-1234", ("agent", "running", "2026-01-01T10:00:00Z"), **{"mbridge.session": "aaaaaa"})
    assert newest([helper], "aaaaaa", None) == ("mbridge-aaaaaa-1234", "agent")
    waits = pod("web-3", ("mbridge-kqzwtb-aaaa", "waiting", ""))
    assert newest([waits], "kqzwtb", None) is None, "it has no log yet"
    assert newest([old, new], "aaaaaa", None) is None


def test_the_last_lines_alone(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("1\n2\n3\n")
    engine = Engine({"app": [(1, b"x\n")]})
    assert shown(tmp_path, engine, "host", "app", tail=2) == "host | 2\nhost | 3\napp  | x\n"
    assert engine.asked == [{"container": "app", "follow": False, "tail": 2, "since": None}]


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

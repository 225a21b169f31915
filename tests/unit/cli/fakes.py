"""A caller whose outside world is a fake, and a way to run one command line against it."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bridge.cli import main
from bridge.cli.cmd_doctor import Check
from bridge.cli.looking import Listed, Where
from bridge.cli.ui import Ui
from bridge.cli.wiring import Image
from bridge.errors import BridgeError
from bridge.model.session import LinkStatus, SessionStatus, State
from bridge.model.wish import SessionWish


class Stream(io.StringIO):
    def __init__(self, terminal: bool = False) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def status(**changes: Any) -> SessionStatus:
    words: dict[str, Any] = {
        "id": "kqzwtb",
        "target": "docker/shop-api",
        "state": State.READY,
        "since": "2026-03-01T09:30:00Z",
        "link": LinkStatus("direct", "up", "2026-03-01T09:30:00Z"),
        "agent": "mbridge-kqzwtb-agent",
        "ports": ("8000:8000",),
        "app": "app",
    }
    return SessionStatus(**(words | changes))


@dataclass
class FakePlan:
    target: str
    steps: tuple[str, ...]

    def lines(self) -> list[str]:
        return list(self.steps)

    def to_json(self) -> dict[str, Any]:
        return {"target": self.target, "steps": list(self.steps)}


@dataclass
class FakeWiring:
    """Answers from its fields and keeps what it was asked."""

    running: list[SessionStatus] = field(default_factory=list)
    listed: list[Listed] = field(default_factory=list)
    findings: list[Check] = field(default_factory=list)
    env: bytes = b""
    app_exit: int = 0
    failure: BaseException | None = None
    pictures: list[list[SessionStatus]] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    old_images: list[str] = field(default_factory=list)
    asked: list[tuple[Any, ...]] = field(default_factory=list)

    def sessions(self) -> list[SessionStatus]:
        if self.pictures:
            self.running = self.pictures.pop(0)
        elif self.failure:
            raise self.failure
        return self.running

    def down(self, ids: Sequence[str], everything: bool, ui: Ui) -> list[str]:
        self.asked.append(("down", list(ids), everything))
        return [one.id for one in self.running if everything or one.id in ids]

    def logs(self, session: str, parts: Sequence[str], follow: bool, tail: int | None, ui: Ui) -> int:
        self.asked.append(("logs", session, tuple(parts), follow, tail))
        return 0

    def records(self) -> dict[str, str]:
        return self.files

    def targets(self, kind: str | None, where: Where, ui: Ui) -> list[Listed]:
        self.asked.append(("targets", kind, where))
        if self.failure:
            raise self.failure
        return [one for one in self.listed if kind is None or one.target.startswith(kind)]

    def checks(self, wish: SessionWish | None, where: Where, ui: Ui) -> Iterator[Check]:
        self.asked.append(("checks", wish, where))
        yield from self.findings

    def namespace(self, where: Where) -> str:
        return where.namespace or "of-the-context"

    def environ(self, wish: SessionWish, ui: Ui) -> bytes:
        self.asked.append(("environ", wish))
        return self.env

    def images(self, docker_context: str | None) -> list[Image]:
        return [Image("bridge", "mbridge-bridge:1", True, 90_000_000), Image("agent", "mbridge-agent:1", False)]

    def build_images(self, which: Sequence[str], force: bool, docker_context: str | None, ui: Ui) -> list[str]:
        self.asked.append(("build", tuple(which), force, docker_context))
        return [f"mbridge-{one}:1" for one in which]

    def save_images(self, file: Path, which: Sequence[str], docker_context: str | None, ui: Ui) -> None:
        self.asked.append(("save", file, tuple(which)))

    def load_images(self, file: Path, docker_context: str | None, ui: Ui) -> list[str]:
        return ["mbridge-bridge:1"]

    def load_into_cluster(self, to: str | None, command: str | None, where: Where, ui: Ui) -> str:
        self.asked.append(("load", to, command, where))
        return "mbridge-agent:1"

    def prune_images(self, dry_run: bool, docker_context: str | None, ui: Ui) -> list[str]:
        self.asked.append(("prune", dry_run, docker_context))
        return self.old_images

    def push_images(self, repository: str, which: Sequence[str], docker_context: str | None, ui: Ui) -> list[str]:
        return [f"{repository}-{one}:1" for one in which]

    def plan(self, wish: SessionWish) -> FakePlan:
        return FakePlan(str(wish.target), ("put an agent beside it", "create container app"))

    def run(self, wish: SessionWish, ui: Ui) -> int:
        self.asked.append(("run", wish))
        if self.failure:
            raise self.failure
        return self.app_exit

    def up(self, wishes: Sequence[SessionWish], ui: Ui) -> int:
        self.asked.append(("up", list(wishes)))
        return self.app_exit

    def up_detached(self, wishes: Sequence[SessionWish], ui: Ui) -> list[str]:
        self.asked.append(("up -d", list(wishes)))
        return ["kqzwtb"] * len(wishes)

    def forward(self, wish: SessionWish, forwards: Sequence[Any], ui: Ui) -> int:
        self.asked.append(("forward", wish, list(forwards)))
        return 0


@dataclass
class Ran:
    code: int
    out: str
    err: str
    wiring: FakeWiring

    @property
    def wish(self) -> SessionWish:
        """Of the one command that took one."""
        wish = self.wiring.asked[-1][1]
        return wish[0] if isinstance(wish, list) else wish


def mbridge(*args: str, wiring: FakeWiring | None = None, environ: dict[str, str] | None = None, terminal: bool = False) -> Ran:
    """One command line, in the current folder, without this machine's own MBRIDGE_* and engine."""
    wiring = wiring or FakeWiring()
    out, err = Stream(terminal), Stream(terminal)
    environ = environ or {}
    ui = Ui(out, err, environ=environ)
    code = main.run(args, main.Caller(ui, lambda: wiring, environ))  # type: ignore[arg-type]  # the fake has the methods, not the class
    return Ran(code, out.getvalue(), err.getvalue(), wiring)


def refused(message: str = "no engine", **words: Any) -> BridgeError:
    return BridgeError(message, **words)

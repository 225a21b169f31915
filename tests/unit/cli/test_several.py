"""Several apps side by side: output told apart, one end for all; and the process that `-d` leaves."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bridge.cli import detached, several
from bridge.cli.hosting import Manner
from bridge.cli.session_log import to_file
from bridge.cli.several import Prefixed, ended_by_signals, up_one, up_several
from bridge.cli.ui import Ui
from bridge.errors import BridgeError, HostError
from bridge.model.target import DockerTarget
from bridge.model.wish import AppWish, SessionWish
from tests.unit.cli.fakes import Stream

Hosted = Callable[[SessionWish, Any, Manner], Any]


def wish(name: str) -> SessionWish:
    return SessionWish(DockerTarget("x"), AppWish("img"), app_name=name)


def quiet(name: str) -> Ui:
    return Ui(Stream(), Stream())


def written(pieces: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    out: list[tuple[int, bytes]] = []

    async def keep(fd: int, data: bytes) -> bool:
        out.append((fd, data))
        return True

    async def run() -> None:
        prefixed = Prefixed(b"web | ", keep)
        for fd, data in pieces:
            await prefixed.write(fd, data)
        await prefixed.flush()

    asyncio.run(run())
    return out


def test_each_whole_line_carries_its_apps_name_and_keeps_its_stream() -> None:
    assert written([(1, b"on"), (2, b"err\n"), (1, b"e\ntwo\n"), (1, b"rest")]) == [
        (2, b"web | err\n"),
        (1, b"web | one\nweb | two\n"),
        (1, b"web | rest\n"),
    ]


def test_a_line_without_end_is_passed_on_in_parts() -> None:
    endless = b"x" * (70 << 10)
    assert written([(1, endless), (1, b"end\n")]) == [(1, b"web | " + endless + b"\n"), (1, b"web | end\n")]


def hosts(monkeypatch: pytest.MonkeyPatch, hosted: Hosted) -> None:
    monkeypatch.setattr(several, "host", hosted)


def test_up_ends_with_the_first_exit_code_that_is_not_0(monkeypatch: pytest.MonkeyPatch) -> None:
    async def host(wish: SessionWish, ui: Any, manner: Manner) -> int:
        assert (manner.take_over, manner.signals_end_it, manner.handle_signals) == (True, True, False)
        return {"a": 0, "b": 3}[wish.app_name]

    hosts(monkeypatch, host)
    assert asyncio.run(up_several([wish("a"), wish("b")], quiet)) == 3


def test_an_app_that_cannot_start_ends_the_others_and_its_error_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    undone = []

    async def host(wish: SessionWish, ui: Any, manner: Manner) -> int:
        if wish.app_name == "bad":
            raise HostError("no such image")
        try:
            await asyncio.Event().wait()
        finally:
            undone.append(wish.app_name)
        return 0

    hosts(monkeypatch, host)
    with pytest.raises(HostError, match="no such image"):
        asyncio.run(up_several([wish("a"), wish("bad"), wish("c")], quiet))
    assert sorted(undone) == ["a", "c"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_down_for_all_and_no_failure(monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    undone: list[str] = []
    ready: list[tuple[str, str]] = []

    async def host(wish: SessionWish, ui: Any, manner: Manner) -> int:
        manner.on_ready(f"id-{wish.app_name}")
        if len(ready) == 2:
            os.kill(os.getpid(), number)
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)  # an undo takes its time
            undone.append(wish.app_name)
        return 0

    hosts(monkeypatch, host)
    assert asyncio.run(up_several([wish("a"), wish("b")], quiet, on_ready=lambda app, session: ready.append((app, session)))) == 0
    assert (sorted(undone), ready) == (["a", "b"], [("a", "id-a"), ("b", "id-b")])


def test_a_second_signal_does_not_interrupt_the_undo() -> None:
    undone: list[str] = []

    async def run() -> None:
        async with ended_by_signals() as came:
            os.kill(os.getpid(), signal.SIGINT)
            try:
                await asyncio.Event().wait()
            finally:
                os.kill(os.getpid(), signal.SIGTERM)
                await asyncio.sleep(0.05)
                undone.append("all")
        assert came == [signal.SIGINT, signal.SIGTERM]

    asyncio.run(run())
    assert undone == ["all"]


@pytest.mark.parametrize(
    ("was_ready", "ended_with", "code"), [(True, 130, 0), (True, 143, 0), (False, 130, 130), (True, 3, 3), (True, 0, 0)]
)
def test_ctrl_c_after_a_session_was_ready_is_success(monkeypatch: pytest.MonkeyPatch, was_ready: bool, ended_with: int, code: int) -> None:
    async def host(wish: SessionWish, ui: Any, manner: Manner) -> int:
        if was_ready:
            manner.on_ready("kqzwtb")
        return ended_with

    hosts(monkeypatch, host)
    assert asyncio.run(up_one(wish("app"), quiet(""))) == code


# The process of `-d`, for real, with another host in it.
_CHILD = """
import asyncio, os, sys
from bridge.cli import detached, several
from bridge.errors import ClusterError

async def host(wish, ui, manner):
    if wish.app.image == "bad":
        raise ClusterError("no container is called 'x'", hint="docker ps")
    ui.warn("hello from " + wish.app_name)
    manner.on_ready("id-" + wish.app_name)
    while not os.path.exists(wish.app.image):
        await asyncio.sleep(0.01)
    ui.warn("nobody hears this")
    open(wish.app.image + ".end", "w").write(manner.attach.__str__())
    return 0

several.host = host
sys.exit(detached.main())
"""


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    started: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen

    def popen(command: list[str], **words: Any) -> subprocess.Popen[bytes]:
        assert command[1:] == ["-P", "-m", "bridge.cli.detached"]
        started.append(real([command[0], "-c", _CHILD], **words))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", popen)
    return started


def test_detached_waits_until_all_are_ready_and_leaves_a_process(
    child: list[subprocess.Popen[bytes]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    end = tmp_path / "end"
    wishes = [SessionWish(DockerTarget("x"), AppWish(str(end)), app_name=name) for name in ("a", "b")]
    assert detached.start(wishes, quiet("")) == ["id-a", "id-b"]
    assert child[0].poll() is None
    assert os.getsid(child[0].pid) == child[0].pid  # the terminal's hang-up does not reach it
    end.write_text("")
    assert child[0].wait(10) == 0
    assert Path(f"{end}.end").read_text() == "False"
    heard = capfd.readouterr().err
    assert "a: hello from a" in heard
    assert "nobody hears" not in heard


def test_detached_raises_what_kept_it_from_starting(child: list[subprocess.Popen[bytes]]) -> None:
    bad = SessionWish(DockerTarget("x"), AppWish("bad"))
    with pytest.raises(BridgeError) as caught:
        detached.start([bad], quiet(""))
    assert (caught.value.message, caught.value.hint, caught.value.exit_code) == ("no container is called 'x'", "docker ps", 4)
    assert child[0].returncode == 4


def test_records_of_one_session_are_in_its_log_and_in_no_other(tmp_path: Path) -> None:
    async def session(name: str) -> None:
        with to_file(tmp_path / name):
            await asyncio.sleep(0)
            await asyncio.get_running_loop().create_task(inner(name))

    async def inner(name: str) -> None:
        logging.getLogger("bridge.test").info("I am %s", name)

    async def both() -> None:
        async with asyncio.TaskGroup() as group:
            for name in ("one", "two"):
                group.create_task(session(name))

    asyncio.run(both())
    assert [(tmp_path / name).read_text().split("bridge.test ")[1] for name in ("one", "two")] == ["I am one\n", "I am two\n"]

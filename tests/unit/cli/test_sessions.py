"""Sessions' folders: who serves them, what a killed process leaves, and how `down` ends both."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.cli import sessions
from bridge.cli.sessions import SessionFolder
from bridge.errors import HostError, SpecError
from bridge.model.plan import Folder, Plan
from bridge.model.session import SessionStatus, State

pytestmark = pytest.mark.usefixtures("state")
SERVE = """
import os, signal, sys, time
from bridge.cli import sessions
folder = sessions.SessionFolder(sessions.root() / sys.argv[1])
signal.signal(sessions.END, lambda *_: sys.argv[2] == "orderly" and (folder.forget(), sys.exit(0)))
with folder.lock():
    print("serving", flush=True)
    time.sleep(60)
"""


def _plan(folder: SessionFolder, key: str = "who:what", *steps: Folder) -> Plan:
    return Plan(folder.id, "docker/x", "app", key, {}, {"target": "docker/x", "endpoint": {"url": "unix:///nowhere"}}, steps)


@pytest.fixture
def served(folder: SessionFolder) -> Iterator[subprocess.Popen[bytes]]:
    yield from _serving(folder, "orderly")


def _serving(folder: SessionFolder, manner: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", SERVE, folder.id, manner], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"serving\n"
        yield process
        process.kill()


def test_the_lock_tells_who_serves(folder: SessionFolder) -> None:
    assert folder.served() is None
    with folder.lock():
        assert folder.served() == os.getpid()
        with pytest.raises(HostError, match="is served by process"), folder.lock():
            pass
    assert folder.served() is None


def test_a_killed_process_serves_no_more_and_its_status_says_so(folder: SessionFolder, served: subprocess.Popen[bytes]) -> None:
    folder.write_status(SessionStatus(folder.id, "docker/x", State.READY, sessions.now()))
    status = sessions.current_status(folder)
    assert status is not None
    assert status.state is State.READY
    served.kill()
    served.wait(10)
    status = sessions.current_status(folder)
    assert status is not None
    assert status.state is State.FAILED
    assert "mbridge down" in str(status.why)


def test_down_lets_the_process_undo_by_itself(folder: SessionFolder, served: subprocess.Popen[bytes]) -> None:
    asyncio.run(sessions.down(folder, lambda line: None))
    assert served.wait(10) == 0
    assert not folder.path.exists()


def test_two_downs_at_once_do_not_end_each_other(folder: SessionFolder, tmp_path: Path) -> None:
    """The second waits for the first, which no signal may reach: it would end by it, half way."""
    program = (
        "import sys, time\nfrom bridge.cli import sessions\nfolder = sessions.SessionFolder(sessions.root() / sys.argv[1])\n"
        "with folder.lock(undoing=True):\n    print('undoing', flush=True)\n    sys.stdin.read()\n    folder.forget()\n"
    )
    (tmp_path / "made").mkdir()
    folder.save(_plan(folder, "k", Folder(str(tmp_path / "made"))))
    folder.write_status(SessionStatus(folder.id, "docker/x", State.READY, sessions.now()))
    said: list[str] = []

    async def second(first: subprocess.Popen[bytes]) -> None:
        assert first.stdin is not None
        heard = asyncio.Event()

        def say(line: str) -> None:
            said.append(line)
            heard.set()

        async with asyncio.TaskGroup() as group:
            group.create_task(sessions.down(folder, say))
            await heard.wait()
            status = sessions.current_status(folder)
            assert status is not None
            assert status.state is State.STOPPING
            assert sessions.running("k") is None
            assert sessions.orphan("k") is None
            first.stdin.close()

    with subprocess.Popen([sys.executable, "-c", program, folder.id], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"undoing\n"
        asyncio.run(second(first))
        assert first.wait(10) == 0
    assert said == ["waiting for another `mbridge down`"]


def test_down_undoes_the_journal_of_a_killed_process_and_twice_is_fine(folder: SessionFolder, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    folder.save(_plan(folder, "k", Folder(str(tmp_path / "made"))))
    for _ in range(2):
        asyncio.run(sessions.down(folder, lambda line: None))
        assert not (tmp_path / "made").exists()
        assert not folder.path.exists()


def test_a_full_disk_is_told_leaves_the_plan_whole_and_ends_no_session(folder: SessionFolder) -> None:
    """RLIMIT_FSIZE cuts a write as a disk does that has room for its first bytes."""
    folder.save(_plan(folder))
    program = f"""
import resource
from bridge.cli.sessions import SessionFolder, root
from bridge.errors import HostError
from bridge.model.plan import Folder, Plan
from bridge.model.session import SessionStatus, State
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
folder = SessionFolder(root() / {folder.id!r})
folder.write_status(SessionStatus(folder.id, "docker/x", State.READY, "2026-03-01T09:30:00Z"))
try:
    folder.save(Plan(folder.id, "docker/other", "app", "k", {{}}, {{}}, ()))
except HostError as error:
    print(error.message, error.hint)
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=20).stdout
    assert said == f"{folder.path}/plan.json cannot be written: file too large df -h {folder.path}\n"
    assert folder.plan() == _plan(folder)
    assert [path.name for path in folder.path.iterdir()] == ["plan.json"]


def test_a_folder_without_a_plan_had_changed_nothing(folder: SessionFolder) -> None:
    with folder.lock():
        pass
    asyncio.run(sessions.down(folder, lambda line: None))
    assert not folder.path.exists()


def test_only_an_orphan_of_the_same_wish_is_taken_over(folder: SessionFolder) -> None:
    folder.save(_plan(folder, "who:what"))
    assert sessions.orphan("who") == folder
    assert sessions.orphan("else") is None
    with folder.lock():
        assert sessions.orphan("who") is None
        assert sessions.running("who") == folder


def test_a_session_is_found_by_its_beginning_and_nearly_right_names_are_offered(folder: SessionFolder) -> None:
    for name in ("abcdef", "abzzzz"):
        with SessionFolder(sessions.root() / name).lock():
            pass
    assert sessions.find("abc") == folder
    with pytest.raises(SpecError, match=r"could be session ab.* or ab"):
        sessions.find("ab")
    with pytest.raises(SpecError) as told:
        sessions.find("abcdeg")
    assert told.value.hint == "did you mean abcdef?"
    with pytest.raises(SpecError):
        sessions.find("")


def test_the_key_is_made_once_and_only_its_owner_may_read_it(state: Path) -> None:
    private, public = sessions.key_pair()
    assert private.startswith("-----BEGIN OPENSSH PRIVATE KEY-----")
    assert public.startswith("ssh-ed25519 ")
    assert (state / "mbridge" / "id_ed25519").stat().st_mode & 0o777 == 0o600
    assert sessions.key_pair() == (private, public)


def test_a_state_folder_that_cannot_be_made_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with pytest.raises(HostError, match="state folder"):
        sessions.root()


def test_ids_are_six_letters_and_new() -> None:
    ids = {sessions.new().id for _ in range(50)}
    assert all(len(name) == 6 and name.isalpha() and name.islower() for name in ids)
    assert len(ids) == 50


def test_the_owners_label_reveals_nothing_and_differs_by_state_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mine = sessions.owner()
    assert len(mine) == 16
    assert mine == sessions.owner()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other"))
    assert sessions.owner() != mine

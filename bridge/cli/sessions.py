"""Sessions on this machine: their folders, who serves them, and how they end after a `kill -9`.

    $XDG_STATE_HOME/mbridge/            0700; default ~/.local/state/mbridge
      id_ed25519, id_ed25519.pub        the user's key, made once; the private half goes to bridges alone, by their door
      SESSION/plan.json                 the journal (engine/up.py): on disk before the first change
      SESSION/status.json               written by the host process at each change, by rename
      SESSION/host.lock                 held (flock) by the host process while it serves, and holds its pid; or by a `down`
      SESSION/log                       what the host process has to tell
      SESSION/run/                      the bridge's door, where the engine shares our files

A folder whose lock nobody holds is what a killed host process left: `up` takes it over, `down` undoes it from its plan.

Limits: flock(2) on a network file system is as good as that file system makes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import getpass
import hashlib
import json
import os
import secrets
import shutil
import signal
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path

from bridge.errors import BridgeError, CleanupError, HostError, SpecError
from bridge.model import plan as plans
from bridge.model.plan import Plan
from bridge.model.session import LinkStatus, SessionStatus, State
from bridge.protocol import door

END = signal.SIGUSR1  # `down` to a host process: others are passed on to the app; a process that does not know it yet ends by it
_ID_LETTERS = 6
_UNDOING = "undoing"  # in the lock of a `down`: no pid, for nobody may end it
_TIME = "%Y-%m-%dT%H:%M:%SZ"
_LINK_STATES = {"connected": "up", "connecting": "connecting", "reconnecting": "connecting", "failed": "down"}
_STOP_S = 30.0  # how long a host process may take to undo what it serves
Say = Callable[[str], None]


def root() -> Path:
    """The state folder, made on first use."""
    base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    path = base / "mbridge"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise HostError(f"the state folder {path} cannot be made: {exc.strerror}", hint="set XDG_STATE_HOME to a folder of yours") from exc
    return path


def owner() -> str:
    """The label's value that tells this user on this machine from all others; reveals neither."""
    machine = ""
    for name in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        with contextlib.suppress(OSError):
            machine = machine or Path(name).read_text().strip()
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return hashlib.sha256(f"{user}\0{machine or os.uname().nodename}\0{root()}".encode()).hexdigest()[:16]


def now() -> str:
    """As a status has its times."""
    return datetime.now(UTC).strftime(_TIME)


def link_status(told: door.LinkStatus) -> LinkStatus:
    """What a supervisor told of its link, as a status has it."""
    return LinkStatus(told.via, _LINK_STATES[told.state], datetime.fromtimestamp(told.since, UTC).strftime(_TIME))


def with_warnings(status: SessionStatus, warnings: tuple[str, ...], warn: Callable[[str], None]) -> SessionStatus:
    """`warnings` hold from now on; `warn` hears those that are new."""
    for text in warnings:
        if text not in status.warnings:
            warn(text)
    return replace(status, warnings=warnings)


def key_pair() -> tuple[str, str]:
    """(private key in OpenSSH's form, "ssh-ed25519 AAAA…"), made at the first call."""
    folder = root()
    private, public = folder / "id_ed25519", folder / "id_ed25519.pub"
    with contextlib.suppress(FileNotFoundError):
        return private.read_text(), public.read_text().strip()
    with _locked(folder / "key.lock"):  # two first sessions at once must not make two keys
        with contextlib.suppress(FileNotFoundError):
            return private.read_text(), public.read_text().strip()
        import asyncssh  # a quarter of a second, once in a user's life

        key = asyncssh.generate_private_key("ssh-ed25519")
        line = b" ".join(key.export_public_key("openssh").split()[:2])
        _write(public, line + b"\n")
        _write(private, key.export_private_key("openssh"))
        return private.read_text(), line.decode()


@dataclass(frozen=True, slots=True)
class SessionFolder:
    """One session's folder. Also its journal."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def run(self) -> Path:
        return self.path / "run"

    @property
    def log(self) -> Path:
        return self.path / "log"

    def save(self, plan: Plan) -> None:
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(self.path / "plan.json", plans.dumps(plan).encode())

    def forget(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def plan(self) -> Plan | None:
        """None: nothing had been changed yet. Raises SpecError for one that is damaged."""
        text = self.plan_text()
        if text is None:
            return None
        plan = plans.loads(text)
        if plan.session != self.id:
            raise SpecError(f"the session's plan is damaged: it is about session {plan.session!r}")
        return plan

    def plan_text(self) -> str | None:
        try:
            return (self.path / "plan.json").read_bytes().decode(errors="replace")
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise SpecError(f"the session's plan cannot be read: {(exc.strerror or str(exc)).lower()}") from exc

    def write_status(self, status: SessionStatus) -> None:
        """A file that cannot be written is no reason to end a session that runs."""
        with contextlib.suppress(FileNotFoundError, HostError):  # FileNotFoundError: `down` was faster
            _write(self.path / "status.json", json.dumps(status.to_json()).encode())

    def status(self) -> SessionStatus | None:
        """As last written; `served()` says whether anyone still keeps it true."""
        try:
            return SessionStatus.from_json(json.loads((self.path / "status.json").read_text()))
        except (OSError, ValueError, BridgeError):
            return None

    @contextlib.contextmanager
    def lock(self, *, undoing: bool = False) -> Iterator[None]:
        """Held while serving, or by a `down` while it undoes. Raises HostError when another process holds it."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self.path / "host.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                raise HostError(f"session {self.id} is served by process {self.served()} already", hint=f"mbridge down {self.id}") from exc
            os.ftruncate(fd, 0)
            os.pwrite(fd, (_UNDOING if undoing else str(os.getpid())).encode(), 0)
            yield
        finally:
            os.close(fd)

    def served(self) -> int | None:
        """The pid of the host process, -1 where it cannot be told or a `down` undoes this session, or None when there is none."""
        holder = self._holder()
        return None if holder is None else int(holder) if holder.isdigit() else -1

    def is_being_undone(self) -> bool:
        return self._holder() == _UNDOING

    def _holder(self) -> str | None:
        """What who holds the lock has written into it; None: nobody holds it."""
        try:
            fd = os.open(self.path / "host.lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return os.pread(fd, 32, 0).decode(errors="replace")
        finally:
            os.close(fd)
        return None


def new() -> SessionFolder:
    """A folder that does not exist yet, under a fresh id."""
    while True:
        path = root() / "".join(secrets.choice(string.ascii_lowercase) for _ in range(_ID_LETTERS))
        if not path.exists():
            return SessionFolder(path)


def all_sessions() -> list[SessionFolder]:
    """Oldest first."""
    folders = [path for path in root().iterdir() if path.is_dir() and len(path.name) == _ID_LETTERS and path.name.isalpha()]
    return [SessionFolder(path) for path in sorted(folders, key=lambda path: path.stat().st_ctime)]


def find(word: str) -> SessionFolder:
    """By id, or by an unambiguous beginning of it. Raises SpecError."""
    known = all_sessions()
    matches = [folder for folder in known if folder.id.startswith(word)] if word else []
    if len(matches) == 1 or any(folder.id == word for folder in matches):
        return next((folder for folder in matches if folder.id == word), matches[0])
    if matches:
        raise SpecError(f"{word!r} could be session {' or '.join(folder.id for folder in matches)}", hint="mbridge status")
    near = get_close_matches(word, [folder.id for folder in known], 1)
    raise SpecError(f"no session is called {word!r}", hint=f"did you mean {near[0]}?" if near else "mbridge status")


def orphan(identity: str) -> SessionFolder | None:
    """A session of the same wish whose host process is gone: `up` takes it over."""
    for folder in all_sessions():
        with contextlib.suppress(BridgeError):
            plan = folder.plan()
            if plan is not None and plan.key.partition(":")[0] == identity and folder.served() is None:
                return folder
    return None


def running(identity: str) -> SessionFolder | None:
    """A session of the same wish that is being served."""
    for folder in all_sessions():
        with contextlib.suppress(BridgeError):
            plan = folder.plan()
            if plan is not None and plan.key.partition(":")[0] == identity and folder.served() is not None and not folder.is_being_undone():
                return folder
    return None


def current_status(folder: SessionFolder) -> SessionStatus | None:
    """status.json, corrected by what only the lock knows: a killed host process cannot say that it is gone.

    Of a session without one, or with a damaged one, that nobody serves, this much is told: `mbridge down` removes it.
    """
    served = folder.served() is not None
    status = folder.status()
    if served and status is not None and folder.is_being_undone():
        return replace(status, state=State.STOPPING, why="`mbridge down` undoes it")
    if served:
        return status  # None: it has just begun
    if status is None:
        return _unknown(folder)
    why = "its host process is gone; `mbridge up` takes it over, `mbridge down` removes it"
    return replace(status, state=State.FAILED, why=why, link=LinkStatus(status.link.via, "down", status.link.since))


def _unknown(folder: SessionFolder) -> SessionStatus | None:
    target = "?"
    with contextlib.suppress(BridgeError):
        plan = folder.plan()
        target = plan.target if plan is not None else target
    why = "its host process is gone and left no status that can be read; `mbridge down` removes it"
    try:
        since = datetime.fromtimestamp(folder.path.stat().st_mtime, UTC).strftime(_TIME)
    except OSError:
        return None  # it has ended meanwhile
    return SessionStatus(folder.id, target, State.FAILED, since, why=why)


async def down(folder: SessionFolder, say: Say) -> str | None:
    """End one session and undo it, whoever serves it or not. Twice is fine. Raises CleanupError with what is left.

    Returns what the user should know of its journal: that it was damaged, and what was done instead.
    """
    from bridge.cli import undoing

    while True:
        pid = folder.served()
        if pid is not None:
            say(f"stopping process {pid}" if pid > 0 else "waiting for another `mbridge down`")
            if not await _ended(folder, pid):
                hint = f"kill -9 {pid}; mbridge down {folder.id}" if pid > 0 else f"mbridge down {folder.id}"
                raise CleanupError(f"what stops session {folder.id} does not end", hint=hint)
        if not folder.path.exists():
            return None  # the process, or another `down`, has undone all
        with contextlib.ExitStack() as locked:
            try:
                locked.enter_context(folder.lock(undoing=True))
            except HostError:
                continue  # another was faster
            told = await undoing.undo(folder, say)
            folder.forget()
            return told


async def _ended(folder: SessionFolder, pid: int) -> bool:
    """The process undoes on END; then it lets go of the lock."""
    for sign, patience_s in ((END, _STOP_S), (signal.SIGKILL, 2.0)):
        if pid > 0:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sign)
        deadline = asyncio.get_running_loop().time() + patience_s
        while asyncio.get_running_loop().time() < deadline:
            if folder.served() is None:
                return True
            await asyncio.sleep(0.02)
    return False


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all: by rename, 0600. Raises HostError; FileNotFoundError where its folder is gone."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(fresh, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except FileNotFoundError:
        raise
    except OSError as exc:
        fresh.unlink(missing_ok=True)
        raise HostError(f"{path} cannot be written: {(exc.strerror or str(exc)).lower()}", hint=f"df -h {path.parent}") from exc


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)

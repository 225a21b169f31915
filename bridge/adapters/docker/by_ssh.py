"""An engine behind ssh://, reached as docker reaches it: `ssh HOST docker system dial-stdio`, one process for each connection.

Theory of operation: it is the user's own ssh client, so that ~/.ssh/config, the agent, jump hosts, known hosts and second factors hold
as they do for `ssh HOST`. A start makes dozens of connections, so one login serves them all: ssh's master (ControlMaster in
ssh_config(5)), whose socket lies in a folder of the user's alone. `log_in` makes it at the first connection, where ssh may still
ask on the terminal; every later process asks nothing, and logs in by itself where the master is gone meanwhile. The master
leaves by itself a minute after the last connection.

    log_in: master there? ──no──> ssh -f -N, which may ask         connect: socketpair ── ssh ══ master ══ sshd ── dial-stdio ── engine

The processes are in a session of their own: Ctrl-C must not take the engine away from the undo that it starts.

Limits: needs OpenSSH's client here, and docker 18.09 or later there. Where the folder's path is too long for a socket, and past the
ten connections that an sshd gives one login (MaxSessions), a connection logs in by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO
from urllib.parse import SplitResult, unquote, urlsplit
from weakref import WeakKeyDictionary

from bridge.errors import EngineUnavailable, SpecError

LOGIN_S = 120.0  # whoever has to type a passphrase takes his time
_CONNECT_S = 15
_PERSIST_S = 60
_MOST_PATH = 104 - 18 - 1  # sun_path of macOS, less what ssh appends while it makes the socket (unix(7); mux.c)
_WORDS_BYTES = 4096
_LAST_WORDS_S = 2.0
_ANSWER = "docker", "system", "dial-stdio"


def check(url: str, source: str) -> None:
    """Raises SpecError for what names no host, and for what docker refuses as well, since it would be ignored."""
    parts = _parts(url, source)
    why = None
    if not parts.hostname or parts.hostname.startswith("-"):
        why = "it names no host"
    elif parts.password is not None:
        why = "a password has no place in it"
    elif parts.query or parts.fragment:
        why = "nothing may follow its path"
    if why:
        raise SpecError(f"{source} is {url!r}: {why}", hint="ssh://[USER@]HOST[:PORT][/PATH-OF-THE-SOCKET]")


class SshDialler:
    """Connections to one engine."""

    def __init__(self, url: str, source: str) -> None:
        self._url = url
        self._source = source
        self._login: asyncio.Future[None] | None = None
        self._begun: WeakKeyDictionary[asyncio.StreamWriter, _Protocol] = WeakKeyDictionary()  # a lost transport knows its own no more

    async def connect(self, limit: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A stream to the engine; `limit` is the reader's. Raises EngineUnavailable."""
        if self._login is None or (self._login.done() and self._login.exception() is not None):
            self._login = asyncio.ensure_future(asyncio.to_thread(log_in, self._url, self._source))
        await asyncio.shield(self._login)
        ours, theirs = socket.socketpair()
        said = tempfile.TemporaryFile()  # noqa: SIM115  # the protocol's. No pipe: uvloop 0.22 closes one's descriptor twice
        with theirs:
            try:
                process = _answering(self._url, theirs, said)
            except OSError as exc:
                ours.close()
                raise _no_client(exc) from exc
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit, loop)
        protocol = _Protocol(reader, process, said, loop)
        transport, _ = await loop.create_connection(lambda: protocol, sock=ours)
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        self._begun[writer] = protocol
        return reader, writer

    async def failure(self, writer: asyncio.StreamWriter) -> EngineUnavailable | None:
        """Why the connection ended without an answer, in ssh's words or docker's; None where neither said anything."""
        words = await self._begun[writer].words()
        writer.close()
        return _failure(self._url, self._source, words)


class _Protocol(asyncio.StreamReaderProtocol):
    """A stream whose process ends with it.

    subprocess's process and not asyncio's: the latter may be reaped by whoever signals it, and its watcher complains of that.
    """

    def __init__(
        self, reader: asyncio.StreamReader, process: subprocess.Popen[bytes], said: IO[bytes], loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(reader, loop=loop)
        self._process = process
        self._said = said
        self._loop = loop

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._process.terminate()
        self._loop.run_in_executor(None, self._process.wait)

    async def words(self) -> bytes:
        """What the process wrote to stderr, its end."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(self._process.wait, _LAST_WORDS_S)
        return _end_of(self._said)


def _end_of(file: IO[bytes]) -> bytes:
    file.seek(max(0, file.seek(0, os.SEEK_END) - _WORDS_BYTES))
    return file.read()


def log_in(url: str, source: str) -> None:
    """Have a master that later connections share. Blocking; ssh may ask on the terminal. Raises EngineUnavailable."""
    control = _control(url)
    if control is None:
        return
    try:
        there = _ssh(url, "-O", "check", limit_s=_CONNECT_S)
        if there.returncode:
            made = _ssh(url, "-f", "-N", limit_s=LOGIN_S, may_ask=sys.stdin.isatty())
            if made.returncode:
                raise _failure(url, source, made.stderr) or EngineUnavailable(f"the engine at {url} ({source}): ssh failed")
    except OSError as exc:
        raise _no_client(exc) from exc
    except subprocess.TimeoutExpired as exc:
        raise EngineUnavailable(f"the engine at {url} ({source}): no login within {exc.timeout:.0f} s", hint=_by_hand(url)) from exc


@contextlib.contextmanager
def local_socket(url: str) -> Iterator[str]:
    """A unix:// URL for a library that speaks no ssh, as long as the context lasts."""
    with tempfile.TemporaryDirectory(prefix="mbridge-ssh-") as folder, socket.socket(socket.AF_UNIX) as listener:
        path = f"{folder}/engine.sock"
        listener.bind(path)
        listener.listen()
        begun: list[subprocess.Popen[bytes]] = []
        over = threading.Event()

        def serve() -> None:
            while True:
                conn, _ = listener.accept()
                with conn:
                    if over.is_set():
                        return
                    begun.append(_answering(url, conn, subprocess.DEVNULL))

        thread = threading.Thread(target=serve, name="ssh-socket", daemon=True)
        thread.start()
        try:
            yield f"unix://{path}"
        finally:
            over.set()
            with socket.socket(socket.AF_UNIX) as last:  # a listener's shutdown(2) wakes accept(2) on Linux alone
                last.connect(path)
            thread.join()
            for process in begun:
                process.terminate()
                process.wait()


def _answering(url: str, sock: socket.socket, said: IO[bytes] | int) -> subprocess.Popen[bytes]:
    """ssh, with the engine at its other end and `sock` at this one."""
    return subprocess.Popen(_command(url), stdin=sock.fileno(), stdout=sock.fileno(), stderr=said, start_new_session=True)


def _ssh(url: str, *words: str, limit_s: float, may_ask: bool = False) -> subprocess.CompletedProcess[bytes]:
    """stderr goes to a file, for the master would keep a pipe open."""
    command = ["ssh", *_options(url, may_ask), *words, *_host(url)]
    with tempfile.TemporaryFile() as said:
        ran = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said, timeout=limit_s, check=False)
        return subprocess.CompletedProcess(command, ran.returncode, b"", _end_of(said))


def _command(url: str) -> list[str]:
    path = _parts(url).path
    answer = [_ANSWER[0], *(("--host", f"unix://{unquote(path)}") if path not in ("", "/") else ()), *_ANSWER[1:]]
    return ["ssh", "-T", *_options(url), *_host(url), *answer]


def _options(url: str, may_ask: bool = False) -> list[str]:
    chosen = [f"ConnectTimeout={_CONNECT_S}", "ServerAliveInterval=10", "ServerAliveCountMax=3"]
    if not may_ask:
        chosen.append("BatchMode=yes")
    control = _control(url)
    if control is not None:
        chosen += ["ControlMaster=auto", f"ControlPath={control}", f"ControlPersist={_PERSIST_S}"]
    return [word for option in chosen for word in ("-o", option)]


def _host(url: str) -> list[str]:
    parts = _parts(url)
    words = ["-l", unquote(parts.username)] if parts.username else []
    if parts.port:
        words += ["-p", str(parts.port)]
    return [*words, "--", parts.hostname or ""]


def _parts(url: str, source: str = "the engine's address") -> SplitResult:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  # looks at it: ValueError where it is none
    except ValueError as exc:
        raise SpecError(f"{source} is {url!r}: {exc}") from exc
    return parts


def _control(url: str) -> Path | None:
    """Where the master listens: in a folder that nobody else can write to; None where there can be none."""
    folder = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()) / f"mbridge-ssh-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return None
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    path = folder / hashlib.sha256(url.encode()).hexdigest()[:16]
    return path if ours and len(str(path)) <= _MOST_PATH else None


def _failure(url: str, source: str, said: bytes) -> EngineUnavailable | None:
    lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip()]
    if not lines:
        return None
    return EngineUnavailable(f"the engine at {url} ({source}) cannot be reached: {lines[-1].removeprefix('ssh: ')}", hint=_by_hand(url))


def _by_hand(url: str) -> str:
    words = _host(url)
    return " ".join(["ssh", *(word for word in words if word != "--"), "docker version"])


def _no_client(exc: OSError) -> EngineUnavailable:
    return EngineUnavailable(
        f"an engine by ssh:// needs OpenSSH's client here: {(exc.strerror or str(exc)).lower()}", hint="install openssh-client"
    )

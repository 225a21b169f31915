"""Containers and the command line as the tests speak to them.

`Box` is a running container: `probe` runs one function of probes.py in it, `run` any program. `Cli` is `mbridge` with a
state folder of its own, so that a test never sees, or ends, sessions of the person who runs it. `App` is a box that `Cli` holds.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
import docker.errors
from docker.models.containers import Container

PROBES = (Path(__file__).with_name("probes.py")).read_text()
MBRIDGE = Path(sys.executable).with_name("mbridge")


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self
        return json.loads(self.out)


@dataclass
class Box:
    container: Container

    @property
    def name(self) -> str:
        return str(self.container.name)

    def run(self, *command: str, limit_s: float = 30, user: str = "", env: dict[str, str] | None = None) -> Ran:
        """Run to its end; ended by force after `limit_s`, with code 124 or 137."""
        limited = ["timeout", "-k", "2", str(limit_s), *command]
        code, (out, err) = self.container.exec_run(limited, demux=True, user=user, environment=env or {})
        return Ran(code, (out or b"").decode(errors="surrogateescape"), (err or b"").decode(errors="replace"))

    def probe(self, probe_name: str, limit_s: float = 60, user: str = "", **arguments: Any) -> Any:
        """What the function of probes.py saw from inside."""
        ran = self.run("python3", "-c", PROBES, probe_name, json.dumps(arguments), limit_s=limit_s, user=user)
        assert ran.code == 0, f"{probe_name}: code {ran.code}: {ran.err[-2000:]}"
        return json.loads(ran.out)

    def probing(self, probe_name: str, limit_s: float = 120, **arguments: Any) -> Probing:
        """The same beside the test: started now, its answer asked for later."""
        client = self.container.client.api
        made = client.exec_create(
            self.container.id, ["timeout", "-k", "2", str(limit_s), "python3", "-c", PROBES, probe_name, json.dumps(arguments)]
        )
        return Probing(client, made["Id"], client.exec_start(made["Id"], stream=True))

    def program(self, *command: str, limit_s: float = 30) -> Any:
        """The JSON that a program of tests/lab/programs prints."""
        return self.run(*command, limit_s=limit_s).json

    def addresses(self) -> dict[str, str]:
        """Network name → IPv4 address."""
        self.container.reload()
        return {name: one["IPAddress"] for name, one in self.container.attrs["NetworkSettings"]["Networks"].items()}

    def alive(self) -> bool:
        self.container.reload()
        return bool(self.container.status == "running")


@dataclass
class Probing:
    client: Any
    exec_id: str
    stream: Any

    def answer(self) -> Any:
        out = b"".join(self.stream).decode(errors="replace")
        code = self.client.exec_inspect(self.exec_id)["ExitCode"]
        assert code == 0, f"code {code}: {out[-2000:]}"
        return json.loads(out.splitlines()[-1])


@dataclass
class Cli:
    """`mbridge` as a user calls it."""

    state: Path
    environ: dict[str, str] = field(default_factory=dict)

    def env(self, **more: str) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("MBRIDGE_")}
        return {**clean, "XDG_STATE_HOME": str(self.state), "NO_COLOR": "1", **self.environ, **more}

    def run(
        self, *args: str, limit_s: float = 60, stdin: bytes | None = None, cwd: Path | None = None, **env: str
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(MBRIDGE), *args], env=self.env(**env), cwd=cwd, timeout=limit_s, capture_output=True, check=False,
            **({"input": stdin} if stdin is not None else {"stdin": subprocess.DEVNULL}),
        )  # fmt: skip
        out, err = (data.decode(errors="surrogateescape") for data in (done.stdout, done.stderr))
        return subprocess.CompletedProcess(done.args, done.returncode, out, err)

    def start(self, *args: str, cwd: Path | None = None, **env: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [str(MBRIDGE), *args], env=self.env(**env), cwd=cwd,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def status(self) -> list[dict[str, Any]]:
        done = self.run("status", "--json")
        assert done.returncode == 0, done.stderr
        return list(json.loads(done.stdout))

    def session(self, target: str) -> dict[str, Any] | None:
        return next((one for one in self.status() if one["target"] == target), None)


def eventually(ask: Callable[[], Any], until: Callable[[Any], bool] = bool, limit_s: float = 20, pause_s: float = 0.1) -> Any:
    """Ask until the answer will do; the last answer is in the failure."""
    ended = time.monotonic() + limit_s
    while True:
        answer = ask()
        if until(answer):
            return answer
        assert time.monotonic() < ended, f"not within {limit_s} s; last: {answer!r}"
        time.sleep(pause_s)


def of_session(client: docker.DockerClient, session: str, role: str | None = None) -> list[Container]:
    """What a session has made on the engine, running or not."""
    labels = [f"mbridge.session={session}", *([f"mbridge.role={role}"] if role else [])]
    return list(client.containers.list(all=True, filters={"label": labels}))


@dataclass
class App(Box):
    """A bridged app: a box, and the `mbridge run` that holds it."""

    cli: Cli
    process: subprocess.Popen[bytes]

    @property
    def session(self) -> str:
        return str(self.container.labels["mbridge.session"])

    def part(self, role: str) -> Container:
        """The container of the session with that role."""
        (found,) = of_session(self.container.client, self.session, role)
        return found

    def status(self) -> dict[str, Any]:
        return next(one for one in self.cli.status() if one["id"] == self.session)


@contextlib.contextmanager
def run_behind(client: docker.DockerClient, cli: Cli, name: str, *words: str, limit_s: float = 60) -> Iterator[App]:
    """`mbridge run --name NAME WORDS…` in the background from when its app runs; at the end a SIGTERM, and force after 30 s."""
    process = cli.start("run", "--name", name, *words)

    def running() -> Container | None:
        if process.poll() is not None:
            out, err = (text.decode(errors="replace") for text in process.communicate())
            raise AssertionError(f"mbridge run ended with {process.returncode}: {err[-3000:]}{out[-500:]}")
        with contextlib.suppress(docker.errors.NotFound):
            container = client.containers.get(name)
            return container if container.status == "running" else None
        return None

    try:
        yield App(eventually(running, limit_s=limit_s, pause_s=0.05), cli, process)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        with contextlib.suppress(docker.errors.APIError):
            client.containers.get(name).remove(force=True)

"""What is measured: the lab of the container tests, one bridged app, and the peers beside it, all on this machine.

        app ── agent ───────────────────────┐
        app ── bridge ══ carrier ══ agent ──┤
    host's netns: ssh -L ══════════ sshd ───┼─ (agent and sshd are in the target's netns) ──> traffic, a server in the lab
        sshuttle ══════════════════ sshd ───┘

The first is what a user gets where app and target are on one engine (docs/design/003-handing.md), the second the same with `--via direct`.
OpenSSH uses the cipher that mbridge uses, so that the tunnels are compared and not the ciphers.

Limits: a local engine on Linux, root (CPU times are read from /proc of other users' processes).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import asyncssh
import docker
from docker.models.containers import Container

from tests.bench.figures import number
from tests.container.conftest import App, bridged
from tests.lab.boxes import Box, Cli, eventually
from tests.lab.dockerlab import Lab, docker_lab, wait_ready

HERE = Path(__file__).parent
TRAFFIC = (HERE / "traffic.py").read_text()
SSHUTTLE = "sshuttle==1.3.2"
PORT, SSHD_PORT, FORWARD_PORT = 7100, 2222, 17100
BY_CARRIER = ("--via", "direct")
_IMAGE = "mbridge-test-peers:bench"
_QUIET_SSH = ("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-c", "aes128-gcm@openssh.com")


def pids(container: Container) -> list[int]:
    """Of all its processes, as the host numbers them."""
    top = container.top()
    column = top["Titles"].index("PID")
    return [int(line[column]) for line in top["Processes"]]


def cpu_s(container: Container) -> float:
    """CPU seconds of the container's living threads, to the ns (schedstat; the ticks of /proc/PID/stat are 10 ms, and guesses)."""
    spent_ns = 0
    for pid in pids(container):
        for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):
                spent_ns += int(task.read_text().split()[0])
    return spent_ns / 1e9


def resident(container: Container) -> int:
    """Bytes of memory of the container's processes."""
    pages = 0
    for pid in pids(container):
        with contextlib.suppress(OSError):
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def traffic(box: Box, function: str, **arguments: Any) -> Any:
    """One function of traffic.py, run in the box; its answer."""
    ran = box.run("python3", "-c", TRAFFIC, function, json.dumps(arguments), limit_s=120)
    assert ran.code == 0, f"{box.name} {function}: code {ran.code}: {ran.err[-1000:]}"
    return json.loads(ran.out.splitlines()[-1])


class Begun:
    """A function of traffic.py that runs beside the bench: `until` it prints a line, then its `answer`."""

    def __init__(self, box: Box, function: str, **arguments: Any) -> None:
        self._chunks = box.container.exec_run(["python3", "-c", TRAFFIC, function, json.dumps(arguments)], stream=True).output
        self._said = b""

    def until(self, line: str) -> None:
        while f"{line}\n".encode() not in self._said:
            self._said += next(self._chunks)

    def answer(self) -> Any:
        self._said += b"".join(self._chunks)
        return json.loads(self._said.splitlines()[-1])


@dataclass
class Way:
    """How a client reaches the traffic server: from which box, at which address; whose CPU time it costs."""

    name: str
    box: Box
    host: str
    port: int
    parts: Mapping[str, Container]
    spent: dict[str, float] = field(default_factory=dict)
    moved: float = 0.0

    def run(self, function: str, **arguments: Any) -> Any:
        return traffic(self.box, function, host=self.host, port=self.port, **arguments)

    def begin(self, function: str, **arguments: Any) -> Begun:
        return Begun(self.box, function, host=self.host, port=self.port, **arguments)

    def metered(self, function: str, units: float, **arguments: Any) -> Any:
        """The same, with what it cost: seconds of CPU per unit add up in `costs`."""
        before = {part: cpu_s(container) for part, container in self.parts.items()}
        answer = self.run(function, **arguments)
        for part, container in self.parts.items():
            self.spent[part] = self.spent.get(part, 0.0) + cpu_s(container) - before[part]
        self.moved += units
        return answer

    def costs(self, scale: float = 1.0) -> str:
        """CPU per unit of each part since the last call."""
        text = " + ".join(f"{part} {number(spent / self.moved * scale)}" for part, spent in self.spent.items())
        self.spent, self.moved = {}, 0.0
        return text


class Scene:
    """Made lazily: a row asks for what it needs, and all goes when the bench ends."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self.client = docker.from_env(timeout=600)
        self.state = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mbridge-bench-")))
        self.cli = Cli(self.state / "state")
        stack.callback(self.cli.run, "down", "--all", limit_s=120)
        self.say: Callable[[str], None] = lambda text: print(f"bench: {text}", file=sys.stderr, flush=True)

    @cached_property
    def own_images(self) -> None:
        self.say("building mbridge's images where they are absent")
        done = self.cli.run("images", "build", limit_s=900)
        if done.returncode:
            raise SystemExit(done.stderr)

    @cached_property
    def lab(self) -> Lab:
        self.own_images  # noqa: B018  # makes them
        self.say("starting the lab")
        lab = self._stack.enter_context(docker_lab(self.client))
        self._serve(lab)
        return lab

    def _serve(self, lab: Lab) -> None:
        wait_ready(lab.box("traffic", lab.lab_image, ["python3", "-c", TRAFFIC, "serve", json.dumps({"port": PORT})], at=40))

    @property
    def traffic_ip(self) -> str:
        return self.lab.address(40)

    @cached_property
    def app(self) -> App:
        target = f"docker/{self.lab.target.name}"
        self.say(f"mbridge run {target}")
        return self._stack.enter_context(bridged(self.lab, self.cli, target))

    @cached_property
    def carried_app(self) -> App:
        """With a target of its own, of the same network."""
        target = self._stack.enter_context(self.lab.another_target(61))
        self.say(f"mbridge run --via direct docker/{target.name}")
        return self._stack.enter_context(bridged(self.lab, self.cli, f"docker/{target.name}", *BY_CARRIER))

    @contextlib.contextmanager
    def another_app(self) -> Iterator[App]:
        """A session of its own, with a target of its own."""
        with self.lab.another_target(60) as target, bridged(self.lab, self.cli, f"docker/{target.name}") as app:
            yield app

    @cached_property
    def on_host(self) -> Box:
        """A container in the host's own netns."""
        return self.lab.box("host", self.lab.lab_image, ["sleep", "infinity"], network="host")

    @cached_property
    def agent(self) -> Container:
        return self.app.part("agent")

    @cached_property
    def bridge(self) -> Container:
        return self.app.part("bridge")

    @cached_property
    def mbridge(self) -> Way:
        return Way("mbridge", self.app, self.traffic_ip, PORT, {"bridge": self.bridge, "agent": self.agent})

    @cached_property
    def carried(self) -> Way:
        app = self.carried_app
        return Way("by the direct carrier", app, self.traffic_ip, PORT, {part: app.part(part) for part in ("bridge", "agent")})

    @cached_property
    def ssh(self) -> Way:
        """`ssh -L` from the host's netns to an sshd in the target's."""
        forward = f"127.0.0.1:{FORWARD_PORT}:{self.traffic_ip}:{PORT}"
        command = ["ssh", "-N", *_QUIET_SSH, "-p", str(SSHD_PORT), "-L", forward, f"root@{self.lab.target_ip}"]
        box = self._peer("ssh", command, network="host")
        return Way("ssh -L", box, "127.0.0.1", FORWARD_PORT, {"ssh": box.container, "sshd": self._sshd.container})

    @cached_property
    def sshuttle(self) -> Way:
        command = ["sshuttle", "-r", f"root@{self.lab.target_ip}:{SSHD_PORT}", "-x", self.lab.target_ip, "--method", "nat"]
        command += ["-e", " ".join(("ssh", *_QUIET_SSH)), f"{self.traffic_ip}/32"]
        box = self._peer("sshuttle", command, cap_add=["NET_ADMIN"], at=50)
        return Way("sshuttle", box, self.traffic_ip, PORT, {"sshuttle": box.container, "sshd": self._sshd.container})

    @cached_property
    def _key(self) -> asyncssh.SSHKey:
        return asyncssh.generate_private_key("ssh-ed25519")

    @cached_property
    def _sshd(self) -> Box:
        script = (
            'mkdir -p /run/sshd /root/.ssh; printf "%s" "$KEY" >/root/.ssh/authorized_keys; ssh-keygen -qA; echo ready; '
            f"exec /usr/sbin/sshd -D -e -p {SSHD_PORT} -o UseDNS=no -o UsePAM=no -o StrictModes=no -o MaxSessions=1000"
        )
        public = self._key.export_public_key().decode()
        return self._box("sshd", script, {"KEY": public}, network=f"container:{self.lab.target.container.id}")

    def _peer(self, name: str, command: list[str], **options: Any) -> Box:
        self._sshd  # noqa: B018  # starts it
        words = " ".join(f"'{word}'" for word in command)
        script = f'mkdir -p /root/.ssh; (umask 077; printf "%s" "$KEY" >/root/.ssh/id_ed25519); echo ready; exec {words}'
        box = self._box(name, script, {"KEY": self._key.export_private_key().decode()}, **options)
        host, port = {"ssh": ("127.0.0.1", FORWARD_PORT), "sshuttle": (self.traffic_ip, PORT)}[name]
        ask = json.dumps({"host": host, "port": port, "count": 1})
        eventually(lambda: box.run("python3", "-c", TRAFFIC, "connects", ask), until=lambda ran: ran.code == 0, limit_s=30)
        return box

    def _box(self, name: str, script: str, environ: dict[str, str], **options: Any) -> Box:
        self.say(f"starting {name}")
        box = self.lab.box(name, self._peers_image, ["sh", "-c", script], environment=environ, **options)
        wait_ready(box)
        return box

    @cached_property
    def _peers_image(self) -> str:
        """Built anew unless the engine's cache has it; the host's pip fetches the wheel, for an image may know no registry."""
        folder = self.state / "wheels"
        pip = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps", "-d", str(folder), SSHUTTLE]
        subprocess.run(pip, check=True, timeout=120)
        context = io.BytesIO()
        with tarfile.open(fileobj=context, mode="w") as tar:
            for path in (HERE / "peers" / "Dockerfile", *folder.iterdir()):
                member = tarfile.TarInfo(path.name)
                member.size = path.stat().st_size
                tar.addfile(member, io.BytesIO(path.read_bytes()))
        context.seek(0)
        self.client.images.build(fileobj=context, custom_context=True, tag=_IMAGE, rm=True, forcerm=True, labels={"mbridge.test": "image"})
        return _IMAGE


@contextlib.contextmanager
def scene() -> Iterator[Scene]:
    with contextlib.ExitStack() as stack:
        yield Scene(stack)

"""An engine behind ssh://: sshd in a container that has the engine's socket and the docker command, as a remote machine would.

What reaches it is `ssh` with a configuration of the test's own: a script of that name comes first in PATH, since ssh takes no
folder but the user's.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import asyncssh
from docker.models.containers import Container

from bridge.adapters.docker.endpoint import find_endpoint
from tests.lab.boxes import eventually
from tests.lab.dockerlab import Lab

HOST = "engine"
URL = f"ssh://root@{HOST}"
SOCKET = "/var/run/docker.sock"  # in the container
_SSHD = (
    'mkdir -p /run/sshd /root/.ssh; printf "%s" "$KEY" >/root/.ssh/authorized_keys; ssh-keygen -qA; '
    "exec /usr/sbin/sshd -D -e -o UseDNS=no -o UsePAM=no -o StrictModes=no"
)


@dataclass(frozen=True)
class Behind:
    """`environ` makes mbridge use the engine by ssh; `runtime` is where ssh's master listens."""

    environ: dict[str, str]
    runtime: Path
    container: Container

    def logins(self) -> int:
        return self.container.logs().count(b"Accepted publickey")

    def processes(self) -> list[str]:
        """Command lines of this machine's ssh processes that go there, but for the master."""
        own = str(self.runtime).encode()
        lines = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                line = path.read_bytes()
                if own in line and b"dial-stdio" in line:
                    lines.append(line.replace(b"\0", b" ").decode())
        return lines

    def leave(self) -> None:
        """End the master, which else stays for a minute."""
        for control in self.runtime.glob("mbridge-ssh-*/*"):
            _ssh(self.environ, "-o", f"ControlPath={control}", "-O", "exit", HOST)


@contextlib.contextmanager
def engine_behind_ssh(lab: Lab, folder: Path) -> Iterator[Behind]:
    docker = shutil.which("docker")
    assert docker, "the docker command, which sshd runs at the other end, is not installed"
    key, stranger = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    for name, one in (("id", key), ("stranger", stranger)):
        (folder / name).write_bytes(one.export_private_key())
        (folder / name).chmod(0o600)
    container = lab.client.containers.run(
        lab.lab_image, ["sh", "-c", _SSHD], environment={"KEY": key.export_public_key().decode()}, detach=True, init=True,
        name=f"mbt-sshd-{lab.tag}", labels={"mbridge.test": str(os.getpid())},
        volumes={
            find_endpoint(None, os.environ).path: {"bind": SOCKET},
            str(Path(docker).resolve()): {"bind": "/usr/bin/docker", "mode": "ro"},
        },
    )  # fmt: skip
    try:
        container.reload()
        address = next(iter(container.attrs["NetworkSettings"]["Networks"].values()))["IPAddress"]
        (folder / "config").write_text(
            f"Host *\n IdentitiesOnly yes\n StrictHostKeyChecking no\n UserKnownHostsFile /dev/null\n LogLevel ERROR\n"
            f"Host {HOST}\n HostName {address}\n IdentityFile {folder}/id\n"
            f"Host stranger\n HostName {address}\n IdentityFile {folder}/stranger\n"
        )
        script = folder / "bin" / "ssh"
        script.parent.mkdir()
        script.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/config "$@"\n')
        script.chmod(0o755)
        runtime = folder / "run"
        runtime.mkdir()
        environ = {"PATH": f"{script.parent}:{os.environ['PATH']}", "DOCKER_HOST": URL, "XDG_RUNTIME_DIR": str(runtime)}
        behind = Behind(environ, runtime, container)
        eventually(lambda: b"Server listening" in container.logs())
        try:
            yield behind
        finally:
            behind.leave()
    finally:
        container.remove(force=True)


def _ssh(environ: dict[str, str], *words: str) -> None:
    subprocess.run(["ssh", *words], env={**os.environ, **environ}, capture_output=True, check=False, timeout=20)

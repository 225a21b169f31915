"""The two that speak with a bridge outside any engine: a host process at its door, and a real agent in a network namespace."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import asyncssh

from bridge.model.facts import Facts
from bridge.protocol import door, preamble
from tests.lab.netns import WAIT_S, Netns

ROOT = Path(__file__).parents[2]
_T = TypeVar("_T")


class Host:
    """The host CLI's end of one control connection: brings the carriers that are asked for, keeps what else is said."""

    def __init__(self, path: Path, dial: Callable[[], socket.socket] | None) -> None:
        self._path = path
        self._dial = dial
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.connect(str(path))
        self._sock.sendall(b'{"type": "control"}\n')
        self.heard: queue.Queue[door.Message | None] = queue.Queue()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        reader = door.LineReader()
        with contextlib.suppress(OSError):
            while data := self._sock.recv(65536):
                for line in reader.feed(data):
                    message = door.decode(line)
                    if isinstance(message, door.Dial):
                        self._bring(message)
                    else:
                        self.heard.put(message)
        self.heard.put(None)

    def _bring(self, asked: door.Dial) -> None:
        try:
            if self._dial is None:
                raise OSError("no agent")
            carrier = self._dial()
        except OSError as exc:
            self.send(door.CarrierFailed(asked.id, str(exc)))
            return
        with carrier, socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(self._path))
            line = json.dumps({"type": "carrier", "id": asked.id, "via": "direct"}).encode() + b"\n"
            socket.send_fds(sock, [line], [carrier.fileno()])

    def send(self, message: door.Message) -> None:
        self._sock.sendall(door.encode(message))

    def until(self, kind: type[_T], fact: Callable[[_T], bool] = lambda message: True) -> _T:
        """The next message of that kind for which `fact` holds."""
        while True:
            message = self.heard.get(timeout=WAIT_S)
            if isinstance(message, kind) and fact(message):
                return message
            if message is None:
                raise EOFError(f"the bridge closed its door: {(self._path.parent / 'bridge.log').read_text()[-3000:]}")
            if isinstance(message, door.Failed):
                raise AssertionError(f"{message.error}: {message.message} ({message.hint})")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        self._thread.join(WAIT_S)


class Agent:
    """The real agent's process in the target's netns, with the target's /etc and host name.

    `hand`: the folder that it shares with a bridge.
    """

    def __init__(self, netns: Netns, folder: Path, facts: Facts, key: asyncssh.SSHKey, hand: Path | None = None) -> None:
        self.private_key = key.export_private_key().decode()
        self._netns = netns
        for name, text in (("agent-resolv.conf", facts.resolv_conf), ("agent-hosts", facts.hosts)):
            (folder / name).write_text(text)
        steps = [f"mount --bind {folder}/agent-{name} /etc/{name}" for name in ("resolv.conf", "hosts")]
        if hand is not None:
            steps += ["mount -t tmpfs none /run", "mkdir /run/mbridge-hand", f"mount --bind -o ro {hand} /run/mbridge-hand"]
        steps += [f"hostname {facts.hostname}", 'exec "$@"']
        serve = [sys.executable, "-m", "bridge.agent", "--listen", "loopback", "--key", key.export_public_key().decode().strip()]
        self._log = (folder / "agent.log").open("ab")
        self.process = subprocess.Popen(
            ["nsenter", f"--net={netns.path}", "unshare", "-m", "-u", "sh", "-c", " && ".join(steps), "sh", *serve],
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, "PYTHONPATH": str(ROOT), "MBRIDGE_AGENT_SOCKET": str(folder / "agent.sock")},
        )
        assert self.process.stdout is not None
        first = self.process.stdout.readline().decode().split()
        assert first[:2] == ["mbridge-agent", "1"], first
        self.agent_id, self.port, self.host_key = first[2], int(first[3]), " ".join(first[4:])

    def dial(self) -> socket.socket:
        sock = self._netns.connect("127.0.0.1", self.port)
        preamble.check(sock.recv(preamble.SIZE, socket.MSG_WAITALL), self.agent_id)
        return sock

    def close(self) -> None:
        end(self.process)
        if self.process.stdout is not None:
            self.process.stdout.close()
        self._log.close()


def end(process: subprocess.Popen[bytes]) -> None:
    """By force, where it has not ended by itself."""
    if process.poll() is None:
        process.kill()
    process.wait(WAIT_S)

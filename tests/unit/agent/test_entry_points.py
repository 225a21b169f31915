"""The agent's three entry points as processes, as an engine starts them."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncssh
import pytest

from bridge.agent import environ
from bridge.protocol import preamble

AGENT = [sys.executable, "-m", "bridge.agent"]


@contextmanager
def serving(tmp_path: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running agent and the first line of its stdout."""
    key = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode().strip()
    env = {**os.environ, "MBRIDGE_AGENT_SOCKET": str(tmp_path / "agent.sock")}
    process = subprocess.Popen(
        [*AGENT, "--key", key, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, start_new_session=True
    )
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline()
    finally:
        process.kill()
        process.communicate()


def test_its_first_line_is_the_one_that_the_host_reads(tmp_path: Path) -> None:
    with serving(tmp_path, "--listen", "any") as (process, line):
        assert re.fullmatch(r"mbridge-agent 1 [0-9a-f]{16} \d+ ssh-ed25519 [A-Za-z0-9+/=]+\n", line)
        agent_id, port = line.split()[2:4]
        for host in ("127.0.0.1", "::1"):
            with socket.create_connection((host, int(port)), timeout=5) as sock:
                preamble.check(sock.recv(preamble.SIZE, socket.MSG_WAITALL), agent_id)
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 0
        assert not (tmp_path / "agent.sock").exists()


def test_it_offers_itself_to_the_oom_killer_and_hides_its_memory(tmp_path: Path) -> None:
    with serving(tmp_path) as (process, _):
        assert Path(f"/proc/{process.pid}/oom_score_adj").read_text() == "1000\n"
        # a process that is not dumpable belongs to root in /proc, whoever runs it (proc(5))
        assert Path(f"/proc/{process.pid}/environ").stat().st_uid == 0
        rss = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
        assert rss is not None
        assert int(rss[1]) <= 60 << 10


def test_the_door_joins_its_stdio_to_the_agent(tmp_path: Path) -> None:
    with serving(tmp_path) as (_, line):
        env = {**os.environ, "MBRIDGE_AGENT_SOCKET": str(tmp_path / "agent.sock")}
        door = subprocess.Popen([*AGENT, "door"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
        assert door.stdin is not None
        assert door.stdout is not None
        preamble.check(door.stdout.read(preamble.SIZE), line.split()[2])
        door.stdin.close()
        assert door.stdout.read() == b""  # the agent saw the end of its stdin, and closed
        assert door.wait(5) == 0


@pytest.mark.parametrize("pipes", [True, False], ids=["pipes", "sockets"])
def test_the_door_carries_bytes_both_ways_whatever_its_stdio_is(tmp_path: Path, pipes: bool) -> None:
    data = os.urandom(3 << 20)
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        env = {**os.environ, "MBRIDGE_AGENT_SOCKET": str(path)}
        near, far = socket.socketpair()
        stdio = subprocess.PIPE if pipes else far
        door = subprocess.Popen([*AGENT, "door"], stdin=stdio, stdout=stdio, env=env)
        far.close()
        agent, _ = listener.accept()
        feed, drain = (door.stdin, door.stdout) if pipes else (near.makefile("wb"), near.makefile("rb"))
        assert feed is not None
        assert drain is not None

        def write() -> None:
            feed.write(data)
            feed.flush()
            feed.close() if pipes else near.shutdown(socket.SHUT_WR)

        writer = threading.Thread(target=write)
        writer.start()
        received = b"".join(iter(lambda: agent.recv(1 << 20), b""))
        writer.join()
        assert received == data
        answering = threading.Thread(target=lambda: (agent.sendall(data), agent.close()))
        answering.start()
        assert drain.read(len(data)) == data
        answering.join()
        assert door.wait(5) == 0


def test_the_door_without_an_agent_says_so(tmp_path: Path) -> None:
    env = {**os.environ, "MBRIDGE_AGENT_SOCKET": str(tmp_path / "none.sock")}
    done = subprocess.run([*AGENT, "door"], stdin=subprocess.DEVNULL, capture_output=True, text=True, env=env, timeout=10)
    assert done.returncode == 1
    assert "no agent at" in done.stderr


def test_environ_prints_the_bytes_of_the_process(tmp_path: Path) -> None:
    odd = {b"PLAIN": b"1", b"LINES": b"one\ntwo", b"BYTES": b"\xff\xfe", b"EMPTY": b""}
    target = subprocess.Popen(["sleep", "60"], env=odd)
    try:
        done = subprocess.run([*AGENT, "environ", str(target.pid)], capture_output=True, timeout=10)
    finally:
        target.kill()
        target.wait()
    assert done.returncode == 0
    assert done.stdout == b"".join(name + b"=" + value + b"\0" for name, value in odd.items())


def test_the_targets_process_is_the_oldest_of_its_container(tmp_path: Path) -> None:
    container = "3f" * 32
    for pid, cgroup, started in (
        (1, "0::/", 5),
        (70, f"0::/../{container}", 900),
        (31, f"0::/../{container}", 300),
        (32, "0::/../other", 1),
    ):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "cgroup").write_text(cgroup + "\n")
        fields = " ".join(["0"] * 18 + [str(started), "0"])
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (odd ) name) S {fields}\n")
    assert environ.find(container, tmp_path) == 31
    assert environ.find("ab" * 32, tmp_path) is None


def test_without_a_key_it_does_not_serve() -> None:
    done = subprocess.run(AGENT, capture_output=True, text=True, timeout=10)
    assert done.returncode == 2
    assert "--key" in done.stderr
    assert done.stdout == ""


def test_a_key_that_is_none_is_an_error_at_the_start(tmp_path: Path) -> None:
    env = {**os.environ, "MBRIDGE_AGENT_SOCKET": str(tmp_path / "agent.sock")}
    done = subprocess.run([*AGENT, "--key", "ssh-ed25519 nonsense"], capture_output=True, text=True, timeout=10, env=env)
    assert done.returncode == 1
    assert "key" in done.stderr
    assert done.stdout == ""

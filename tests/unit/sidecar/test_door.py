"""The door: whom it lets in; and `door control` and `door carrier` under exec, a process whose stdio is joined to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bridge.sidecar.door import Door

JOIN = """
import sys
from pathlib import Path
from bridge.sidecar.door import join_stdio
sys.exit(join_stdio(sys.argv[2:], Path(sys.argv[1])))
"""


@pytest.fixture
def listener(tmp_path: Path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "door.sock"))
        sock.listen()
        sock.settimeout(10)
        yield sock


def _join(listener: socket.socket, *words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", JOIN, listener.getsockname(), *words]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.getcwd()})


def test_control_copies_both_ways_until_either_ends(listener: socket.socket) -> None:
    with _join(listener, "control") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        sock, _ = listener.accept()
        with sock:
            sock.settimeout(10)
            assert sock.recv(100) == b'{"type": "control"}\n'
            process.stdin.write(b"to the bridge\n")
            process.stdin.flush()
            assert sock.recv(100) == b"to the bridge\n"
            sock.sendall(b"to the host\n")
            assert process.stdout.readline() == b"to the host\n"
        assert process.wait(10) == 0


def test_a_carrier_lives_as_long_as_the_bridge_keeps_it_though_the_door_has_closed(listener: socket.socket) -> None:
    with _join(listener, "carrier", "12", "exec") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        sock, _ = listener.accept()
        with sock:
            line, fds, _, _ = socket.recv_fds(sock, 4096, 2)
            assert json.loads(line) == {"type": "carrier", "id": 12, "via": "exec"}
            process.stdin.write(b"from the agent")
            process.stdin.flush()
            assert len(fds) == 1
            with socket.socket(fileno=fds[0]) as carrier:
                sock.close()
                assert carrier.recv(100) == b"from the agent"
                carrier.sendall(b"to the agent")
                assert process.stdout.read(12) == b"to the agent"
                assert process.poll() is None, "an engine would close its stdio soon after its end"
        assert process.wait(10) == 0


def test_a_carrier_ends_when_the_far_end_of_its_stdout_is_gone(listener: socket.socket) -> None:
    with _join(listener, "carrier", "12") as process:
        assert process.stdout is not None
        sock, _ = listener.accept()
        with sock:
            process.stdout.close()
            assert process.wait(10) == 0


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"not whole",
        b"[1]\n",
        b"{\n",
        b"[" * 4000 + b"\n",
        b"x" * 5000,
        b'{"type": "carrier", "id": 1, "via": "exec"}\n',
        b'{"type": 1}\n',
    ],
)
def test_whoever_says_what_the_door_does_not_know_is_shown_out_and_the_next_is_served(tmp_path: Path, said: bytes) -> None:
    async def play() -> None:
        controls: asyncio.Queue[socket.socket] = asyncio.Queue()
        path = tmp_path / "bridge.sock"
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            serving = group.create_task(Door(controls.put_nowait, lambda carrier: None, path).serve())
            while not path.exists():  # noqa: ASYNC110  a file, which tells nobody
                await asyncio.sleep(0.001)
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(said)
            writer.write_eof()
            with contextlib.suppress(ConnectionResetError):  # its words were not read to the end
                assert await reader.read() == b""
            writer.close()
            _, writer = await asyncio.open_unix_connection(path)
            writer.write(b'{"type": "control"}\n')
            (await controls.get()).close()
            writer.close()
            serving.cancel()

    asyncio.run(play())

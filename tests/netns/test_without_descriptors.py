"""A bridge that has no descriptor left: what it has goes on, what is new waits, and it uses no CPU over it."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.netns.conftest import PORT, SERVER, WAIT_S, World

LINKS = ("real", "handed")


@contextlib.contextmanager
def _no_descriptors(pid: int) -> Iterator[None]:
    """The process gets no new descriptor meanwhile."""
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    taken = {int(fd) for fd in os.listdir(f"/proc/{pid}/fd")}
    lowest_free = min(set(range(len(taken) + 1)) - taken)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _echoed(app: socket.socket, said: bytes) -> bool:
    app.sendall(said)
    return app.recv(100) == said


def test_flows_go_on_and_new_ones_wait(world: World) -> None:
    assert world.bridge is not None
    pid = world.bridge.pid
    with world.ses.connect(SERVER, PORT) as before:
        assert before.recv(100).startswith(b"cluster")
        with _no_descriptors(pid), socket.socket(socket.AF_UNIX) as visitor:
            visitor.connect(str(world.door))
            waiting = world.ses.connect(SERVER, PORT)
            used = _cpu_s(pid)
            threading.Event().wait(1.0)
            used = _cpu_s(pid) - used
            assert _echoed(before, b"still here")
        waiting.close()
        assert used < 0.3, "of the 1 s, which a loop that asks again at once would use whole"
        with world.ses.connect(SERVER, PORT) as after:
            assert after.recv(100).startswith(b"cluster")
            assert _echoed(after, b"served again")
        world.take_over()
        assert _echoed(before, b"and the door too")


def test_dns_over_tcp_waits_too(world: World) -> None:
    assert world.bridge is not None
    query = b"\0\x01\x01\0\0\x01\0\0\0\0\0\0\x02db\x04shop\x03svc\0\0\x01\0\x01"
    with _no_descriptors(world.bridge.pid):
        app = world.ses.connect(SERVER, 53)
        app.sendall(len(query).to_bytes(2, "big") + query)
    with app:
        app.settimeout(WAIT_S)
        assert app.recv(2 + 512)[2:4] == b"\0\x01"

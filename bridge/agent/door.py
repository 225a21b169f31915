"""`python -m bridge.agent door`: joins its own stdin and stdout to the agent's Unix socket, for carriers by exec.

Two threads move bytes: splice(2) inside the kernel where a pipe is at hand (an engine's exec gives pipes), else read and write.
The end of stdin is passed on as a half-close; the end of the agent's side ends the process.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import sys
import threading
from pathlib import Path

_PIECE = 1 << 20


def run(path: Path) -> int:
    """Returns the exit code."""
    agent = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        agent.connect(str(path))
    except OSError as exc:
        print(f"mbridge: error: no agent at {path}: {(exc.strerror or str(exc)).lower()}", file=sys.stderr)
        return 1
    for fd in (0, 1):
        with contextlib.suppress(OSError):  # only pipes have a size
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIECE)

    def inwards() -> None:
        _pump(0, agent.fileno())
        with contextlib.suppress(OSError):
            agent.shutdown(socket.SHUT_WR)

    threading.Thread(target=inwards, name="stdin", daemon=True).start()
    _pump(agent.fileno(), 1)
    return 0


def _pump(source: int, sink: int) -> None:
    """Until the source ends or the sink is gone."""
    by_splice = True
    waiting = select.poll()
    waiting.register(source, select.POLLIN)
    try:
        while True:
            if by_splice:
                # A splice that waits for its source holds the lock of the pipe it fills (fs/splice.c, splice_file_to_pipe): whoever
                # reads that pipe would wait with it, for bytes that are there already.
                waiting.poll()
                try:
                    if not os.splice(source, sink, _PIECE):
                        return
                    continue
                except OSError as exc:
                    if exc.errno != errno.EINVAL:  # neither is a pipe
                        raise
                    by_splice = False
            data = os.read(source, _PIECE)
            if not data:
                return
            view = memoryview(data)
            while view:
                view = view[os.write(sink, view) :]
    except OSError:
        return

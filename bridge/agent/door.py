"""`python -m bridge.agent door`: joins its own stdin and stdout to the agent's Unix socket, for carriers by exec.

Two threads move bytes (adapters/splicing.py). The end of stdin is passed on as a half-close; the end of the agent's side ends the
process.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import sys
import threading
from pathlib import Path

from bridge.adapters.splicing import PIECE, pump


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
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIECE)

    def inwards() -> None:
        pump(0, agent.fileno())
        with contextlib.suppress(OSError):
            agent.shutdown(socket.SHUT_WR)

    threading.Thread(target=inwards, name="stdin", daemon=True).start()
    pump(agent.fileno(), 1)
    return 0

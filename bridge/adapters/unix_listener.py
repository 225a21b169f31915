"""Listening at a path of the file system (unix(7)): the bridge's door, the agent's, and where the two meet on one engine."""

from __future__ import annotations

import socket
from pathlib import Path

_BACKLOG = 64


def listen_at(path: Path, mode: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """A non-blocking listener; `mode` says who may connect. What a process before has left at `path` gives way. Raises OSError."""
    sock = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        sock.bind(str(path))
        path.chmod(mode)
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock

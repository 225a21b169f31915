"""The bridge's socket for the agent of its own engine (engine/handing.py), in a volume that only these two containers have.

Its folder is root's and the agent may only look into it; the socket is open to whoever sees it, and a token tells the agent.
"""

from __future__ import annotations

import logging
import socket
from pathlib import Path

from bridge.adapters.unix_messages import UnixMessages
from bridge.engine.accepting import Accepting
from bridge.engine.handing import Handing
from bridge.protocol.handing import SOCKET

log = logging.getLogger(__name__)

_BACKLOG = 4


def open_handing(path: Path = Path(SOCKET)) -> Handing | None:
    """Listening, until the process ends; None where the agent is elsewhere, so that there is no such folder."""
    if not path.parent.is_dir():
        return None
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen(_BACKLOG)
    except OSError as exc:
        listener.close()
        log.warning("! handing: cannot listen at %s: %s; flows go by the link", path, exc.strerror)
        return None
    handing = Handing(UnixMessages)
    Accepting(listener, lambda sock, _: handing.on_connection(sock)).start()
    return handing

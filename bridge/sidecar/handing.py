"""The bridge's socket for the agent of its own engine (engine/handing.py), in a volume that only these two containers have.

Its folder is root's and the agent may only look into it; the socket is open to whoever sees it, and a token tells the agent.
"""

from __future__ import annotations

import logging
import socket
from pathlib import Path

from bridge.adapters.unix_listener import listen_at
from bridge.adapters.unix_messages import UnixMessages
from bridge.engine.accepting import Accepting
from bridge.engine.handing import Handing
from bridge.protocol.handing import SOCKET

log = logging.getLogger(__name__)


def open_handing(path: Path = Path(SOCKET)) -> Handing | None:
    """Listening, until the process ends; None where the agent is elsewhere, so that there is no such folder."""
    if not path.parent.is_dir():
        return None
    try:
        listener = listen_at(path, 0o666, socket.SOCK_SEQPACKET)
    except OSError as exc:
        log.warning("! handing: cannot listen at %s: %s; flows go by the link", path, exc.strerror)
        return None
    handing = Handing(UnixMessages)
    Accepting(listener, lambda sock, _: handing.on_connection(sock)).start()
    return handing

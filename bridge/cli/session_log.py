"""A session's own log file, `SESSION/log`: what the host process has to tell of this session and of no other.

Several sessions may run as tasks of one process; a context variable, which tasks inherit, says whose a record is.
Limits: 4 MiB, then the older half is gone; values of environments and tokens are kept out by those who log.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import logging.handlers
from collections.abc import Iterator
from pathlib import Path

_BYTES = 2 << 20
_FORMAT = "%(asctime)s %(levelname)-7s %(name)s %(message)s"
_session: contextvars.ContextVar[Path | None] = contextvars.ContextVar("mbridge_session_log", default=None)


@contextlib.contextmanager
def to_file(path: Path, level: int = logging.INFO) -> Iterator[None]:
    """Records of this context go to `path` too, until left. A file that cannot be made is no reason to fail a session."""
    try:
        handler = logging.handlers.RotatingFileHandler(path, maxBytes=_BYTES, backupCount=1, encoding="utf-8", errors="backslashreplace")
    except OSError:
        yield
        return
    handler.setFormatter(logging.Formatter(_FORMAT))
    handler.setLevel(level)
    handler.addFilter(lambda record: _session.get() == path)
    root = logging.getLogger("bridge")
    if root.level == logging.NOTSET or root.level > level:
        root.setLevel(level)
    token = _session.set(path)
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()
        _session.reset(token)

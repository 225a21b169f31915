"""Bytes from one descriptor to another, for the doors' processes that an engine's exec starts: no event loop, a thread a direction.

Theory of operation: splice(2) moves them inside the kernel where either end is a pipe, and an exec's stdio is; else read and write.
Both ends are looked at before each move. A splice that waited for its source would hold the lock of the pipe that it fills
(fs/splice.c, splice_file_to_pipe), and whoever reads that pipe would wait with it, for bytes that are there already. And a sink
that nobody reads any more is told by poll(2) alone, while the source is silent.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select

PIECE = 1 << 20


def pump(source: int, sink: int) -> None:
    """Until the source ends or the sink is gone."""
    waiting = select.poll()
    waiting.register(source, select.POLLIN)
    waiting.register(sink, 0)  # POLLERR and POLLHUP are told in any case
    by_splice = True
    with contextlib.suppress(OSError):
        while not any(fd == sink for fd, _ in waiting.poll()):
            if by_splice:
                try:
                    if not os.splice(source, sink, PIECE):
                        return
                    continue
                except OSError as exc:
                    if exc.errno != errno.EINVAL:  # neither is a pipe
                        raise
                    by_splice = False
            data = memoryview(os.read(source, PIECE))
            if not data:
                return
            while data:
                data = data[os.write(sink, data) :]

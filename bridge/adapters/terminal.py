"""The user's terminal, as `docker run -i -t` treats it: raw mode, window size, stdin read to its end, bytes written as they are.

stdin is read by a thread of its own, because it may be a file (which epoll refuses) or a pipe that stays open after the app has
ended. The thread is a daemon: it holds nothing up at the end.

Limits: one reader of stdin per process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import termios
import threading
import tty
from collections.abc import Awaitable, Callable, Iterator

_READ_BYTES = 64 << 10
_ATOMIC_BYTES = 4096  # PIPE_BUF: what a writable pipe takes without blocking (pipe(7))


@contextlib.contextmanager
def raw(fd: int = 0) -> Iterator[None]:
    """The terminal passes every key on as it is; what it was before comes back in any case."""
    before = termios.tcgetattr(fd)
    tty.setraw(fd, termios.TCSANOW)  # not FLUSH: what was typed ahead is for the app
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def size(fd: int = 1) -> tuple[int, int] | None:
    """(rows, columns), or None where this is no terminal."""
    try:
        columns, rows = os.get_terminal_size(fd)
    except OSError:
        return None
    return rows, columns


@contextlib.contextmanager
def on_resize(callback: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGWINCH, callback)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGWINCH)


def read_stdin(write: Callable[[bytes], Awaitable[None]], at_end: Callable[[], None], fd: int = 0) -> Callable[[], None]:
    """Feed stdin to `write`, one chunk at a time; call `at_end` at its EOF. Returns what stops it."""
    loop = asyncio.get_running_loop()
    stopped = threading.Event()

    async def passed(data: bytes) -> None:
        await write(data)

    def pump() -> None:
        with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: the loop has been closed meanwhile
            while not stopped.is_set():
                data = os.read(fd, _READ_BYTES)
                if stopped.is_set():
                    return
                if not data:
                    loop.call_soon_threadsafe(at_end)
                    return
                asyncio.run_coroutine_threadsafe(passed(data), loop).result()

    threading.Thread(target=pump, name="stdin", daemon=True).start()
    return stopped.set


async def write_all(fd: int, data: bytes) -> bool:
    """All of `data`, without holding up the loop where the reader of `fd` is slow. False: nobody reads any more."""
    try:
        if len(data) <= _ATOMIC_BYTES and select.select([], [fd], [], 0)[1]:
            os.write(fd, data)
        else:
            await asyncio.to_thread(_write, fd, data)
    except OSError:
        return False
    return True


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:  # someone who shares this descriptor has made it non-blocking
            select.select([], [fd], [])

"""`mbridge up`: one or several sessions in one process, their output told apart, ended together by one signal.

Limits: lines of several apps are cut at newlines; a line of more than 64 KiB is passed on in parts.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from bridge.adapters import terminal
from bridge.cli import sessions
from bridge.cli.hosting import Manner, Teller, host
from bridge.cli.ui import Ui
from bridge.errors import BridgeError, first_of
from bridge.model.wish import SessionWish

_LINE_BYTES = 64 << 10
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, sessions.END)


async def up_one(wish: SessionWish, ui: Ui, on_ready: Callable[[str], None] = lambda session: None) -> int:
    """One session in the foreground; a signal ends it in order, which is success once it had been ready."""
    ready: list[str] = []

    def note(session: str) -> None:
        ready.append(session)
        on_ready(session)

    code = await host(wish, ui, Manner(signals_end_it=True, take_over=True, on_ready=note))
    return 0 if ready and code in (128 + number for number in _SIGNALS) else code


async def up_several(
    wishes: Sequence[SessionWish],
    teller: Callable[[str], Teller],
    *,
    attach: bool = True,
    on_ready: Callable[[str, str], None] = lambda app, session: None,
) -> int:
    """Sessions side by side until all have ended: the first exit code that is not 0.

    A signal ends all in order. A session that cannot start, or fails later, ends the others: what is up half way helps nobody.
    Raises its BridgeError.
    """
    width = max(len(wish.app_name) for wish in wishes)
    codes: dict[str, int] = {}

    async def one(wish: SessionWish) -> None:
        name = wish.app_name
        output = Prefixed(f"{name:<{width}} | ".encode())
        manner = Manner(
            attach=attach,
            signals_end_it=True,
            take_over=True,
            handle_signals=False,
            on_ready=lambda session: on_ready(name, session),
            write=output.write,
        )
        try:
            codes[name] = await host(wish, teller(name), manner)
        finally:
            await output.flush()

    async with ended_by_signals() as signals:
        try:
            async with asyncio.TaskGroup() as group:
                for wish in wishes:
                    group.create_task(one(wish), name=f"app-{wish.app_name}")
        except* BridgeError as several:
            raise first_of(several) from None
        except* asyncio.CancelledError:
            if not signals:
                raise
    return next((code for code in codes.values() if code), 0)


@contextlib.asynccontextmanager
async def ended_by_signals() -> AsyncIterator[list[int]]:
    """Cancels this task at the first signal; the list says which came."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    came: list[int] = []

    def on_signal(number: int) -> None:
        if not came and task is not None:
            task.cancel()
        came.append(number)

    for number in _SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield came
    except asyncio.CancelledError:
        if not came:
            raise
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


class Prefixed:
    """Output of one app among several: whole lines, each with the app's name."""

    def __init__(self, prefix: bytes, out: Callable[[int, bytes], Awaitable[bool]] = terminal.write_all) -> None:
        self._prefix = prefix
        self._out = out
        self._rest = {1: b"", 2: b""}

    async def write(self, fd: int, data: bytes) -> bool:
        *lines, rest = (self._rest[fd] + data).split(b"\n")
        if len(rest) > _LINE_BYTES:
            lines, rest = [*lines, rest], b""
        self._rest[fd] = rest
        if not lines:
            return True
        return await self._out(fd, b"".join(self._prefix + line + b"\n" for line in lines))

    async def flush(self) -> None:
        """What came after the last newline."""
        for fd, rest in self._rest.items():
            if rest:
                await self._out(fd, self._prefix + rest + b"\n")
        self._rest = {1: b"", 2: b""}

"""The app's container as a process of the user's: stdio, terminal, signals, exit code, as `docker run` has them.

Where nobody reads its stdout any more (`| head -1`), the app is ended as by `docker stop`, and the exit code is the shell's for
SIGPIPE: a pipeline must not wait for a server.

Order: attached and waited for before it starts, so that neither its first byte nor an end within milliseconds is missed.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Iterator

from bridge.adapters import terminal
from bridge.adapters.docker.engine import Engine
from bridge.adapters.docker.wire import STDERR, Hijacked
from bridge.engine.up import untorn
from bridge.errors import EngineUnavailable, HostError

_GRACE_S = 10  # as docker stop
_BROKEN_PIPE = 128 + signal.SIGPIPE
_IMPATIENT = 3  # as docker run: the third signal that has no effect ends it


class AppProcess:
    """One run of the app's container."""

    def __init__(
        self,
        engine: Engine,
        container: str,
        *,
        interactive: bool,
        tty: bool,
        attach: bool,
        write: Callable[[int, bytes], Awaitable[bool]] = terminal.write_all,
        on_started: Callable[[], None] = lambda: None,
    ) -> None:
        self.running = False  # from the moment that it may hear a signal: it can have spoken before the engine's answer is here
        self.started = False
        self._up = asyncio.Event()
        self._unread = asyncio.Event()
        self._on_started = on_started
        self._write = write
        self._engine, self._container = engine, container
        self._interactive, self._tty, self._attach = interactive, tty, attach
        self._signals = 0

    async def run(self, *, started_already: bool = False) -> int:
        """Start it, pass its stdio on, return its exit code."""
        stream = await self._engine.attach(self._container, stdin=self._interactive, tty=self._tty) if self._attach else None
        noted = asyncio.Event()
        loop = asyncio.get_running_loop()
        # One that has been taken over may end before we ask: what does not run any more has an exit code too
        condition = "not-running" if started_already else "next-exit"
        waiting = loop.create_task(self._engine.wait(self._container, noted, condition), name="app-wait")
        output = loop.create_task(self._show(stream), name="app-output") if stream else None
        try:
            noting = loop.create_task(noted.wait(), name="app-noted")
            await asyncio.wait([waiting, noting], return_when=asyncio.FIRST_COMPLETED)
            noting.cancel()
            with self._terminal(stream) if stream else contextlib.nullcontext():
                self.started = True  # before it is: what is cancelled half way must be stopped as well
                self.running = True
                if not started_already:
                    await untorn(self._engine.start(self._container), "start app")
                self._up.set()
                self._on_started()
                await self._resize()
                code = await self._ended_or_unread(waiting, stream)
                self.running = False
                if output is not None:
                    await output
            return code
        except asyncio.CancelledError:
            if self.started:
                await untorn(self._stop(stream, output), "stop app", to_the_end=True)
            raise
        finally:
            self.running = False
            waiting.cancel()
            if output is not None:
                output.cancel()
            if stream is not None:
                stream.close()

    async def _stop(self, stream: Hijacked | None, output: asyncio.Task[None] | None) -> None:
        """We end it: it gets its stop signal and some time, as by `docker stop`, and its last words are still shown."""
        stopping = asyncio.get_running_loop().create_task(self._engine.stop(self._container, _GRACE_S), name="app-stop")
        if stream is not None and not (await asyncio.wait([stopping], timeout=_GRACE_S + 1))[0]:
            stream.close()  # whoever reads our output does not; an engine waits for that before it calls a container ended
        with contextlib.suppress(HostError):
            await stopping
            if output is not None:
                await asyncio.wait([output], timeout=_GRACE_S)

    async def _ended_or_unread(self, waiting: asyncio.Task[int], stream: Hijacked | None) -> int:
        loop = asyncio.get_running_loop()
        ended, unread = loop.create_task(self._ended(waiting), name="app-end"), loop.create_task(self._unread.wait(), name="app-unread")
        try:
            await asyncio.wait([ended, unread], return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                return ended.result()
            await self._stop(stream, None)
            return _BROKEN_PIPE
        finally:
            ended.cancel()
            unread.cancel()

    async def kill(self) -> None:
        with contextlib.suppress(HostError):
            await self._engine.kill(self._container)

    async def _ended(self, waiting: asyncio.Task[int]) -> int:
        """The exit code, also where the engine was restarted meanwhile (live restore) and the wait was cut."""
        try:
            return await waiting
        except EngineUnavailable:
            found = None
            with contextlib.suppress(HostError):
                found = await self._engine.inspect(self._container)
            if found is None or found["State"]["Running"]:
                raise
            return int(found["State"]["ExitCode"])

    async def on_signal(self, number: int) -> None:
        self._signals += 1
        await self._up.wait()
        name = "KILL" if self._signals >= _IMPATIENT else signal.Signals(number).name.removeprefix("SIG")
        with contextlib.suppress(HostError):
            await self._engine.kill(self._container, name)

    async def _show(self, stream: Hijacked) -> None:
        shown = {1, 2}
        async for kind, data in stream.chunks():
            fd = 2 if kind == STDERR else 1
            if fd in shown and not await self._write(fd, data):
                shown.discard(fd)  # a closed stderr is no reason to end
                if fd == 1:
                    stream.close()
                    self._unread.set()
                    return

    @contextlib.contextmanager
    def _terminal(self, stream: Hijacked) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as stack:
            if self._interactive:
                if self._tty:
                    stack.enter_context(terminal.raw())

                async def write(data: bytes) -> None:
                    with contextlib.suppress(ConnectionError, RuntimeError):
                        stream.writer.write(data)
                        await stream.writer.drain()

                stack.callback(terminal.read_stdin(write, stream.end_input))
            if self._tty and terminal.size() is not None:
                stack.enter_context(terminal.on_resize(lambda: resizing.append(loop.create_task(self._resize(), name="resize"))))
                resizing: list[asyncio.Task[None]] = []  # kept: a task that nobody holds may vanish
            yield

    async def _resize(self) -> None:
        size = terminal.size() if self._tty else None
        if size is not None:
            with contextlib.suppress(HostError):
                await self._engine.resize(self._container, *size)

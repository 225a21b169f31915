"""Every word that the user sees passes through here.

Theory of operation: what a command was asked for goes to stdout (tables, JSON, completion scripts); all else, steps,
warnings, errors, goes to stderr, because stdout of `run` is the app's alone. A step is one line with its time. On a
terminal the line is alive: it shows what is going on now and is rewritten until the step ends; elsewhere it is written
once, at the step's end.

    ✓ target   container shop-api-1                 0.04 s          mbridge: target: container shop-api-1 (0.04 s)
    ⠹ agent    making the agent's container                        (nothing yet)

Text from outside (names, log lines, an engine's own sentence) is escaped: a container's name must not move the cursor.

Limits: one live line, which shows the step that spoke last; with several sessions at once (`prefixed`) the lines are plain and
carry the app's name.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from bridge.errors import BridgeError

QUIET, NORMAL, VERBOSE = -1, 0, 1
_CODES = {"red": "31", "green": "32", "yellow": "33", "cyan": "36", "bold": "1", "dim": "2"}
_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c")


def printable(text: str) -> str:
    """`text` with control characters, bidirectional overrides and undecodable bytes written as escapes; one line."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(char if char == "\t" or not _harmful(char) else _escape(char) for char in text)


def _harmful(char: str) -> bool:
    return char in _BIDI or unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")


def _escape(char: str) -> str:
    code = ord(char)
    if char == "\n":
        return "\\n"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class Step:
    """One step of a start: `now` says what it is doing, `done` what came of it."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self.result = ""

    def now(self, text: str) -> None:
        self._show(text)

    def done(self, text: str) -> None:
        self.result = text


class Ui:
    """What commands speak through. Constructed once by `main`; tests hand in their own streams and clock."""

    def __init__(
        self,
        out: TextIO | None = None,
        err: TextIO | None = None,
        *,
        level: int = NORMAL,
        environ: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
        prefix: str = "",
    ) -> None:
        self._out, self._err = out, err
        self._environ = os.environ if environ is None else environ
        self._clock = clock
        self._prefix = prefix
        self._under_way: dict[Step, str] = {}  # what each step of a terminal shows; the last one is seen
        self._frame = 0
        self.level = level
        self.raw = False  # the terminal is in raw mode (`run -t`): a line ends with a carriage return too

    # Streams are looked up at each use: click's test runner and `-d` exchange them.
    @property
    def out(self) -> TextIO:
        return self._out or sys.stdout

    @property
    def err(self) -> TextIO:
        return self._err or sys.stderr

    def on_terminal(self, stream: TextIO | None = None) -> bool:
        return (stream or self.err).isatty() and self._environ.get("TERM") != "dumb"

    def prefixed(self, name: str) -> Ui:
        """The same, for one of several sessions side by side: each line carries the app's name."""
        return Ui(self._out, self._err, level=self.level, environ=self._environ, clock=self._clock, prefix=f"{printable(name)}: ")

    # -- stderr -----------------------------------------------------------------------------------------------------

    def error(self, message: str, hint: str | None = None) -> None:
        self._line(f"mbridge: {self._paint('error:', 'red', 'bold')} ", message)
        if hint:
            self._line(f"mbridge: {self._paint('hint:', 'cyan')} ", hint)

    def fault(self, error: BridgeError) -> None:
        self.error(error.message, error.hint)

    def warn(self, message: str) -> None:
        self._line(f"mbridge: {self._paint('warning:', 'yellow')} ", message)

    def note(self, message: str) -> None:
        """Worth a line, but not for --quiet."""
        if self.level >= NORMAL:
            self._line("mbridge: ", message)

    def detail(self, message: str) -> None:
        """For --verbose alone."""
        if self.level >= VERBOSE:
            self._line("mbridge: ", message)

    @contextlib.contextmanager
    def step(self, what: str) -> Iterator[Step]:
        """A step of a start, with its time. A step that fails leaves the telling to whoever answers the error."""
        began = self._clock()
        step = Step(lambda text: self._show(step, what, text))
        self._show(step, what, "")
        try:
            yield step
        finally:
            self._under_way.pop(step, None)
            self._erase()
        if self.level < NORMAL:
            return
        took = f"{self._clock() - began:.2f} s"
        result = printable(step.result)
        if self._alive():
            self._write(f"{self._paint('✓', 'green')} {what:<8} {result:<52} {self._paint(took, 'dim')}")
            self._redraw()
        else:
            self._line("mbridge: ", f"{what}: {step.result} ({took})" if result else f"{what} ({took})")

    def _alive(self) -> bool:
        return self.level == NORMAL and not self._prefix and not self.raw and self.on_terminal()

    def _show(self, step: Step, what: str, text: str) -> None:
        if not self._alive():
            if text:
                self.detail(f"{what}: {text}")
            return
        self._under_way.pop(step, None)
        self._under_way[step] = f"{what:<8} {printable(text)}"
        self._frame += 1
        self._redraw()

    def _redraw(self) -> None:
        if self._under_way:
            line = f"{_FRAMES[self._frame % len(_FRAMES)]} {list(self._under_way.values())[-1]}"
            self.err.write(f"\r\x1b[2K{line[: self._width() - 1]}")
            self.err.flush()

    def _erase(self) -> None:
        if self._alive():
            self.err.write("\r\x1b[2K")

    def _line(self, start: str, text: str) -> None:
        """One line; further lines of `text` (a builder's last words) follow indented."""
        first, *rest = text.splitlines() or [""]
        if self._under_way:
            self._erase()
        self._write(f"{start}{self._prefix}{printable(first)}")
        for line in rest:
            self._write(f"  {self._prefix}{printable(line)}")
        self._redraw()

    def _write(self, line: str) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.err.write(line + ("\r\n" if self.raw else "\n"))
            self.err.flush()

    def _paint(self, text: str, *styles: str, stream: TextIO | None = None) -> str:
        if self._environ.get("NO_COLOR") or not self.on_terminal(stream):
            return text
        return f"\x1b[{';'.join(_CODES[style] for style in styles)}m{text}\x1b[0m"

    def _width(self) -> int:
        with contextlib.suppress(OSError, ValueError):
            return os.get_terminal_size(self.err.fileno()).columns
        return 80

    @contextlib.contextmanager
    def passing_on_warnings(self) -> Iterator[None]:
        """Warnings that are logged meanwhile are the user's, where no session's log takes them."""
        import logging

        handler = logging.Handler(logging.WARNING)
        handler.emit = lambda record: self.warn(record.getMessage())  # type: ignore[method-assign]  # a handler is nothing more
        logging.getLogger("bridge").addHandler(handler)
        try:
            yield
        finally:
            logging.getLogger("bridge").removeHandler(handler)

    # -- stdout -----------------------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """An answer, as it is: what the user asked for, made by us."""
        self.out.write(text if text.endswith("\n") else text + "\n")
        self.out.flush()

    def write(self, data: bytes) -> None:
        """Bytes as they are (values of an environment need not be UTF-8)."""
        buffer = getattr(self.out, "buffer", None)
        if buffer is None:
            self.out.write(data.decode(errors="surrogateescape"))
        else:
            self.out.flush()
            buffer.write(data)
        self.out.flush()

    def json(self, value: Any) -> None:
        self.say(json.dumps(value, indent=2))

    def table(self, header: Sequence[str], rows: Iterable[Sequence[str]], empty: str) -> None:
        """Columns as wide as their widest cell; without rows, `empty` to stderr."""
        cells = [[printable(cell) for cell in row] for row in rows]
        if not cells:
            self.note(empty)
            return
        self.say(self.laid_out(header, cells))

    def laid_out(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
        widths = [max(map(_cells, column)) for column in zip(header, *rows, strict=True)]
        lines = []
        for number, row in enumerate([header, *rows]):
            line = "  ".join(cell + " " * (width - _cells(cell)) for cell, width in zip(row, widths, strict=True)).rstrip()
            lines.append(self._paint(line, "bold", stream=self.out) if number == 0 else line)
        return "\n".join(lines)

    def mark(self, good: bool | None) -> str:
        """✓, ✗, or ! where something is missing that can be done without."""
        sign, color = {True: ("✓", "green"), False: ("✗", "red"), None: ("!", "yellow")}[good]
        return self._paint(sign, color, stream=self.out)

    def redraw(self, text: str) -> None:
        """The next picture of a --watch: over the last one on a terminal, below it elsewhere."""
        if self.on_terminal(self.out):
            text = f"\x1b[H\x1b[J{text}"
        self.say(text)


def _cells(text: str) -> int:
    """How many columns of a terminal `text` takes."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def ago(seconds: float) -> str:
    """A span in the two units that matter: `4s`, `3m 10s`, `2h 05m`, `3d 4h`."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d {whole % 86400 // 3600}h"

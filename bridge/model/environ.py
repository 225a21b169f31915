"""The target process's environment: which of its variables the app gets, and how they are written down.

Precedence at the app, lowest first: the image's own, the target's, `env.set`, then `-e` and `--env-file` of the command
line. PATH, HOME and what would run code in the developer's tools stay the image's, unless `env.include` names them.

Names and values are bytes: the kernel allows any but NUL, and a value that is no UTF-8 must arrive as it is. Values never
reach a log; nothing here prints.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal, get_args

from bridge.errors import SpecError

# Design section 8: what belongs to the image's file system, and what would run code in or redirect tools of the developer.
DEFAULT_EXCLUDE = (
    *("PATH", "HOME", "LD_*", "BASH_ENV", "ENV", "NODE_OPTIONS", "PYTHON*", "PERL5*", "RUBY*", "JAVA_TOOL_OPTIONS"),
    *("GIT_*", "SSH_*", "DOCKER_*", "KUBECONFIG", "*_PROXY", "*_proxy", "EDITOR", "PAGER", "XDG_*"),
)

Form = Literal["dotenv", "json", "shell", "compose"]
FORMS: tuple[Form, ...] = get_args(Form)

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PLAIN = re.compile(r"[A-Za-z0-9_./:@%+,=-]*")


@dataclass(frozen=True, slots=True)
class Environ:
    """A target's variables as /proc/PID/environ has them (proc(5)): NAME=value, each ended by NUL.

    `warning`: what they are where the process's own could not be read. It holds for whatever was started with them.
    """

    raw: bytes
    warning: str | None = None


@dataclass(frozen=True, slots=True)
class EnvWish:
    """`include` beats the default exclude list, `exclude` beats both; globs as in a shell. `set` is added last."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    set: Mapping[str, str] = field(default_factory=dict)


def parse_environ(raw: bytes) -> dict[bytes, bytes]:
    """/proc/PID/environ as a mapping in its order. Of a name that stands twice the first counts, as for getenv(3)."""
    found: dict[bytes, bytes] = {}
    for entry in raw.split(b"\0"):
        name, equals, value = entry.partition(b"=")
        if equals and name:  # a process may have written over its environment: what is no entry is left out
            found.setdefault(name, value)
    return found


def choose(environ: Mapping[bytes, bytes], wish: EnvWish) -> dict[bytes, bytes]:
    """Those of the target's variables that the app gets, and `wish.set`. Raises SpecError for a name that cannot be set."""
    chosen = {name: value for name, value in environ.items() if _wanted(_text(name), wish)}
    for text, value in wish.set.items():
        if not text or "=" in text or "\0" in text or "\0" in value:
            raise SpecError(f"env.set: {text!r} cannot be set", hint="a name has neither '=' nor NUL in it, a value no NUL")
        name = _bytes(text)
        chosen.pop(name, None)
        chosen[name] = _bytes(value)
    return chosen


def envfile(chosen: Mapping[bytes, bytes], window: tuple[int, int] | None = None) -> bytes:
    """What layer/launch.c reads: the container's own first, the `chosen` over it; `window` is the terminal's (rows, columns)."""
    entries = [b"+", *(name + b"=" + value for name, value in chosen.items())]
    if window is not None:
        entries.append(b"@%dx%d" % window)
    return b"".join(entry + b"\0" for entry in entries)


def render(chosen: Mapping[bytes, bytes], form: Form) -> str:
    """The variables as text that ends in a newline.

    json: bytes that are no UTF-8 as lone surrogates (Python's surrogateescape). shell: names that no shell can export are
    left out. dotenv and compose have no way to write such bytes: they become U+FFFD.
    """
    match form:
        case "json":
            return json.dumps({_text(name): _text(value) for name, value in chosen.items()}, indent=2) + "\n"
        case "shell":
            exportable = ((_text(name), value) for name, value in chosen.items())
            return "".join(f"export {name}={_shell(value)}\n" for name, value in exportable if _IDENTIFIER.fullmatch(name))
        case "dotenv":
            return _lines(chosen, lambda name, value: f"{name}={_dotenv(value)}\n")
        case "compose":
            # a JSON string is a YAML string; `$` is compose's own interpolation
            body = _lines(chosen, lambda name, value: f"  {json.dumps(name)}: {json.dumps(value.replace('$', '$$'))}\n")
            return "environment:\n" + body if body else "environment: {}\n"


def _lines(chosen: Mapping[bytes, bytes], line: Callable[[str, str], str]) -> str:
    return "".join(line(name.decode(errors="replace"), value.decode(errors="replace")) for name, value in chosen.items())


def _wanted(name: str, wish: EnvWish) -> bool:
    if _matches(name, wish.exclude):
        return False
    return _matches(name, wish.include) or not _matches(name, DEFAULT_EXCLUDE)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _shell(value: bytes) -> str:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        # $'…' of bash, zsh and POSIX 2024 carries any byte
        return "$'" + "".join(chr(byte) if 32 <= byte < 127 and byte not in b"'\\" else f"\\{byte:03o}" for byte in value) + "'"
    return shlex.quote(text)


def _dotenv(value: str) -> str:
    if _PLAIN.fullmatch(value):
        return value
    if not any(char in value for char in "'\\\n\r"):
        return f"'{value}'"  # literal in every dialect
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$").replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'


def _text(raw: bytes) -> str:
    return raw.decode(errors="surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogateescape")

"""Fields of the JSON objects that another process sends, each checked for type and length before anyone sees it.

`what` names the message in the error ("control", "status"). Every fault is a RemoteProtocolError: whoever reads a message
answers that one error, and no ValueError of a library. A text holds no lone surrogates, which JSON can write but no file,
no socket and no terminal takes.
"""

from __future__ import annotations

import json
from typing import Any

from bridge.errors import RemoteProtocolError

MOST_NUMBER = 1 << 63
_MOST_PRINTED = 256
_YEAR_10000_S = 253_402_300_800  # datetime.MAXYEAR is the one before


def read_object(raw: bytes, what: str) -> dict[str, Any]:
    """The object in `raw`, whose length the caller has bounded."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as exc:
        raise RemoteProtocolError(f"{what}: no JSON") from exc
    return an_object(value, what)


def an_object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RemoteProtocolError(f"{what}: no object")
    return value


def text(data: dict[str, Any], name: str, what: str, *, most: int | None = None) -> str:
    """`most`: in characters."""
    value = data.get(name)
    if not _is_text(value, most):
        raise RemoteProtocolError(f"{what}: {name} is missing, no text or too long")
    return str(value)


def maybe_text(data: dict[str, Any], name: str, what: str, *, most: int | None = None) -> str | None:
    """None where the field is missing or null."""
    return None if data.get(name) is None else text(data, name, what, most=most)


def texts(data: dict[str, Any], name: str, what: str, *, most: int | None = None, most_items: int | None = None) -> tuple[str, ...]:
    """Empty where the field is missing or null."""
    value = data.get(name)
    items = [] if value is None else value
    if not isinstance(items, list | tuple) or (most_items is not None and len(items) > most_items):
        raise RemoteProtocolError(f"{what}: {name} is no list, or a long one")
    if not all(_is_text(item, most) for item in items):
        raise RemoteProtocolError(f"{what}: {name} holds what is no text or too long")
    return tuple(items)


def number(data: dict[str, Any], name: str, what: str, default: int | None = None) -> int:
    """A whole number from 0 on; `default` where the field is missing."""
    value = data.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < MOST_NUMBER:
        raise RemoteProtocolError(f"{what}: {name} is missing or no number")
    return value


def seconds(data: dict[str, Any], name: str, what: str) -> float:
    """A time since the epoch that a calendar has; so neither NaN nor infinite, nor an integer that a float cannot hold."""
    value = data.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < _YEAR_10000_S:
        raise RemoteProtocolError(f"{what}: {name} is missing or no time")
    return float(value)


def printable(said: str) -> str:
    """Words of a far end, fit for a log and a terminal: one line, and short."""
    return "".join(char if char.isprintable() else "?" for char in said[:_MOST_PRINTED])


def _is_text(value: object, most: int | None) -> bool:
    if not isinstance(value, str) or (most is not None and len(value) > most):
        return False
    return value.isascii() or not any("\ud800" <= char <= "\udfff" for char in value)

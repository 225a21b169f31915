"""Secrets out of texts that leave the machine: by the name that they stand under, and by their looks.

Better a word too much than a secret: whatever stands under a name like `env`, `token` or `password` is replaced whole, however
it is nested. Limits: a secret in free text that looks like an ordinary word is not found.
"""

from __future__ import annotations

import json
import re
from typing import Any

GONE = "(redacted)"
_NAMES = re.compile(
    r"(?i)pass(word|wd)?$|secret|token|private|credential|authorization|cookie|api_?key|^env$|^environ(ment)?$|^set$|env\.set|\.env$|auth$"
)
_PATTERNS = (
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.S), GONE),
    (re.compile(r"(?i)\b(authorization|proxy-authorization|cookie|set-cookie)(\s*[:=]\s*)[^\r\n]+"), rf"\1\2{GONE}"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}"), rf"\1 {GONE}"),
    (re.compile(r"(?i)([a-z][a-z0-9+.-]*://[^\s/:@]+:)[^\s/@]+@"), rf"\1{GONE}@"),
    (re.compile(r"\b(ey[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]*)"), GONE),  # a JSON Web Token
    (
        re.compile(r"(?i)\b([A-Z0-9_.-]*(?:password|passwd|secret|token|api_?key)[A-Z0-9_.-]*)(\s*[=:]\s*)(\"[^\"]*\"|'[^']*'|[^\s,;]+)"),
        rf"\1\2{GONE}",
    ),
)


def of_text(text: str) -> str:
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def of_document(text: str) -> str:
    """A JSON document; a text that is none as text."""
    try:
        value = json.loads(text)
    except ValueError:
        return of_text(text)
    return json.dumps(of_json(value), indent=1)


def of_json(value: Any, under: str = "") -> Any:
    """The value with secrets replaced; `under` is the name that it stands under."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if under and _NAMES.search(under):
        return GONE if value else value
    if isinstance(value, dict):
        return {name: of_json(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [of_json(item, under) for item in value]
    return of_text(str(value))

"""YAML 1.2 with the line of every key and value, by ruamel.yaml's node graph.

Plain scalars are read by the core schema alone: `off`, `yes` and `8080:22` are words, `2024-01-01` is one too, `0x10` is a
number. Numbers and booleans remember how they were written (`raw`), for where a text is wanted ("cpus: 1.50").

Limits: one document, 1 MiB, 50,000 values after aliases; no tags but those of the core schema, no merge keys (`<<`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Self

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

Path = tuple[str | int, ...]

MAX_BYTES, MAX_VALUES = 1 << 20, 50_000

_NULL = re.compile(r"null|Null|NULL|~|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_MAX_DIGITS = 4000  # int() itself refuses more than 4,300
_TAG = "tag:yaml.org,2002:"


class Int(int):
    raw: str


class Float(float):
    raw: str


class Fault(Exception):
    """The text is no YAML of ours; `line` counts from 1."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line
        self.message = message


@dataclass(slots=True)
class Document:
    """`value` is what the text says; `lines` has the line of each value, `key_lines` of each mapping's key, by path."""

    value: Any = None
    lines: dict[Path, int] = field(default_factory=dict)
    key_lines: dict[Path, int] = field(default_factory=dict)
    _open: set[int] = field(default_factory=set)

    @classmethod
    def read(cls, text: str) -> Self:
        """Raises Fault for the first thing that is no YAML; a key that stands twice in one mapping is such a thing."""
        if len(text) > MAX_BYTES:
            raise Fault(1, f"larger than {MAX_BYTES >> 20} MiB")
        document = cls()
        try:
            node = YAML(typ="safe", pure=True).compose(text)
            document.value = None if node is None else document._build(node, ())
        except MarkedYAMLError as exc:
            mark = exc.problem_mark or exc.context_mark
            raise Fault(mark.line + 1 if mark else 1, (exc.problem or exc.context or "no YAML").strip()) from exc
        except YAMLError as exc:
            raise Fault(1, str(exc).splitlines()[0]) from exc
        except RecursionError as exc:
            raise Fault(1, "nested too deeply") from exc
        except (ValueError, IndexError, AttributeError, TypeError, AssertionError, KeyError) as exc:
            # ruamel's scanner lets such out for broken escapes, directives and the like
            raise Fault(1, f"no YAML: {exc}") from exc
        return document

    def _build(self, node: Node, path: Path) -> Any:
        line = node.start_mark.line + 1
        self.lines[path] = line
        if len(self.lines) > MAX_VALUES:
            raise Fault(line, f"more than {MAX_VALUES} values")
        if isinstance(node, ScalarNode):
            return scalar(node.value, plain=not node.style) if _is_implicit(node) else _tagged(node, line)
        if id(node) in self._open:
            raise Fault(line, "an alias that contains itself")
        self._open.add(id(node))
        value = self._sequence(node, path) if isinstance(node, SequenceNode) else self._mapping(node, path)
        self._open.discard(id(node))
        return value

    def _sequence(self, node: SequenceNode, path: Path) -> list[Any]:
        if node.tag != f"{_TAG}seq":
            raise Fault(node.start_mark.line + 1, f"unknown tag {node.tag}")
        return [self._build(item, (*path, index)) for index, item in enumerate(node.value)]

    def _mapping(self, node: Node, path: Path) -> dict[str, Any]:
        if not isinstance(node, MappingNode) or node.tag != f"{_TAG}map":
            raise Fault(node.start_mark.line + 1, f"unknown tag {node.tag}")
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, ScalarNode):
                raise Fault(line, "a key is no word")
            key = key_node.value
            if key in found:
                raise Fault(line, f"key {key!r} stands twice (first in line {self.key_lines[*path, key]})")
            self.key_lines[*path, key] = line
            found[key] = self._build(value_node, (*path, key))
        return found


def scalar(text: str, plain: bool = True) -> Any:
    """A scalar by the core schema; a quoted one is its text."""
    if not plain:
        return text
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    if _INT.fullmatch(text) and len(text) < _MAX_DIGITS:
        number = Int(int(text, 0)) if text[:2] in ("0x", "0o") else Int(int(text))
        number.raw = text
        return number
    if _FLOAT.fullmatch(text):
        real = Float(text)
        real.raw = text
        return real
    return text


def as_text(value: object) -> object:
    """A number or boolean as it was written; all else as it is."""
    if isinstance(value, Int | Float):
        return value.raw
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


def _is_implicit(node: ScalarNode) -> bool:
    """No tag was written, as far as can be told: ruamel has put in the one that it resolved."""
    tag = str(node.tag)
    known = {f"{_TAG}{kind}" for kind in ("null", "bool", "int", "float", "timestamp", "merge", "value")}
    if node.style:
        return tag == f"{_TAG}str"
    return tag in known or (tag == f"{_TAG}str" and isinstance(scalar(node.value), str))


def _tagged(node: ScalarNode, line: int) -> Any:
    tag = str(node.tag)
    if tag == f"{_TAG}str":
        return node.value
    if tag in (f"{_TAG}int", f"{_TAG}float", f"{_TAG}bool", f"{_TAG}null"):
        return scalar(node.value)
    raise Fault(line, f"unknown tag {tag}")

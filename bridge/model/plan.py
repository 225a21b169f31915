"""What a session changes in the world, as values: each step can be written down, carried out and undone.

Theory of operation: the plan is saved before its first step (engine/up.py, `Journal`), so that whoever comes later, after
`kill -9` or a reboot, undoes it from the file alone. So a step names what it makes completely: the undo needs nothing else, and
takes absence for an answer. Steps hold no secret: the app's environment and keys never pass through here.

    Folder       a folder on this machine                      undo: gone, with what it holds
    Agent        whatever carries the session beside its target  undo: the place removes what bears the session's label
    Volume       a named volume of the developer's engine      undo: removed
    Container    a container of the developer's engine         undo: removed by force
    Start        that container runs                           undo: nothing, its container's undo stops it

Limits: the order of undo is the reverse of the order here; steps that are carried out side by side are independent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from bridge.errors import SpecError

VERSION = 1
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Folder:
    path: str
    mode: int = 0o700

    def __str__(self) -> str:
        return f"make folder {self.path}"


@dataclass(frozen=True, slots=True)
class Agent:
    target: str

    def __str__(self) -> str:
        return f"put an agent beside {self.target}"


@dataclass(frozen=True, slots=True)
class Volume:
    name: str

    def __str__(self) -> str:
        return f"make volume {self.name}"


@dataclass(frozen=True, slots=True)
class Container:
    """`body` is the engine API's JSON; `networks` are joined before it starts, beside the body's own one."""

    role: str
    name: str
    body: Json = field(default_factory=dict)
    networks: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    platform: str | None = None

    def __str__(self) -> str:
        return f"create container {self.name} ({self.role}) from {self.body.get('Image', '?')}"


@dataclass(frozen=True, slots=True)
class Start:
    name: str

    def __str__(self) -> str:
        return f"start container {self.name}"


Op = Folder | Agent | Volume | Container | Start
_KINDS: dict[str, type[Op]] = {"folder": Folder, "agent": Agent, "volume": Volume, "container": Container, "start": Start}
_NAMES = {kind: name for name, kind in _KINDS.items()}
_TYPES: dict[str, Any] = {"mode": int, "body": dict, "networks": tuple, "aliases": tuple, "platform": str | None}  # all else is text


@dataclass(frozen=True, slots=True)
class Plan:
    """One session's changes. `engine` and `place` are what finds both engines again; `key` tells one wish from another."""

    session: str
    target: str
    app_name: str
    key: str
    engine: Json
    place: Json
    steps: tuple[Op, ...] = ()

    def to_json(self) -> Json:
        body = {name: getattr(self, name) for name in ("session", "target", "app_name", "key", "engine", "place")}
        return {"version": VERSION, **body, "steps": [{"do": _NAMES[type(op)], **asdict(op)} for op in self.steps]}

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Raises SpecError for what no mbridge wrote, or a later one did."""
        if not isinstance(value, dict) or not isinstance(value.get("steps"), list):
            raise SpecError("the session's plan is damaged: it has no list of steps")
        if value.get("version") != VERSION:
            raise SpecError(f"the session's plan has version {value.get('version')!r}; this mbridge reads {VERSION}")
        try:
            return cls(
                session=str(value["session"]),
                target=str(value["target"]),
                app_name=str(value["app_name"]),
                key=str(value["key"]),
                engine=dict(value["engine"]),
                place=dict(value["place"]),
                steps=tuple(_op(step) for step in value["steps"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise SpecError(f"the session's plan is damaged: {exc}") from exc

    def lines(self) -> list[str]:
        """For `--dry-run`: one line a step."""
        return [str(op) for op in self.steps]


def _op(step: Mapping[str, Any]) -> Op:
    """Raises KeyError, TypeError for what is no step of ours: a wrong word must not reach the world as a path or a name."""
    words: Json = {name: tuple(word) if isinstance(word, list) else word for name, word in step.items() if name != "do"}
    op = _KINDS[step["do"]](**words)
    if wrong := [name for name, word in asdict(op).items() if not isinstance(word, _TYPES.get(name, str))]:
        raise TypeError(f"{wrong[0]} of a {step['do']} step is {words[wrong[0]]!r}")
    return op


def dumps(plan: Plan) -> str:
    return json.dumps(plan.to_json(), indent=1)


def loads(text: str) -> Plan:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise SpecError("the session's plan is damaged: it is not JSON") from exc
    return Plan.from_json(value)


def salvaged(text: str, field: str) -> Json | None:
    """What a damaged plan still says as its `engine` or `place`: both stand before the steps, where it mostly breaks off."""
    before, _, rest = text.partition(f'"{field}": ')
    try:
        value, _ = json.JSONDecoder().raw_decode(rest) if before else (None, 0)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and value else None


def containers(steps: Sequence[Op]) -> dict[str, Container]:
    """By role."""
    return {op.role: op for op in steps if isinstance(op, Container)}

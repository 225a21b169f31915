"""The settings of a session: a flag beats MBRIDGE_* beats mbridge.yaml beats the default, and each remembers its origin.

Theory of operation: file, environment and flags are laid over one another as plain mappings, and every path ("link.via")
keeps the layer that set it last. The model (config_schema.py) then checks the result once; its faults are told with the
origin of the value at their path, all of them together.

    mbridge.yaml:7: link.via: 'exce' is none of auto, direct, port-forward, exec; did you mean 'exec'

Mappings of two layers are merged key by key; a list is replaced as a whole. With `apps:`, each app is the keys beside `apps`,
the app's own over them, then environment and flags, which therefore hold for every app.

Environment: MBRIDGE_ and the path in capitals (MBRIDGE_LINK_VIA, MBRIDGE_AGENT_TTL). Lists are written with commas or as
YAML ("[a, b]"). Variables that name no key are not ours to judge: they are left alone, as are empty ones.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from bridge.errors import LocalProtocolError, SpecError
from bridge.model import yaml_lines
from bridge.model.config_schema import Config, File, not_built
from bridge.model.yaml_lines import Document, Fault

__all__ = ["FLAGS", "Config", "Loaded", "apps", "load"]

KeyPath = tuple[str | int, ...]

# Parameters of the command line -> (path, the flag as the user writes it).
FLAGS: dict[str, tuple[str, str]] = {
    "target": ("target", "TARGET"),
    "namespace": ("namespace", "--namespace"),
    "container": ("container", "--container"),
    "context": ("context", "--context"),
    "kubeconfig": ("kubeconfig", "--kubeconfig"),
    "docker_context": ("docker_context", "--docker-context"),
    "yes_host_network": ("yes_host_network", "--yes-host-network"),
    "via": ("link.via", "--via"),
    "agent": ("agent.kind", "--agent"),
    "agent_image": ("agent.image", "--agent-image"),
    "agent_ttl": ("agent.ttl", "--agent-ttl"),
    "env_include": ("env.include", "--env-include"),
    "env_exclude": ("env.exclude", "--env-exclude"),
    "env_set": ("env.set", "--env-set"),
    "files": ("files.mode", "--files"),
}
_PREFIX = "MBRIDGE_"
_APP_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
_QUOTED = re.compile(r"'([^']*)'")


@dataclass(frozen=True, slots=True)
class Loaded:
    """`value` is what holds for the keys beside `apps`; `origin["link.via"]` (and "apps.web.link.via") says where from."""

    value: Config
    origin: dict[str, str]
    apps: dict[str, Config] = field(default_factory=dict)


def apps(loaded: Loaded) -> dict[str, Config]:
    """Each app of `apps:` with its whole settings; without `apps:` the one that the file describes, as "app"."""
    return dict(loaded.apps) or {"app": loaded.value}


def load(path: Path | None, flags: Mapping[str, Any], environ: Mapping[str, str]) -> Loaded:
    """The settings of the file at `path` (None: no file) under `environ` and `flags`.

    A flag is named by its parameter (FLAGS) or by its path ("app.image"); None and empty ones are not given. Raises SpecError
    with every fault, one a line.
    """
    label, document = _read(path)
    faults = _Faults()
    raw = document.value if document.value is not None else {}
    if not isinstance(raw, dict):
        raise SpecError(f"{label}:{document.lines[()]}: a mapping of settings is expected", hint="mbridge config schema shows its keys")
    base = _Layer.of_file(raw, document, label, ())
    over = [*_environment(environ), *_flags(flags)]
    raw_apps = base.value.pop("apps", None)
    value, origin = _finish(base, over, faults, ())
    found: dict[str, Config] = {}
    if raw_apps is not None:
        layers = _app_layers(raw_apps, document, label, base, faults)
        for name, layer in layers.items():
            found[name], app_origin = _finish(layer, over, faults, ("apps", name))
            origin |= {f"apps.{name}.{key}": where for key, where in app_origin.items()}
    for prefix, config in {f"apps.{name}.": config for name, config in found.items()}.items() or [("", value)]:
        for key_path, why in not_built(config):
            key = ".".join(key_path)
            faults.add(origin.get(prefix + key, label), f"{prefix}{key}: {why}", key)
    faults.raise_any()
    return Loaded(value, origin, found)


def _read(path: Path | None) -> tuple[str, Document]:
    if path is None:
        return "", Document({})
    cwd = Path.cwd()
    label = str(path.relative_to(cwd)) if path.is_relative_to(cwd) else str(path)
    try:
        return label, Document.read(path.read_text("utf-8"))
    except FileNotFoundError as exc:
        raise SpecError(f"{label} does not exist", hint="mbridge init writes one") from exc
    except (OSError, UnicodeDecodeError) as exc:
        why = "it is not UTF-8" if isinstance(exc, UnicodeDecodeError) else (exc.strerror or str(exc)).lower()
        raise SpecError(f"{label} cannot be read: {why}") from exc
    except Fault as fault:
        raise SpecError(f"{label}:{fault.line}: {fault.message}") from fault


@dataclass(slots=True)
class _Layer:
    """Settings as a mapping, and where each path's key and value stand."""

    value: dict[str, Any]
    keys: dict[KeyPath, str] = field(default_factory=dict)
    values: dict[KeyPath, str] = field(default_factory=dict)

    @classmethod
    def of_file(cls, raw: dict[str, Any], document: Document, label: str, at: KeyPath) -> _Layer:
        def under(lines: Mapping[KeyPath, int]) -> dict[KeyPath, str]:
            return {path[len(at) :]: f"{label}:{line}" for path, line in lines.items() if path[: len(at)] == at}

        return cls(dict(raw), under(document.key_lines), under(document.lines))

    def laid_over(self, lower: _Layer) -> _Layer:
        """This layer over `lower`: mappings merged, all else replaced."""
        merged = _Layer(dict(lower.value), dict(lower.keys), dict(lower.values))
        for key, value in self.value.items():
            _lay(merged, self, merged.value, key, value, (key,))
        return merged

    def where(self, path: KeyPath, *, key: bool = False) -> str:
        """Where the value at `path` (or the nearest one around it) was set."""
        for end in range(len(path), -1, -1):
            for places in (self.keys, self.values) if key else (self.values, self.keys):
                if path[:end] in places:
                    return places[path[:end]]
        return "the settings"


def _lay(merged: _Layer, upper: _Layer, into: dict[str, Any], key: str, value: Any, path: KeyPath) -> None:
    lower = into.get(key)
    if isinstance(value, dict) and isinstance(lower, dict):
        into[key] = dict(lower)
        for name, item in value.items():
            _lay(merged, upper, into[key], name, item, (*path, name))
        return
    into[key] = value
    for merged_places, upper_places in ((merged.keys, upper.keys), (merged.values, upper.values)):
        for old in [place for place in merged_places if place[: len(path)] == path]:
            del merged_places[old]
        merged_places.update({place: where for place, where in upper_places.items() if place[: len(path)] == path})


def _app_layers(raw: Any, document: Document, label: str, base: _Layer, faults: _Faults) -> dict[str, _Layer]:
    layers: dict[str, _Layer] = {}
    if not isinstance(raw, dict):
        faults.add(f"{label}:{document.lines['apps',]}", "apps: a mapping of names is expected")
        return layers
    for name, settings in raw.items():
        where = f"{label}:{document.key_lines['apps', name]}"
        if not _APP_NAME.fullmatch(name):
            faults.add(where, f"apps: {name!r} is no name: lower-case letters, digits, '-', '_' and '.'")
        elif settings is not None and not isinstance(settings, dict):
            faults.add(where, f"apps.{name}: a mapping of settings is expected")
        else:
            layers[name] = _Layer.of_file(settings or {}, document, label, ("apps", name)).laid_over(base)
    return layers


def _environment(environ: Mapping[str, str]) -> Iterator[_Layer]:
    for path, annotation in _leaves(Config):
        name = _PREFIX + "_".join(path).upper()
        if text := environ.get(name):
            yield _single(path, _from_text(text, annotation), name)


def _flags(flags: Mapping[str, Any]) -> Iterator[_Layer]:
    leaves = dict(_leaves(Config))
    for name, value in flags.items():
        if value is None or value in ((), [], {}, ""):
            continue
        dotted, flag = FLAGS.get(name) or (name, "--" + name.rpartition(".")[2].replace("_", "-"))
        path = tuple(dotted.split("."))
        annotation = leaves.get(path)
        if annotation is None:
            raise LocalProtocolError(f"no setting is called {dotted}")
        if dotted == "env.set" and not isinstance(value, Mapping):
            value = _assignments(value, flag)
        elif isinstance(value, str):
            value = _from_text(value, annotation)
        yield _single(path, list(value) if isinstance(value, tuple) else value, f"flag {flag}")


def _assignments(values: Sequence[str], flag: str) -> dict[str, str]:
    for value in values:
        if "=" not in value[1:]:
            raise SpecError(f"flag {flag}: {value!r} sets nothing: write NAME=VALUE")
    return dict(value.split("=", 1) for value in values)


def _single(path: tuple[str, ...], value: Any, where: str) -> _Layer:
    nested: Any = value
    for key in reversed(path):
        nested = {key: nested}
    places: dict[KeyPath, str] = {path: where}
    if isinstance(value, dict):
        places |= {(*path, key): where for key in value}
    return _Layer(nested, dict(places), dict(places))


def _from_text(text: str, annotation: Any) -> Any:
    """A value of the environment or of a flag, as YAML would have it; a text that is meant for a text stays one."""
    kind = get_origin(annotation)
    if kind in (tuple, dict):
        if text.lstrip().startswith(("[", "{")):
            try:
                return Document.read(text).value
            except Fault:
                return text  # the model says what it expects
        if kind is dict:
            return text
        return [part if _is_text(get_args(annotation)[0]) else yaml_lines.scalar(part) for part in map(str.strip, text.split(",")) if part]
    return yaml_lines.scalar(text) if text not in ("~", "null") else text


def _is_text(annotation: Any) -> bool:
    """`str`, with or without bounds (Annotated)."""
    return annotation is str or (hasattr(annotation, "__metadata__") and _is_text(get_args(annotation)[0]))


def _leaves(model: type[BaseModel], at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every key that holds a value and no section, with its type."""
    for name, info in model.model_fields.items():
        if (section := _section(info.annotation)) is not None and not _optional(info.annotation):
            yield from _leaves(section, (*at, name))
        else:
            yield (*at, info.alias or name), _without_none(info.annotation)


def _section(annotation: Any) -> type[BaseModel] | None:
    """The model that stands behind a field's type: its own, or its items'."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section(part)) is not None), None) if get_args(annotation) else None


def _optional(annotation: Any) -> bool:
    return not isinstance(annotation, type) or get_origin(annotation) is not None


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, types.UnionType):
        return next(part for part in get_args(annotation) if part is not type(None))
    return annotation


def _finish(base: _Layer, over: Sequence[_Layer], faults: _Faults, at: tuple[str, ...]) -> tuple[Config, dict[str, str]]:
    """The checked settings and the origin of every one of them; what is faulty is told, and the default stands for it."""
    for layer in over:
        base = layer.laid_over(base)
    prefix = "".join(f"{part}." for part in at)
    try:
        config = Config.model_validate(base.value)
    except ValidationError as exc:
        for error in exc.errors():
            path = tuple(part for part in error["loc"] if part != "[key]")
            unknown = error["type"] == "extra_forbidden"
            message = _message(path, error, prefix, root=Config if at else File)
            faults.add(base.where(path, key=unknown), message, f"{error['type']} {_dotted(path)}")
        config = Config()
    return config, _origins(config, base)


def _origins(config: Config, layer: _Layer) -> dict[str, str]:
    found: dict[str, str] = {}
    for path, _ in _leaves(Config):
        value: Any = config
        for key in path:
            value = getattr(value, key)
        entries = [(*path, key) for key in value] if isinstance(value, dict) else []
        for leaf in entries or [path]:
            found[".".join(leaf)] = layer.where(leaf, key=True) if _was_set(leaf, layer) else "default"
    return found


def _was_set(path: KeyPath, layer: _Layer) -> bool:
    return path in layer.keys or path in layer.values


class _Faults:
    """All that is wrong, in the order of the file's lines; a default's fault is told once, not again for each app."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], str] = {}

    def add(self, where: str, text: str, about: str | None = None) -> None:
        """`about` tells faults of one place apart; by default their text does."""
        self._found.setdefault((where, about or text), text)

    def raise_any(self) -> None:
        if self._found:
            found = sorted(self._found.items(), key=lambda item: _order(item[0][0]))
            raise SpecError(
                "\n".join(f"{where}: {text}" for (where, _), text in found), hint="mbridge config schema shows all keys and their values"
            )


def _order(where: str) -> tuple[str, int]:
    name, _, line = where.rpartition(":")
    return (name, int(line)) if line.isdigit() else (where, 0)


def _message(path: KeyPath, error: ErrorDetails, prefix: str, root: type[BaseModel]) -> str:
    """What pydantic found, in our words: the key, what is wrong with it, the nearest name that would be right."""
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    where = prefix + _dotted(path)
    match kind:
        case "extra_forbidden":
            parent, key = _dotted(path[:-1]), str(path[-1])
            place = f" in {prefix}{parent}" if parent else (f" in {prefix[:-1]}" if prefix else "")
            return f"unknown key {key!r}{place}{_near(key, _keys(root, path[:-1]))}"
        case "missing":
            return f"{where}: this key is missing"
        case "literal_error":
            valid = _QUOTED.findall(str(context["expected"]))
            return f"{where}: {_shown(value)} is none of {', '.join(valid)}{_near(str(value), valid)}"
        case "value_error":
            return f"{where}: {context['error']}"
        case "greater_than_equal" | "less_than_equal":
            bound = f"at least {context['ge']}" if "ge" in context else f"at most {context['le']}"
            return f"{where}: {_shown(value)} is out of range: {bound}"
    expected = next((words for start, words in _EXPECTED if kind.startswith(start)), error["msg"].lower())
    return f"{where}: {expected} is expected, not {_shown(value)}"


_EXPECTED = (
    ("string", "a text"),
    ("int", "a whole number"),
    ("bool", "true or false"),
    ("tuple", "a list"),
    ("list", "a list"),
    ("dict", "a mapping"),
    ("model", "a mapping"),
    ("mapping", "a mapping"),
)


def _dotted(path: KeyPath) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def _shown(value: object) -> str:
    match value:
        case None:
            return "nothing"
        case dict():
            return "a mapping"
        case list() | tuple():
            return "a list"
        case str():
            return repr(value if len(value) <= 60 else value[:57] + "…")
        case _:
            return str(yaml_lines.as_text(value))


def _keys(model: type[BaseModel], path: KeyPath) -> list[str]:
    """The keys that are valid at `path`."""
    for part in path:
        if isinstance(part, int):
            continue
        info = next((info for name, info in model.model_fields.items() if part in (name, info.alias)), None)
        section = None if info is None else _section(info.annotation)
        if section is None:
            return []
        model = section
    return [info.alias or name for name, info in model.model_fields.items()]


def _near(word: str, valid: Sequence[str]) -> str:
    near = get_close_matches(word.lower(), valid, 1, cutoff=0.5)
    return f"; did you mean {near[0]!r}" if near else ""

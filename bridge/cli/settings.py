"""From flags, MBRIDGE_* and mbridge.yaml to what a session is asked for (model/wish.py).

`model/config.py` puts the three together and remembers where each value came from; here stand the names of the flags, the
file's place, and what the configuration's keys are in a wish.

`run` and `env` name their target and app on the command line: from the file they take what joins the two (outgoing, env,
agent, link, the engine), never its app; and its container only where its target is the one that was named.

The model takes a tenth of a second to import, which is a tenth of a start. Where there is no file and no MBRIDGE_*, the flags
are a wish already, and the model is left alone.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.cli.looking import Where
from bridge.errors import SpecError
from bridge.model.environ import EnvWish
from bridge.model.target import parse_target
from bridge.model.wish import AppWish, HelperWish, SessionWish

if TYPE_CHECKING:
    from bridge.model.config import Config, Loaded

FILE = "mbridge.yaml"
_VIAS = ("auto", "direct", "port-forward", "exec")
_AGENT_KINDS = ("auto", "ephemeral", "pod")


@dataclass(frozen=True, slots=True)
class Settings:
    """What was loaded, and from which file, if from any: paths in it are meant from its folder."""

    path: Path | None
    loaded: Loaded


@dataclass(frozen=True, slots=True)
class Value:
    key: str
    value: Any
    origin: str


def config_path(environ: Mapping[str, str], named: str | None) -> Path | None:
    """--config, else MBRIDGE_CONFIG, else ./mbridge.yaml where there is one."""
    for name, said_by in ((named, "--config"), (environ.get("MBRIDGE_CONFIG"), "MBRIDGE_CONFIG")):
        if name:
            if not Path(name).is_file():
                raise SpecError(f"{said_by}: there is no file {name}", hint="mbridge init TARGET --output FILE writes one")
            return Path(name)
    return Path(FILE) if Path(FILE).is_file() else None


def load(environ: Mapping[str, str], named: str | None, options: Mapping[str, Any]) -> Settings:
    """The configuration as these options leave it. Raises SpecError with all faults at once."""
    from bridge.model import config

    path = config_path(environ, named)
    flags = {name: value for name, value in options.items() if name in config.FLAGS}
    return Settings(path, config.load(path.absolute() if path else None, flags, environ))


def with_origins(settings: Settings) -> list[Value]:
    """Every value with its key and origin, those of apps too; an app's values that are the file's common ones stand once."""
    found = settings.loaded
    roots: dict[str, Config] = {"": found.value} | {f"apps.{name}.": one for name, one in found.apps.items()}
    values = []
    for key, origin in found.origin.items():
        prefix = max((one for one in roots if key.startswith(one)), key=len)
        if prefix and found.origin.get(key.removeprefix(prefix)) == origin:
            continue
        values.append(Value(key, _at(roots[prefix], key.removeprefix(prefix)), origin))
    return values


def _at(settings: Config, key: str) -> Any:
    value: Any = settings.model_dump(mode="json", by_alias=True)
    while isinstance(value, dict) and key:
        if key in value:  # a name of `env.set` may have dots in it
            return value[key]
        head, _, key = key.partition(".")
        value = value.get(head)
    return value


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def where(environ: Mapping[str, str], options: Mapping[str, Any]) -> Where:
    """`ls`, and `doctor` of a namespace: where to look for targets."""
    found = load(environ, None, {name: value for name, value in options.items() if name != "container"}).loaded.value
    return Where(found.docker_context, found.namespace, found.context, found.kubeconfig)


def run_wish(environ: Mapping[str, str], named: str | None, target: str, image: str, options: Mapping[str, Any]) -> SessionWish:
    """`run`: the app from the command line alone."""
    words = {one.name: options[one.name] for one in dataclasses.fields(AppWish) if one.name in options}
    app = AppWish(image=image, **words)
    return _of_flags(environ, named, target, options, app) or _session(_for_target(environ, named, target, options), app)


def target_wish(environ: Mapping[str, str], named: str | None, target: str, options: Mapping[str, Any]) -> SessionWish:
    """`env`, `forward`, `doctor`: a target without an app."""
    app = AppWish(image="")
    return _of_flags(environ, named, target, options, app) or _session(_for_target(environ, named, target, options), app)


def _of_flags(environ: Mapping[str, str], named: str | None, target: str, options: Mapping[str, Any], app: AppWish) -> SessionWish | None:
    """The wish where flags alone decide and all are in order; None where the model has to be asked, or has to say what is wrong."""
    via, kind = options.get("via") or "auto", options.get("agent") or "auto"
    pairs = [text.partition("=") for text in options.get("env_set", ())]
    if config_path(environ, named) is not None or any(name.startswith("MBRIDGE_") for name in environ):
        return None
    if via not in _VIAS or kind not in _AGENT_KINDS or not all(name and equals for name, equals, _ in pairs):
        return None
    names = ("agent_image", "namespace", "container", "context", "kubeconfig", "docker_context")
    texts: dict[str, Any] = {name: options.get(name) or None for name in names}
    return SessionWish(
        target=parse_target(target),
        app=app,
        env=EnvWish(options.get("env_include", ()), options.get("env_exclude", ()), {name: value for name, _, value in pairs}),
        via=via,
        agent_kind=kind,
        yes_host_network=bool(options.get("yes_host_network")),
        **texts,
    )


def _for_target(environ: Mapping[str, str], named: str | None, target: str, options: Mapping[str, Any]) -> Config:
    parse_target(target)
    found = load(environ, named, {**options, "target": target}).loaded
    written = load(environ, named, options).loaded.value.target
    if written is not None and parse_target(written) != parse_target(target) and not found.origin["container"].startswith("flag"):
        return found.value.model_copy(update={"container": None})
    return found.value


def wishes(settings: Settings, names: Sequence[str]) -> list[SessionWish]:
    """`up`: one session for each app, or for those that are named. Raises SpecError where something is missing."""
    from bridge.model import config

    apps = config.apps(settings.loaded)
    unknown = [name for name in names if name not in apps]
    if unknown:
        known = ", ".join(apps)
        raise SpecError(f"{settings.path or FILE} has no app called {' or '.join(unknown)}", hint=f"it has: {known}; a target is KIND/NAME")
    return [_up_session(name, one, settings.path) for name, one in apps.items() if not names or name in names]


def _up_session(name: str, one: Config, path: Path | None) -> SessionWish:
    at = "" if name == "app" else f"apps.{name}."
    missing = [f"{at}{key}" for key, value in (("target", one.target), ("app.image", one.app.image)) if value is None]
    if missing:
        said = f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set"
        where = f"{path}: {said}" if path else f"there is no {FILE} here, and {said}"
        raise SpecError(where, hint=None if path else "mbridge init TARGET writes a first one")
    words = {field.name: getattr(one.app, field.name) for field in dataclasses.fields(AppWish)}
    base = path.resolve().parent if path else Path.cwd()
    words["volumes"] = tuple(_based(text, base) for text in one.app.volumes)
    words["env_files"] = tuple(str(base / text) for text in one.app.env_files)
    return _session(one, AppWish(**words), name)


def _based(volume: str, base: Path) -> str:
    """A folder that begins with a dot is meant from the file that names it."""
    source, colon, rest = volume.partition(":")
    return f"{(base / source).resolve()}{colon}{rest}" if colon and source.startswith(".") else volume


def _session(one: Config, app: AppWish, name: str = "app") -> SessionWish:
    assert one.target is not None  # the callers have looked
    return SessionWish(
        target=parse_target(one.target),
        app=app,
        app_name=name,
        rules=one.rules,
        loopback=one.outgoing.loopback,
        env=EnvWish(one.env.include, one.env.exclude, one.env.set),
        via=one.link.via,
        agent_kind=one.agent.kind,
        agent_image=one.agent.image,
        agent_ttl_s=one.agent.ttl,
        agent_pull_policy=one.agent.pull_policy,
        helper=HelperWish(
            one.agent.service_account,
            one.agent.pull_secrets,
            one.agent.tolerations,
            one.agent.resources,
            one.agent.annotations,
            one.agent.deadline,
        ),
        namespace=one.namespace,
        container=one.container,
        context=one.context,
        kubeconfig=one.kubeconfig,
        docker_context=one.docker_context,
        yes_host_network=one.yes_host_network,
    )

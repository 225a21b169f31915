"""Which API server, as whom, in which namespace: kubeconfig files read as kubectl reads them.

Theory of operation: `--kubeconfig` names one file; else KUBECONFIG lists several (missing ones are skipped, the first to name
a thing wins, a relative path is relative to its own file); else ~/.kube/config; else, inside a pod, its service account.
The result is an `Access`: plain values, nothing is dialled and no plugin runs yet.

Limits: `auth-provider` users (removed from kubectl, save oidc) are handed to the official client, see credentials.py.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bridge.errors import ClusterError

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True, slots=True)
class ExecPlugin:
    """A program that prints credentials (`users[].user.exec`)."""

    command: str
    args: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    api_version: str
    install_hint: str | None = None
    cluster_info: bool = False
    interactive: str = "IfAvailable"


@dataclass(frozen=True, slots=True)
class Access:
    """One context, resolved. Secrets are kept out of its repr."""

    server: str
    context: str
    namespace: str
    user: str
    source: str
    ca: bytes | None = None
    insecure: bool = False
    tls_server_name: str | None = None
    proxy_url: str | None = None
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    token_file: Path | None = None
    basic: tuple[str, str] | None = field(default=None, repr=False)
    plugin: ExecPlugin | None = None
    auth_provider: Mapping[str, Any] | None = field(default=None, repr=False)
    impersonate: tuple[tuple[str, str], ...] = ()


def load(kubeconfig: str | None, context: str | None, environ: Mapping[str, str], home: Path) -> Access:
    """The access that these settings mean. Raises ClusterError in kubectl's terms, with the file or context at fault."""
    files = [Path(kubeconfig).expanduser()] if kubeconfig else _files(environ, home)
    found = [path for path in files if path.is_file()]
    if kubeconfig and not found:
        raise ClusterError(f"kubeconfig {kubeconfig}: no such file", hint="--kubeconfig FILE")
    if not found:
        if context is None and (inside := _in_cluster(environ)):
            return inside
        raise ClusterError(f"no kubeconfig: {', '.join(map(str, files))} does not exist", hint="--kubeconfig FILE, or set KUBECONFIG")
    merged = merge([(path, _read(path)) for path in found])
    return resolve(merged, context, ", ".join(map(str, found)))


def _files(environ: Mapping[str, str], home: Path) -> list[Path]:
    listed = [Path(part) for part in environ.get("KUBECONFIG", "").split(os.pathsep) if part]
    return listed or [home / ".kube" / "config"]


def _read(path: Path) -> dict[str, Any]:
    from ruamel.yaml import YAML  # here: a session inside a pod needs no YAML
    from ruamel.yaml.error import YAMLError

    try:
        value = YAML(typ="safe").load(path.read_text())
    except OSError as error:
        raise ClusterError(f"kubeconfig {path}: {(error.strerror or str(error)).lower()}") from error
    except (YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ClusterError(f"kubeconfig {where}: no valid YAML: {getattr(error, 'problem', None) or error}") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ClusterError(f"kubeconfig {path}: holds no mapping")
    return value


def merge(files: list[tuple[Path, dict[str, Any]]]) -> dict[str, Any]:
    """Several files as one: the first to name a cluster, user or context wins, and so the first current-context."""
    merged: dict[str, Any] = {"clusters": {}, "users": {}, "contexts": {}, "current-context": ""}
    for path, value in files:
        merged["current-context"] = merged["current-context"] or value.get("current-context") or ""
        for kind in ("clusters", "users", "contexts"):
            for entry in value.get(kind) or ():
                if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
                    raise ClusterError(f"kubeconfig {path}: an entry of {kind} has no name")
                body = dict(entry.get(kind.removesuffix("s")) or {}) | {"~folder": path.resolve().parent}
                merged[kind].setdefault(entry["name"], body)
    return merged


def resolve(merged: dict[str, Any], context: str | None, source: str) -> Access:
    name = context or merged["current-context"]
    contexts = merged["contexts"]
    if not name:
        raise ClusterError(f"no current-context in {source}", hint=f"--context {' | '.join(sorted(contexts)) or 'NAME'}")
    if name not in contexts:
        near = difflib.get_close_matches(name, contexts, 1)
        known = ", ".join(sorted(contexts)) or "none"
        hint = f"did you mean '{near[0]}'" if near else f"contexts there: {known}"
        raise ClusterError(f"context '{name}' does not exist in {source}", hint=hint)
    chosen = contexts[name]
    cluster = _named(merged, "clusters", chosen.get("cluster"), name, source)
    user_name = chosen.get("user") or ""
    user = _named(merged, "users", user_name, name, source) if user_name else {"~folder": Path()}
    server = cluster.get("server")
    if not isinstance(server, str) or not server.startswith(("http://", "https://")):
        raise ClusterError(f"cluster '{chosen.get('cluster')}' in {source} has no server")
    token_file = user.get("tokenFile")
    basic = (str(user["username"]), str(user.get("password", ""))) if user.get("username") else None
    return Access(
        server=server.rstrip("/"),
        context=name,
        namespace=chosen.get("namespace") or "default",
        user=user_name,
        source=source,
        ca=_data(cluster, "certificate-authority"),
        insecure=bool(cluster.get("insecure-skip-tls-verify")),
        tls_server_name=cluster.get("tls-server-name"),
        proxy_url=cluster.get("proxy-url"),
        certificate=_data(user, "client-certificate"),
        key=_data(user, "client-key"),
        token=str(user["token"]) if user.get("token") else None,
        token_file=(user["~folder"] / token_file) if token_file else None,
        basic=basic,
        plugin=_plugin(user, user_name, source),
        auth_provider=provider if isinstance(provider := user.get("auth-provider"), dict) else None,
        impersonate=_impersonation(user),
    )


def _named(merged: dict[str, Any], kind: str, wanted: object, context: str, source: str) -> dict[str, Any]:
    entry = merged[kind].get(wanted)
    if entry is None:
        raise ClusterError(f"context '{context}' names the {kind.removesuffix('s')} '{wanted}', which does not exist in {source}")
    return entry  # type: ignore[no-any-return]  # a mapping of merge()'s making


def _data(entry: dict[str, Any], key: str) -> bytes | None:
    """`KEY-data` (base64) beats `KEY` (a file), as in kubectl."""
    if inline := entry.get(f"{key}-data"):
        try:
            return base64.b64decode(inline, validate=False)
        except (binascii.Error, TypeError, ValueError) as error:
            raise ClusterError(f"kubeconfig: {key}-data is no base64") from error
    if not (named := entry.get(key)):
        return None
    path = entry["~folder"] / str(named)
    try:
        return path.read_bytes()  # type: ignore[no-any-return]  # ~folder is a Path
    except OSError as error:
        raise ClusterError(f"kubeconfig: unable to read {key} {path}: {(error.strerror or str(error)).lower()}") from error


def _plugin(user: dict[str, Any], name: str, source: str) -> ExecPlugin | None:
    spec = user.get("exec")
    if not spec:
        return None
    command = spec.get("command")
    if not isinstance(command, str):
        raise ClusterError(f"user '{name}' in {source}: exec names no command")
    if os.sep in command:  # a path is relative to its file; a bare name is looked up in PATH
        command = str(user["~folder"] / command)
    return ExecPlugin(
        command=command,
        args=tuple(str(arg) for arg in spec.get("args") or ()),
        env=tuple((str(item["name"]), str(item["value"])) for item in spec.get("env") or ()),
        api_version=spec.get("apiVersion") or "client.authentication.k8s.io/v1",
        install_hint=spec.get("installHint"),
        cluster_info=bool(spec.get("provideClusterInfo")),
        interactive=spec.get("interactiveMode") or "IfAvailable",
    )


def _impersonation(user: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    headers = [("Impersonate-User", user["as"])] if user.get("as") else []
    headers += [("Impersonate-Uid", user["as-uid"])] if user.get("as-uid") else []
    headers += [("Impersonate-Group", str(group)) for group in user.get("as-groups") or ()]
    for key, values in (user.get("as-user-extra") or {}).items():
        headers += [(f"Impersonate-Extra-{key}", str(value)) for value in values]
    return tuple(headers)


def _in_cluster(environ: Mapping[str, str]) -> Access | None:
    host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host or not (SERVICE_ACCOUNT / "token").exists():
        return None
    namespace = SERVICE_ACCOUNT / "namespace"
    return Access(
        server=f"https://{f'[{host}]' if ':' in host else host}:{port}",
        context="in-cluster",
        namespace=namespace.read_text().strip() if namespace.exists() else "default",
        user="the pod's service account",
        source=str(SERVICE_ACCOUNT),
        ca=(SERVICE_ACCOUNT / "ca.crt").read_bytes(),
        token_file=SERVICE_ACCOUNT / "token",
    )

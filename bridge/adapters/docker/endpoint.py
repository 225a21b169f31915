"""Which engine: found as the docker command finds it.

First of: `--docker-context`, DOCKER_HOST, DOCKER_CONTEXT, `currentContext` of config.json, the default socket. A context is a
folder of JSON under $DOCKER_CONFIG/contexts/meta, named by the SHA-256 of its name; its TLS files lie beside it.

Limits: unix://, tcp:// (with or without TLS) and ssh:// (by_ssh.py). npipe:// is refused by name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from bridge.adapters.docker import by_ssh
from bridge.errors import EngineUnavailable, SpecError

DEFAULT_URL = "unix:///var/run/docker.sock"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where an engine listens. `source` says who named it, for messages ("DOCKER_HOST", "context colima")."""

    url: str
    source: str = "the default socket"
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    verify: bool = True
    tls: bool = False

    def same_engine(self, other: Endpoint) -> bool:
        """Whether both lead to one engine, whoever named them. One that is reached by two addresses is taken for two."""
        return replace(self, source="") == replace(other, source="")

    @property
    def is_unix(self) -> bool:
        return self.url.startswith("unix://")

    @property
    def is_ssh(self) -> bool:
        return self.url.startswith("ssh://")

    @property
    def path(self) -> str:
        return self.url.removeprefix("unix://")

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return parts.hostname or "localhost", parts.port or (2376 if self.tls else 2375)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """From a session's plan. Raises SpecError for what to_json never wrote."""
        try:
            made = cls(**value)
        except TypeError as exc:
            raise SpecError(f"the engine's endpoint cannot be read: {exc}") from exc
        if not isinstance(made.url, str):
            raise SpecError(f"the engine's endpoint cannot be read: its url is {made.url!r}")
        return made


def find_endpoint(context: str | None, environ: Mapping[str, str]) -> Endpoint:
    """Raises SpecError for a context that does not exist or an address that is none, EngineUnavailable for a scheme not spoken here."""
    folder = Path(environ.get("DOCKER_CONFIG") or Path(environ.get("HOME") or Path.home()) / ".docker")
    if context:
        return _checked(_of_context(context, folder, "--docker-context"))
    if host := environ.get("DOCKER_HOST"):
        return _checked(_of_host(host, environ, folder))
    if name := environ.get("DOCKER_CONTEXT"):
        return _checked(_of_context(name, folder, "DOCKER_CONTEXT"))
    if name := _current_context(folder):
        return _checked(_of_context(name, folder, str(folder / "config.json")))
    return Endpoint(DEFAULT_URL)


def contexts(environ: Mapping[str, str]) -> list[str]:
    """The names of all contexts, for completion and nearest names."""
    folder = Path(environ.get("DOCKER_CONFIG") or Path(environ.get("HOME") or Path.home()) / ".docker")
    names = [meta["Name"] for path in sorted(folder.glob("contexts/meta/*/meta.json")) if "Name" in (meta := _json(path))]
    return ["default", *names]


def _of_host(host: str, environ: Mapping[str, str], folder: Path) -> Endpoint:
    if not environ.get("DOCKER_TLS_VERIFY") and not environ.get("DOCKER_TLS"):
        return Endpoint(_normal(host), "DOCKER_HOST")
    certs = Path(environ.get("DOCKER_CERT_PATH") or folder)
    return replace(_with_certs(certs, _normal(host), "DOCKER_HOST"), verify=bool(environ.get("DOCKER_TLS_VERIFY")), tls=True)


def _of_context(name: str, folder: Path, said_by: str) -> Endpoint:
    if name == "default":
        return Endpoint(DEFAULT_URL, "context default")
    digest = hashlib.sha256(name.encode()).hexdigest()
    path = folder / "contexts" / "meta" / digest / "meta.json"
    if not path.exists():
        raise SpecError(f"no docker context is called {name!r} ({said_by})", hint="docker context ls")
    endpoint = (_json(path).get("Endpoints") or {}).get("docker") or {}
    certs = folder / "contexts" / "tls" / digest / "docker"
    skip = bool(endpoint.get("SkipTLSVerify"))
    found = _with_certs(certs, _normal(endpoint.get("Host") or DEFAULT_URL), f"context {name}")
    return replace(found, verify=not skip, tls=skip or bool(found.ca or found.cert))


def _current_context(folder: Path) -> str | None:
    name = _json(folder / "config.json").get("currentContext")
    return name if isinstance(name, str) and name else None


def _normal(host: str) -> str:
    """`/path` and `:2375`, which DOCKER_HOST may be as well, in full."""
    if host.startswith("/"):
        return f"unix://{host}"
    if "://" not in host:
        return f"tcp://{host}" if not host.startswith(":") else f"tcp://localhost{host}"
    scheme, _, rest = host.partition("://")
    return f"tcp://{rest}" if scheme in ("http", "https") else host


def _checked(endpoint: Endpoint) -> Endpoint:
    if endpoint.is_ssh:
        by_ssh.check(endpoint.url, endpoint.source)
    elif endpoint.url.partition("://")[0] not in ("unix", "tcp"):
        raise EngineUnavailable(
            f"the engine at {endpoint.url} ({endpoint.source}) cannot be used: only unix://, tcp:// and ssh:// are spoken"
        )
    return endpoint


def _with_certs(folder: Path, url: str, source: str) -> Endpoint:
    ca, cert, key = (str(path) if (path := folder / name).exists() else None for name in ("ca.pem", "cert.pem", "key.pem"))
    return Endpoint(url, source, ca, cert, key)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}

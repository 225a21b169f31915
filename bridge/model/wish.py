"""What the user asks for, after flags, MBRIDGE_* and mbridge.yaml have been put together (model/config.py does that)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bridge.model.environ import EnvWish
from bridge.model.target import Target


@dataclass(frozen=True, slots=True)
class AppWish:
    """The app's container. Fields mean what they mean in `docker run`; texts are kept as the user wrote them."""

    image: str
    command: tuple[str, ...] = ()
    name: str | None = None
    ports: tuple[str, ...] = ()  # -p
    volumes: tuple[str, ...] = ()  # -v, with :ro :z :Z
    mounts: tuple[str, ...] = ()  # --mount
    tmpfs: tuple[str, ...] = ()
    env: tuple[str, ...] = ()  # -e NAME=value, or NAME to pass the caller's own
    env_files: tuple[str, ...] = ()
    workdir: str | None = None
    user: str | None = None
    entrypoint: str | None = None
    interactive: bool = False
    tty: bool = False
    networks: tuple[str, ...] = ()
    add_hosts: tuple[str, ...] = ()
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    security_opt: tuple[str, ...] = ()
    read_only: bool = False
    pull: str = "missing"
    platform: str | None = None
    memory: str | None = None
    cpus: str | None = None
    gpus: str | None = None
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HelperWish:
    """What a helper pod may be given; fields mean what they mean in a pod's spec (an ephemeral container may have none of them)."""

    service_account: str | None = None
    pull_secrets: tuple[str, ...] = ()
    tolerations: tuple[dict[str, Any], ...] = ()
    resources: dict[str, Any] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    deadline_s: int = 12 * 3600


@dataclass(frozen=True, slots=True)
class SessionWish:
    """One session: the target, the app, and how they are joined."""

    target: Target
    app: AppWish
    app_name: str = "app"  # its key in `apps:`, else "app"
    rules: tuple[dict[str, Any], ...] = ()
    loopback: tuple[int, ...] = ()
    env: EnvWish = field(default_factory=EnvWish)
    via: str = "auto"  # auto | direct | port-forward | exec
    agent_kind: str = "auto"  # auto | ephemeral | pod
    agent_image: str | None = None
    agent_ttl_s: int = 180
    agent_pull_policy: str = "IfNotPresent"
    helper: HelperWish = field(default_factory=HelperWish)
    namespace: str | None = None
    container: str | None = None
    context: str | None = None
    kubeconfig: str | None = None
    docker_context: str | None = None
    yes_host_network: bool = False

"""What `mbridge doctor` looks at, one after another; each look is an answer, never an exception."""

from __future__ import annotations

import asyncio
import json
import platform
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bridge
from bridge.cli.cmd_doctor import Check, kernel_checks
from bridge.engine.needs import Place
from bridge.errors import BridgeError
from bridge.model.environ import parse_environ

if TYPE_CHECKING:
    from bridge.adapters.docker.engine import Engine


def host_checks(state: Path) -> Iterator[Check]:
    yield Check("mbridge", True, f"{bridge.__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        trial = state / ".doctor"
        trial.write_bytes(b"")
        trial.unlink()
    except OSError as error:
        yield Check("state", False, f"{state} cannot be written: {error.strerror}", f"sudo chown -R $USER {state}, or set XDG_STATE_HOME")
        return
    key = state / "id_ed25519"
    if key.exists() and key.stat().st_mode & 0o077:
        yield Check("state", False, f"others may read {key}", f"chmod 600 {key}")
        return
    yield Check("state", True, str(state))


async def engine_checks(engine: Engine) -> AsyncIterator[Check]:
    """Ends after the first line where there is no engine."""
    endpoint = engine.endpoint
    try:
        await engine.connect()
        info: dict[str, Any] = await engine.wire.request("GET", "/info")
    except BridgeError as error:
        yield Check("engine", False, error.message, error.hint)
        return
    options = " ".join(info.get("SecurityOptions") or ())
    kind = "rootless, " if "name=rootless" in options else "user namespaces, " if "name=userns" in options else ""
    yield Check(
        "engine",
        True,
        f"{info.get('OperatingSystem', 'engine')}, {kind}version {engine.info.get('Version')} at {endpoint.url} ({endpoint.source})",
    )
    if not (endpoint.is_unix and sys.platform == "linux"):
        yield Check("carrier", None, "the agents' addresses cannot be dialled from here: the link is carried by exec, which is slower")


async def kernel(engine: Engine, image: str, present: bool) -> AsyncIterator[Check]:
    """Try the kernel's features in a throwaway container of the bridge's image."""
    if not present:
        yield Check("kernel", None, "not tried: the bridge's image is not built yet", "mbridge images build")
        return
    try:
        answer = await _probe(engine, image)
    except BridgeError as error:
        yield Check("kernel", False, f"the bridge's container cannot run: {error.message}", error.hint or _container_hint(error.message))
        return
    for check in kernel_checks(answer):
        yield check


def _container_hint(message: str) -> str | None:
    return "sudo modprobe tun; in a virtual machine or container, pass /dev/net/tun on" if "/dev/net/tun" in message else None


async def _probe(engine: Engine, image: str) -> dict[str, Any]:
    from bridge.adapters.docker import bodies
    from bridge.cli import sessions

    # The same rights and settings as a bridge has, in a network namespace of its own that nothing else is in.
    body = {
        "Image": image,
        "Cmd": ["probe"],
        "Labels": bodies.labels("", "probe", sessions.owner()),  # of no session: after kill -9 `down --all` finds it
        "HostConfig": {
            "NetworkMode": "none",
            "Sysctls": bodies.SYSCTLS,
            "CapDrop": ["ALL"],
            "CapAdd": ["NET_ADMIN", "NET_RAW"],
            "SecurityOpt": ["no-new-privileges"],
            "Devices": [{"PathOnHost": "/dev/net/tun", "PathInContainer": "/dev/net/tun", "CgroupPermissions": "rwm"}],
        },
    }
    try:
        return await _probed(engine, body)
    except BridgeError as error:
        if not bodies.lacks_ipv6(error.message):
            raise
        return await _probed(engine, bodies.without_ipv6(body))


async def _probed(engine: Engine, body: dict[str, Any]) -> dict[str, Any]:
    container = await engine.create(None, body)
    try:
        listening = asyncio.Event()
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            ended = group.create_task(engine.wait(container, listening), name="probe-wait")
            await listening.wait()
            await engine.start(container)
            code = await ended
        said = await engine.last_lines(container, 20)
    except TimeoutError:
        raise BridgeError("the probe did not end within 30 s") from None
    except BaseExceptionGroup as group_error:
        known = group_error.subgroup(BridgeError)
        if known is None:
            raise
        raise known.exceptions[0] from group_error
    finally:
        await engine.remove(container)
    try:
        answer = json.loads(said[-1])
    except (IndexError, ValueError):
        raise BridgeError(f"the probe ended with {code}: {' / '.join(said[-3:]) or 'no word'}") from None
    if not isinstance(answer, dict):
        raise BridgeError(f"the probe said {said[-1][:80]!r}")
    return answer


async def target_checks(place: Place) -> AsyncIterator[Check]:
    """Whether the target is there and its environment can be read; no agent is made."""
    try:
        found = await place.find()
    except BridgeError as error:
        yield Check("target", False, error.message, error.hint)
        return
    if found.host_network:
        yield Check("target", None, f"{found.where} shares its host's network", "--yes-host-network, if rules may reach that host")
    else:
        yield Check("target", True, f"{found.text} is {found.where}")
    try:
        environ = await place.environ()
    except BridgeError as error:
        yield Check("environment", None, f"the target's environment cannot be read: {error.message}", error.hint)
    else:
        count = len(parse_environ(environ.raw))
        said = environ.warning or f"{count} variables of the target's process can be read"
        yield Check("environment", None if environ.warning else True, said)

"""The JSON of the containers that mbridge makes, each with the least that it needs.

    pause    nothing: uid 65534, no capability; owns the netns and all that docker ties to its owner
    bridge   NET_ADMIN, NET_RAW and /dev/net/tun, in pause's netns
    app      what `docker run` gives, in pause's netns, behind the launcher
    agent    uid 65532, no capability, in the target's netns
    reader   SYS_PTRACE and DAC_READ_SEARCH in the target's PID namespace, for the moment that it reads one environ

All carry `mbridge.session`, `mbridge.role` and `mbridge.owner`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bridge.adapters.docker import options
from bridge.errors import SpecError
from bridge.model.kernel import SETTINGS
from bridge.model.wish import AppWish
from bridge.protocol.handing import SOCKET

Json = dict[str, Any]

VOLUME_IN_BRIDGE = "/mbridge/app"  # docker fills an empty named volume with what the image has there
VOLUME_IN_APP = "/mbridge"
ENVIRON_FILE = "environ"
SYSCTLS = {setting.name: setting.value for setting in SETTINGS}
_HAND_FOLDER = str(Path(SOCKET).parent)
_LOGS = {"Type": "json-file", "Config": {"max-size": "4m", "max-file": "1"}}


def labels(session: str, role: str, owner: str) -> dict[str, str]:
    return {"mbridge.session": session, "mbridge.role": role, "mbridge.owner": owner}


def volume_labels(session: str, owner: str) -> dict[str, str]:
    return {"mbridge.session": session, "mbridge.owner": owner}


def pause(image: str, wish: AppWish, hostname: str | None, marks: Mapping[str, str], aliases: Sequence[str]) -> Json:
    """Networks beyond the first are joined between creation and start: one endpoint a creation is all that API 1.41 takes."""
    exposed, bindings = options.published(wish.ports)
    network = wish.networks[0] if wish.networks else "default"
    if network in ("host", "none") or network.startswith("container:"):
        raise SpecError(f"--network {network}: the app gets a network namespace of its own", hint="name one of: docker network ls")
    body: Json = {
        "Image": image,
        "Entrypoint": ["sleep", "infinity"],
        "Cmd": [],
        "User": "65534:65534",
        "StopSignal": "SIGKILL",
        "Labels": dict(marks),
        "ExposedPorts": exposed,
        "HostConfig": {
            "NetworkMode": network,
            "PortBindings": bindings,
            "ExtraHosts": [":".join(options.host(text)) for text in wish.add_hosts],
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "ReadonlyRootfs": False,  # a read-only root makes /etc/hosts and resolv.conf read-only for all who share them
            "Sysctls": SYSCTLS,
            "LogConfig": _LOGS,
            "PidsLimit": 16,
        },
    }
    if hostname:
        body["Hostname"] = hostname
    if aliases and network not in ("default", "bridge"):
        body["NetworkingConfig"] = {"EndpointsConfig": {network: {"Aliases": list(aliases)}}}
    return body


def lacks_ipv6(message: str) -> bool:
    """Whether an engine refused a container because its kernel has no IPv6: runc named the file up to 1.3, the setting since."""
    return "/proc/sys/net/ipv6/" in message or "sysctl net.ipv6." in message


def without_ipv6(body: Json) -> Json:
    """For a kernel that has no IPv6, where a setting of it cannot be made (`ipv6.disable=1`)."""
    host = body["HostConfig"]
    kept = {name: value for name, value in host.get("Sysctls", {}).items() if not name.startswith("net.ipv6.")}
    return {**body, "HostConfig": {**host, "Sysctls": kept}}


def bridge(
    image: str,
    pause_name: str,
    volume: str,
    hand_volume: str | None,
    run_folder: Path | None,
    marks: Mapping[str, str],
    log: str | None = None,
) -> Json:
    """`run_folder`: where the door's socket is to appear on this machine; None where the engine has other files than we.

    `hand_volume`: shared with an agent on the same engine (docs/design/003-handing.md).
    `log`: "debug" for a line of each flow (docs/logging.md).
    """
    return {
        "Image": image,
        "Cmd": ["serve"],
        "Env": [f"MBRIDGE_LOG={log}"] if log else [],
        "Labels": dict(marks),
        "HostConfig": {
            "NetworkMode": f"container:{pause_name}",
            "Binds": [f"{volume}:{VOLUME_IN_BRIDGE}", *([f"{hand_volume}:{_HAND_FOLDER}:nocopy"] if hand_volume else [])],
            # As a mount: for a bind that does not exist where the engine runs it refuses, instead of making a folder there
            "Mounts": [{"Type": "bind", "Source": str(run_folder), "Target": "/run/mbridge"}] if run_folder else [],
            "Tmpfs": {} if run_folder else {"/run/mbridge": "mode=0700,size=1m"},
            "CapDrop": ["ALL"],
            "CapAdd": ["NET_ADMIN", "NET_RAW"],
            "SecurityOpt": ["no-new-privileges"],
            "Devices": [{"PathOnHost": "/dev/net/tun", "PathInContainer": "/dev/net/tun", "CgroupPermissions": "rwm"}],
            "LogConfig": _LOGS,
        },
    }


def app(wish: AppWish, image: Json | None, pause_name: str, volume: str, marks: Mapping[str, str], base: Path | None = None) -> Json:
    """`image`: what the engine says of the app's image, None where it is not there (a dry run).

    The app's environment reaches it through the launcher's file alone.
    """
    config = (image or {}).get("Config") or {}
    if wish.entrypoint is None:
        program, command = list(config.get("Entrypoint") or ()), list(wish.command or config.get("Cmd") or ())
    else:  # as docker run: an entrypoint of the user's own drops the image's command too, and "" is none at all
        program, command = [wish.entrypoint] if wish.entrypoint else [], list(wish.command)
    if image is not None and not program and not command:
        raise SpecError(f"image {wish.image} names no program", hint="add a command after the image")
    _, anonymous = options.volumes(wish.volumes, base)
    host = options.host_config(wish, base)
    host["NetworkMode"] = f"container:{pause_name}"
    # As a mount and not among Binds: the volume exists, and must never be filled from the app's image.
    host["Mounts"] = [
        *host["Mounts"],
        {"Type": "volume", "Source": volume, "Target": VOLUME_IN_APP, "ReadOnly": True, "VolumeOptions": {"NoCopy": True}},
    ]
    body: Json = {
        "Image": wish.image,
        "Entrypoint": [f"{VOLUME_IN_APP}/launch", f"{VOLUME_IN_APP}/{ENVIRON_FILE}", "--"],
        "Cmd": [*program, *command],
        "Labels": {**options.labels(wish.labels), **marks},
        "Volumes": anonymous,
        "AttachStdin": wish.interactive,
        "OpenStdin": wish.interactive,
        "StdinOnce": wish.interactive,
        "AttachStdout": True,
        "AttachStderr": True,
        "Tty": wish.tty,
        "HostConfig": host,
    }
    if wish.workdir:
        body["WorkingDir"] = wish.workdir
    if wish.user:
        body["User"] = wish.user
    return body


def agent(image: str, target: str, public_key: str, ttl_s: int, listen: str, marks: Mapping[str, str], hand: Json | None = None) -> Json:
    """`hand`: the mount that it shares with a bridge of its engine (`hand_mount`)."""
    return {
        "Image": image,
        "Cmd": ["--listen", listen, "--key", public_key, "--ttl", str(ttl_s)],
        "User": "65532:65532",
        "Labels": dict(marks),
        "HostConfig": {
            "NetworkMode": f"container:{target}",
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "ReadonlyRootfs": True,
            "Tmpfs": {"/run/mbridge": "mode=0700,uid=65532,gid=65532,size=1m"},
            "Mounts": [hand] if hand else [],
            "LogConfig": _LOGS,
            "PidsLimit": 256,
        },
    }


def hand_mount(volume: str, marks: Mapping[str, str]) -> Json:
    """The agent's. It may be there before the volume is: then the engine makes that, with these labels."""
    made = {"NoCopy": True, "Labels": dict(marks)}
    return {"Type": "volume", "Source": volume, "Target": _HAND_FOLDER, "ReadOnly": True, "VolumeOptions": made}


def reader(image: str, target: str, marks: Mapping[str, str]) -> Json:
    """`environ` of the target: PTRACE for the kernel's check of /proc/PID/environ, DAC_READ_SEARCH for its mode 0400."""
    return {
        "Image": image,
        "Cmd": ["environ", "--container", target],
        "User": "0:0",
        "Labels": dict(marks),
        "AttachStdout": True,
        "AttachStderr": True,
        "HostConfig": {
            "NetworkMode": "none",
            "PidMode": f"container:{target}",
            "CapDrop": ["ALL"],
            "CapAdd": ["SYS_PTRACE", "DAC_READ_SEARCH"],
            "SecurityOpt": ["no-new-privileges"],
            "ReadonlyRootfs": True,
            "LogConfig": {"Type": "none"},  # values of an environment never reach a log
        },
    }

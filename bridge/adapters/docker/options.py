"""`docker run` options → the engine API's JSON, with docker's meaning.

Relative host paths are taken from the caller's directory; `~` is the shell's business, as with docker. What only an engine
can judge (does the volume driver exist, may this port be used) is left to it. Every text that cannot be read is a SpecError
that names the option.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from bridge.errors import SpecError
from bridge.model.wish import AppWish

Json = dict[str, Any]
HOST_GATEWAY = "host-gateway"
_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_PORT = re.compile(
    r"(?:(?P<ip>\[[0-9a-fA-F:.%]+\]|[0-9.]+|):)?(?:(?P<host>\d*(?:-\d+)?):)?"
    r"(?P<inner>\d+(?:-\d+)?)(?:/(?P<protocol>tcp|udp|sctp))?"
)


def published(ports: Sequence[str]) -> tuple[Json, Json]:
    """(ExposedPorts, PortBindings) of `-p`."""
    exposed: Json = {}
    bindings: Json = {}
    for text in ports:
        ip, outer, inner, protocol = _split_port(text)
        if outer and len(outer) not in (1, len(inner)) and len(inner) != 1:
            raise SpecError(f"-p {text}: the two ranges differ in length", hint="for example -p 8000-8009:9000-9009")
        for index, port in enumerate(inner):
            key = f"{port}/{protocol}"
            exposed[key] = {}
            host = ""
            if len(outer) == len(inner):
                host = str(outer[index])
            elif outer:
                host = f"{outer[0]}-{outer[-1]}"
            bindings.setdefault(key, []).append({"HostIp": ip, "HostPort": host})
    return exposed, bindings


def _split_port(text: str) -> tuple[str, list[int], list[int], str]:
    match = _PORT.fullmatch(text)
    if not match:
        raise SpecError(f"-p {text}: not [IP:][PORT:]PORT[/tcp|udp]", hint="for example -p 8080:80 or -p 127.0.0.1:8080:80")
    ip, host = match["ip"] or "", match["host"]
    if match["ip"] is not None and host is None and re.fullmatch(r"\d+", ip):
        ip, host = "", ip  # "8080:80": the first alternative took the port for an address
    outer, inner = _range(text, host or ""), _range(text, match["inner"])
    return ip.strip("[]"), outer, inner, match["protocol"] or "tcp"


def _range(text: str, ports: str) -> list[int]:
    if not ports:
        return []
    first, _, last = ports.partition("-")
    numbers = list(range(int(first), int(last or first) + 1))
    if not numbers or not all(0 < number < 65536 for number in (numbers[0], numbers[-1])):
        raise SpecError(f"-p {text}: ports are 1 to 65535", hint="for example -p 8080:80")
    return numbers


def volumes(texts: Sequence[str], base: Path | None = None) -> tuple[list[str], Json]:
    """(Binds, anonymous Volumes) of `-v`."""
    binds: list[str] = []
    anonymous: Json = {}
    for text in texts:
        parts = text.split(":")
        if len(parts) == 1:
            anonymous[_absolute("-v", text, parts[0])] = {}
            continue
        source, target, *rest = parts
        if not source or len(rest) > 1:
            raise SpecError(f"-v {text}: not [SOURCE:]TARGET[:OPTIONS]", hint='for example -v "$PWD:/src" or -v data:/data:ro')
        _absolute("-v", text, target)
        if source.startswith((".", "/")):
            source = os.path.normpath(os.path.join(base or Path.cwd(), source))
        binds.append(":".join([source, target, *rest]))
    return binds, anonymous


def mounts(texts: Sequence[str], base: Path | None = None) -> list[Json]:
    return [_mount(text, base) for text in texts]


_MOUNT_KEYS = (
    *("type", "source", "target", "readonly", "consistency", "bind-propagation", "bind-nonrecursive"),
    *("volume-nocopy", "volume-driver", "volume-opt", "volume-label", "tmpfs-size", "tmpfs-mode"),
)


def _mount(text: str, base: Path | None) -> Json:
    mount: Json = {"Type": "volume"}
    for word in next(csv.reader([text])):
        key, equals, value = word.partition("=")
        key = key.strip().lower()
        if key == "type":
            mount["Type"] = value
        elif key in ("source", "src"):
            mount["Source"] = value
        elif key in ("target", "dst", "destination"):
            mount["Target"] = _absolute("--mount", text, value)
        elif key in ("readonly", "ro"):
            mount["ReadOnly"] = not equals or _boolean("--mount", text, value)
        elif key == "consistency":
            mount["Consistency"] = value
        elif key in ("bind-propagation", "bind-nonrecursive"):
            mount.setdefault("BindOptions", {}).update(
                {"Propagation": value} if key == "bind-propagation" else {"NonRecursive": not equals or _boolean("--mount", text, value)}
            )
        elif key == "volume-nocopy":
            mount.setdefault("VolumeOptions", {})["NoCopy"] = not equals or _boolean("--mount", text, value)
        elif key == "volume-driver":
            mount.setdefault("VolumeOptions", {}).setdefault("DriverConfig", {})["Name"] = value
        elif key in ("volume-opt", "volume-label"):
            name, _, said = value.partition("=")
            options = mount.setdefault("VolumeOptions", {})
            group = (
                options.setdefault("DriverConfig", {}).setdefault("Options", {})
                if key == "volume-opt"
                else options.setdefault("Labels", {})
            )
            group[name] = said
        elif key == "tmpfs-size":
            mount.setdefault("TmpfsOptions", {})["SizeBytes"] = size("--mount", value)
        elif key == "tmpfs-mode":
            try:
                mount.setdefault("TmpfsOptions", {})["Mode"] = int(value, 8)
            except ValueError as exc:
                raise SpecError(f"--mount {text}: tmpfs-mode is an octal number", hint="for example tmpfs-mode=1777") from exc
        else:
            raise SpecError(f"--mount {text}: unknown key {key!r}", hint=f"keys are {', '.join(_MOUNT_KEYS)}")
    if "Target" not in mount:
        raise SpecError(f"--mount {text}: no target", hint="for example --mount type=bind,source=.,target=/src")
    if mount["Type"] == "bind":
        mount["Source"] = os.path.normpath(os.path.join(base or Path.cwd(), mount.get("Source") or ""))
    return mount


def environment(wish: AppWish, environ: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """What `--env-file` and `-e` say, the latter last; a bare NAME passes the caller's own, where it is set."""
    said: dict[bytes, bytes] = {}
    lines: list[bytes] = []
    for path in wish.env_files:
        try:
            content = Path(path).read_bytes()
        except OSError as exc:
            raise SpecError(f"--env-file {path}: {(exc.strerror or str(exc)).lower()}") from exc
        lines += [line.lstrip().rstrip(b"\r") for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n")]
    lines += [os.fsencode(text) for text in wish.env]
    for line in lines:
        name, equals, value = line.partition(b"=")
        if not line or line.startswith(b"#"):
            continue
        if not name or b" " in name or b"\0" in line:
            raise SpecError(f"-e {os.fsdecode(line)!r}: not a name, or NAME=value", hint="for example -e LOG_LEVEL=debug")
        if equals:
            said[name] = value
        elif name in environ:
            said[name] = environ[name]
    return said


def host(text: str) -> tuple[str, str]:
    """(name, address) of an `--add-host`; the address may be the word `host-gateway`."""
    name, separator, address = text.replace("=", ":", 1).partition(":")
    if not name or not separator or not address:
        raise SpecError(f"--add-host {text}: not NAME:ADDRESS", hint="for example --add-host db:10.0.0.7")
    address = address.removeprefix("[").removesuffix("]")
    if address != HOST_GATEWAY:
        try:
            ip_address(address)
        except ValueError as exc:
            raise SpecError(f"--add-host {text}: {address!r} is no IP address", hint=f"{HOST_GATEWAY} is this machine's") from exc
    return name, address


def labels(texts: Sequence[str]) -> dict[str, str]:
    return {name: value for name, _, value in (text.partition("=") for text in texts)}


def size(option: str, text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([bkmgt]?)(?:i?b)?", text.strip().lower())
    if not match:
        raise SpecError(f"{option} {text}: not a size", hint="for example 512m or 2g")
    return int(float(match[1]) * _UNITS[match[2]])


def host_config(wish: AppWish, base: Path | None = None) -> Json:
    """The app's own share of HostConfig: what does not belong to the owner of the network namespace."""
    binds, _ = volumes(wish.volumes, base)
    config: Json = {
        "Binds": binds,
        "Mounts": mounts(wish.mounts, base),
        "Tmpfs": dict(_tmpfs(wish.tmpfs)),
        "CapAdd": list(wish.cap_add),
        "CapDrop": list(wish.cap_drop),
        "SecurityOpt": [_security(text) for text in wish.security_opt],
        "ReadonlyRootfs": wish.read_only,
    }
    if wish.memory:
        config["Memory"] = size("--memory", wish.memory)
    if wish.cpus:
        try:
            config["NanoCpus"] = int(float(wish.cpus) * 1e9)
        except ValueError as exc:
            raise SpecError(f"--cpus {wish.cpus}: not a number", hint="for example --cpus 1.5") from exc
    if wish.gpus:
        config["DeviceRequests"] = [_gpus(wish.gpus)]
    return config


def _tmpfs(texts: Iterable[str]) -> Iterable[tuple[str, str]]:
    for text in texts:
        path, _, options = text.partition(":")
        yield _absolute("--tmpfs", text, path), options


def _security(text: str) -> str:
    """seccomp=FILE is read here: the engine wants the profile itself."""
    name, equals, value = text.partition("=")
    if name != "seccomp" or not equals or value in ("unconfined", "builtin"):
        return text
    try:
        return f"seccomp={Path(value).read_text()}"
    except OSError as exc:
        raise SpecError(f"--security-opt {text}: {(exc.strerror or str(exc)).lower()}") from exc


def _gpus(text: str) -> Json:
    request: Json = {"Driver": "", "Count": 0, "DeviceIDs": [], "Capabilities": [["gpu"]], "Options": {}}
    for word in next(csv.reader([text])):
        key, equals, value = word.partition("=")
        if not equals and key == "all":
            request["Count"] = -1
        elif not equals and key.isdigit():
            request["Count"] = int(key)
        elif key == "device":
            request["DeviceIDs"] = value.split(",")
        elif key == "driver":
            request["Driver"] = value
        elif key == "capabilities":
            request["Capabilities"] = [["gpu", *value.split(",")]]
        else:
            raise SpecError(f"--gpus {text}: not all, a number, or device=…", hint="for example --gpus all")
    return request


def _absolute(option: str, text: str, path: str) -> str:
    if not path.startswith("/"):
        example = path.lstrip("./") or "src"
        raise SpecError(f"{option} {text}: {path!r} is not an absolute path in the container", hint=f"for example /{example}")
    return path


def _boolean(option: str, text: str, value: str) -> bool:
    if value.lower() in ("1", "true", "t"):
        return True
    if value.lower() in ("0", "false", "f"):
        return False
    raise SpecError(f"{option} {text}: {value!r} is neither true nor false")

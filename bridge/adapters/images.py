"""The images of mbridge, built on the user's engine from what this installation holds. No registry of ours is needed.

Theory of operation: an image is named after what goes into it, `mbridge-agent:VERSION-HASH`, so a changed source is
another name, an existing name never needs a build, and two versions live side by side. Its build context is made in
memory and sent to the engine's classic builder, which every engine since 17.05 has:

    Dockerfile           images/WHICH/Dockerfile
    deps/                the wheels of images/WHICH/requirements.txt, collected by the pip of this machine, which knows
                         its certificates and indexes as no build does; kept in the cache folder
    layer/               C sources (bridge alone)
    own/bridge/…         the very files that run here, less what the host alone uses

apt comes first, then the wheels, then our files: a change of ours rebuilds within seconds. The base image is pulled;
where that fails it is made by debootstrap and called the same, unless something has that name already.

Limits: blocking, call it in a thread. Linux engines on x86-64 and arm64. The debootstrap way needs root and an engine
of this machine's own architecture.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import bridge
from bridge.errors import EngineUnavailable, HostError

if TYPE_CHECKING:
    import docker

Which = Literal["bridge", "agent"]
Progress = Callable[[str], None]
NAMES: tuple[Which, ...] = ("bridge", "agent")
BASE = "debian:bookworm-slim"

_PACKAGE = Path(bridge.__file__).parent
# What an image never imports: a change there must not make it, and so running agents, look outdated.
_HOST_ONLY = ("cli", "_images", "_layer", "adapters/docker", "adapters/kube", "adapters/images.py", "adapters/image_store.py",
              "adapters/cluster_tools.py", "adapters/hostdoor.py", "adapters/terminal.py", "engine/up.py", "model/config.py",
              "model/config_schema.py", "model/yaml_lines.py", "model/rights.py", "model/wish.py", "model/plan.py")  # fmt: skip
_BRIDGE_ONLY = ("sidecar", "adapters/netlink.py", "adapters/nft.py", "adapters/nfqueue.py", "adapters/listeners.py", "adapters/tun.py",
                "adapters/engine_dns.py", "engine/outgoing.py", "engine/datagrams.py", "engine/resolver.py",
                "engine/supervisor.py", "protocol/door.py")  # fmt: skip
_LEFT_OUT = {"bridge": (*_HOST_ONLY, "agent"), "agent": (*_HOST_ONLY, *_BRIDGE_ONLY)}
_WHEEL_PLATFORMS = ("manylinux_2_36", "manylinux_2_34", "manylinux_2_31", "manylinux_2_28", "manylinux2014")
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
_BASE_AGE_MAX_S = 30 * 86400
# As in the published slim image: no manuals, no translations; the licences stay.
_SLIM = "path-exclude /usr/share/man/*\npath-exclude /usr/share/locale/*\npath-exclude /usr/share/doc/*\npath-include /usr/share/doc/*/copyright\n"  # noqa: E501  one value of dpkg.cfg


def tag(which: Which) -> str:
    """The name under which the image of exactly these sources is, or will be, found."""
    digest = hashlib.sha256()
    for name, data in sorted(_sources(which)):
        digest.update(f"{name}\0{len(data)}\0".encode() + data)
    return f"mbridge-{which}:{bridge.__version__}-{digest.hexdigest()[:12]}"


def present(client: docker.DockerClient, which: Which) -> bool:
    with _translated():
        return _has(client, tag(which))


def build(client: docker.DockerClient, which: Which, progress: Progress) -> str:
    """Build the image, whether it exists or not, and return its name. Raises HostError with the builder's last lines."""
    name = tag(which)
    with _translated():
        architecture = client.version()["Arch"]
        _ensure_base(client, architecture, progress)
        wheels = _wheels(which, architecture, progress)
        context = io.BytesIO()
        with tarfile.open(fileobj=context, mode="w") as tar:
            for path, data in [*_sources(which), *((f"deps/{wheel.name}", wheel.read_bytes()) for wheel in wheels)]:
                member = tarfile.TarInfo(path)
                member.size, member.mode, member.mtime = len(data), 0o644, 1  # a fixed time: same files, same layer
                tar.addfile(member, io.BytesIO(data))
        context.seek(0)
        before = _of(client, name)
        _run_build(client, context, name, lambda line: progress(f"{which}: {line}"))
        _forget(client, (before - _of(client, name, newest=True)) & _nameless(client))
    return name


def _run_build(client: docker.DockerClient, context: io.BytesIO, name: str, progress: Progress) -> None:
    said: list[str] = []
    labels = {"mbridge.image": name.partition(":")[0].removeprefix("mbridge-")}
    events = client.api.build(
        fileobj=context, custom_context=True, tag=name, labels=labels, buildargs={"IMAGE": name}, rm=True, forcerm=True, decode=True
    )
    for event in events:
        if "error" in event:
            raise HostError(f"building {name} failed: {event['error']}", hint="\n".join(said[-15:]) or None)
        for line in event.get("stream", "").splitlines():
            said.append(line)
            if line.startswith("Step "):
                progress(line)


def _of(client: docker.DockerClient, name: str, newest: bool = False) -> set[str]:
    """Ids of the image of this name, if there is one, and of the stages that images of this name were built in."""
    stages = sorted(client.api.images(filters={"label": f"mbridge.stage={name}"}), key=lambda image: int(image["Created"]))
    return {str(image["Id"]) for image in (*client.api.images(name), *(stages[-1:] if newest else stages))}


def _nameless(client: docker.DockerClient) -> set[str]:
    return {str(image["Id"]) for image in client.api.images(filters={"dangling": True})}


def _forget(client: docker.DockerClient, ids: set[str]) -> None:
    """Images that a build of the same name replaced; one that a container still uses stays."""
    import docker.errors

    for one in ids:
        with contextlib.suppress(docker.errors.APIError):
            client.api.remove_image(one)


def _sources(which: Which) -> Iterator[tuple[str, bytes]]:
    """What the image is made of, wheels aside, as (path in the context, content)."""
    folder = _PACKAGE / "_images" / which
    yield "Dockerfile", (folder / "Dockerfile").read_bytes()
    yield "deps/requirements.txt", (folder / "requirements.txt").read_bytes()
    if which == "bridge":
        for path in sorted((_PACKAGE / "_layer").glob("*.[ch]")):
            yield f"layer/{path.name}", path.read_bytes()
    for path in sorted(_PACKAGE.rglob("*.py")):
        inside = path.relative_to(_PACKAGE).as_posix()
        if not any(inside == skipped or inside.startswith(f"{skipped}/") for skipped in _LEFT_OUT[which]):
            yield f"own/bridge/{inside}", path.read_bytes()
    metadata = f"Metadata-Version: 2.1\nName: mbridge\nVersion: {bridge.__version__}\n"
    yield f"own/mbridge-{bridge.__version__}.dist-info/METADATA", metadata.encode()


def _wheels(which: Which, architecture: str, progress: Progress) -> list[Path]:
    requirements = _PACKAGE / "_images" / which / "requirements.txt"
    key = hashlib.sha256(requirements.read_bytes() + architecture.encode()).hexdigest()[:12]
    kept = _cache() / "wheels" / key
    if not kept.exists():
        progress(f"{which}: collecting wheels")
        kept.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f"{key}.", dir=kept.parent))
        machine = _MACHINES.get(architecture, architecture)
        platforms = [word for name in _WHEEL_PLATFORMS for word in ("--platform", f"{name}_{machine}")]
        _run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "--implementation", "cp",
              "--python-version", "3.11", *platforms, "-d", str(fresh), "-r", str(requirements)],
             "collecting the wheels for the images failed",
             "check that pip can reach its package index; pip's own settings (index-url, cert) are used")  # fmt: skip
        with contextlib.suppress(OSError):  # another process was first: its folder holds the same
            fresh.rename(kept)
        shutil.rmtree(fresh, ignore_errors=True)
    return sorted(kept.glob("*.whl"))


def _ensure_base(client: docker.DockerClient, architecture: str, progress: Progress) -> None:
    import docker.errors  # in functions: `tag`, which every start asks, needs none of it, and it is a tenth of a start

    if _has(client, BASE):
        return
    progress(f"pulling {BASE}")
    repository, _, version = BASE.partition(":")
    try:
        client.api.pull(repository, version)
        return
    except docker.errors.APIError as error:
        progress(f"not to be pulled ({error.explanation}); making it with debootstrap (under a minute)")
    reason = _why_no_debootstrap(architecture)
    if reason:
        raise HostError(f"the base image {BASE} can neither be pulled nor made here: {reason}",
                        hint=f"bring it by: docker save {BASE} | docker load")  # fmt: skip
    tarball = _cache() / f"debian-bookworm-{architecture}.tar"
    if not tarball.exists() or time.time() - tarball.stat().st_mtime > _BASE_AGE_MAX_S:
        _debootstrap(tarball)
    client.api.import_image_from_file(str(tarball), repository=repository, tag=version, changes=['CMD ["bash"]'])
    if not _has(client, BASE):
        raise HostError(f"the engine did not take {tarball} as {BASE}")


def _why_no_debootstrap(architecture: str) -> str | None:
    if _MACHINES.get(architecture, architecture) != platform.machine().replace("arm64", "aarch64"):
        return f"the engine is {architecture}, this machine is not"
    if not shutil.which("debootstrap"):
        return "debootstrap is not installed"
    return None if os.geteuid() == 0 else "debootstrap needs root"


def _debootstrap(tarball: Path) -> None:
    tarball.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mbridge-base-") as folder:
        root = Path(folder, "root")
        _run(["debootstrap", "--variant=minbase", "bookworm", str(root)], "debootstrap failed", "see above")
        (root / "etc/dpkg/dpkg.cfg.d/slim").write_text(_SLIM)
        for emptied in ("var/cache/apt", "var/lib/apt/lists", "var/log", "usr/share/man", "usr/share/locale"):
            for inside in (root / emptied).iterdir():
                shutil.rmtree(inside) if inside.is_dir() else inside.unlink()
        fresh = tarball.with_suffix(f".{os.getpid()}")
        _run(["tar", "-C", str(root), "--numeric-owner", "-cf", str(fresh), "."], "packing the base image failed", "")
        fresh.rename(tarball)


def _run(command: list[str], message: str, hint: str) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        last = "\n".join(done.stdout.decode(errors="replace").splitlines()[-5:])
        raise HostError(f"{message}: {last}", hint=hint or None)


def _has(client: docker.DockerClient, name: str) -> bool:
    import docker.errors

    try:
        client.images.get(name)
    except docker.errors.ImageNotFound:
        return False
    return True


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mbridge"


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    import docker.errors
    import requests

    try:
        yield
    except docker.errors.APIError as error:
        raise HostError(f"the engine refused: {error.explanation or error}") from error
    except (docker.errors.DockerException, requests.RequestException) as error:
        raise EngineUnavailable(f"the engine went away: {error}", hint="docker version") from error

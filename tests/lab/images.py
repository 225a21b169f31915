"""The tests' own images, built on the engine under a name that is the hash of their sources: present means current."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from pathlib import Path

import docker
import docker.errors

HERE = Path(__file__).resolve().parent
FOLDERS = {"lab": HERE / "server", "programs": HERE / "programs", "demo": HERE.parents[1] / "images" / "demo"}
LABEL = {"mbridge.test": "image"}


def ensure(client: docker.DockerClient, which: str) -> str:
    """Build the image `which` where it is absent; its name. The base image must be there: build mbridge's own images first."""
    files = {path.name: path.read_bytes() for path in _wanted(FOLDERS[which])}
    # Clock and network make apt's answer another one each time; `MBRIDGE_TEST_REBUILD` changes the name and so asks again.
    digest = hashlib.sha256(repr(sorted(files.items())).encode() + os.environ.get("MBRIDGE_TEST_REBUILD", "").encode())
    name = f"mbridge-test-{which}:{digest.hexdigest()[:12]}"
    try:
        client.images.get(name)
    except docker.errors.ImageNotFound:
        context = io.BytesIO()
        with tarfile.open(fileobj=context, mode="w") as tar:
            for path, data in files.items():
                member = tarfile.TarInfo(path)
                member.size, member.mode = len(data), 0o644
                tar.addfile(member, io.BytesIO(data))
        context.seek(0)
        client.images.build(fileobj=context, custom_context=True, tag=name, rm=True, forcerm=True, labels=LABEL)
    return name


def _wanted(folder: Path) -> list[Path]:
    """The Dockerfile and what it copies."""
    dockerfile = folder / "Dockerfile"
    words = [word for line in dockerfile.read_text().splitlines() if line.startswith("COPY ") for word in line.split()[1:-1]]
    if "." in words:
        return sorted(path for path in folder.iterdir() if path.is_file())
    return [dockerfile, *(folder / word for word in words if (folder / word).is_file())]

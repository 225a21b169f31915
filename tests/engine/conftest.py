"""The current engine, up for this level and down after it; the container level's fixtures on it.

This process, and so every mbridge that it starts, enters the engine's network namespace for the rest of the level: there the
engine is a local one, whose containers can be dialled.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from bridge.adapters import images as own
from tests.container.conftest import app, bridge, cli, lab, own_cli, own_images
from tests.lab import images

__all__ = ["app", "bridge", "cli", "client", "lab", "own_cli", "own_images"]

_TOOL = Path(__file__).with_name("engine")
_NEEDS = ("docker", "docker-init", "gcc", "ip", "iptables", "nsenter")
_CLONE_NEWNET = 0x40000000


@pytest.fixture(scope="session")
def client() -> Iterator[docker.DockerClient]:
    missing = [name for name in _NEEDS if shutil.which(name) is None]
    if os.geteuid() != 0 or missing:
        pytest.skip(f"a second engine needs root and {', '.join(missing) or 'nothing else'}")
    local = docker.from_env(timeout=600)
    for which in own.NAMES:
        if not own.present(local, which):
            own.build(local, which, lambda _: None)
    wanted = [*(own.tag(which) for which in own.NAMES), *(images.ensure(local, which) for which in ("lab", "programs"))]
    local.close()
    up = subprocess.run([_TOOL, "up"], capture_output=True, text=True, timeout=1800, check=False)
    assert up.returncode == 0, up.stderr
    url, netns = up.stdout.split()
    subprocess.run([_TOOL, "load", *wanted], check=True, timeout=300)
    here = os.open("/proc/self/ns/net", os.O_RDONLY)
    before = os.environ.get("DOCKER_HOST")
    os.environ["DOCKER_HOST"] = url
    _enter(os.open(netns, os.O_RDONLY))
    engine = docker.from_env(timeout=600)
    try:
        yield engine
    finally:
        engine.close()
        _enter(here)
        if before is None:
            del os.environ["DOCKER_HOST"]
        else:
            os.environ["DOCKER_HOST"] = before
        subprocess.run([_TOOL, "down"], check=True, timeout=90)


def _enter(netns: int) -> None:
    """setns(2) and close; os.setns is Python 3.12's."""
    libc = ctypes.CDLL(None, use_errno=True)
    code = libc.setns(netns, _CLONE_NEWNET)
    os.close(netns)
    if code:
        raise OSError(ctypes.get_errno(), "setns")

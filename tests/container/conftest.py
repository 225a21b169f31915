"""Container level: the lab on the local engine, and one bridged app for all tests that do not disturb it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import docker.errors
import pytest

from tests.lab import boxes
from tests.lab.boxes import App, Cli
from tests.lab.dockerlab import Lab, docker_lab


@pytest.fixture(scope="session")
def client() -> docker.DockerClient:
    client = docker.from_env(timeout=600)
    try:
        client.ping()
    except (docker.errors.DockerException, OSError) as error:
        pytest.skip(f"no container engine answers: {error}")
    return client


@pytest.fixture(scope="session")
def own_images(client: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory) -> None:
    """mbridge's own, built once a run: tests measure sessions, not builds."""
    done = Cli(tmp_path_factory.mktemp("state")).run("images", "build", limit_s=900)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def lab(client: docker.DockerClient, own_images: None) -> Iterator[Lab]:
    with docker_lab(client) as lab:
        yield lab


@pytest.fixture(scope="session")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """The session-wide state folder; what tests leave in it is ended at the end."""
    cli = Cli(tmp_path_factory.mktemp("state"))
    yield cli
    cli.run("down", "--all", limit_s=120)


@pytest.fixture
def own_cli(tmp_path: Path) -> Iterator[Cli]:
    """A state folder of one test: it sees no session but its own."""
    cli = Cli(tmp_path / "state")
    yield cli
    cli.run("down", "--all", limit_s=120)


# Does nothing, and ends at a signal although it is process 1.
IDLE = ("python3", "-c", "import signal as s; s.pthread_sigmask(s.SIG_BLOCK, [1, 2, 15]); print('idle', flush=True); s.sigwait([1, 2, 15])")


@contextlib.contextmanager
def bridged(lab: Lab, cli: Cli, target: str, *options: str, image: str | None = None, command: tuple[str, ...] = IDLE) -> Iterator[App]:
    """`mbridge run` on the developer's network, in the background, until the app's container runs."""
    name = f"mbt-app-{os.getpid()}-{os.urandom(4).hex()}"  # dockerlab.sweep reads the pid
    network = () if "--network" in options else ("--network", lab.outside)
    with boxes.run_behind(lab.client, cli, name, *network, *options, target, image or lab.programs_image, *command) as app:
        if command == IDLE:  # before it says so, a signal would be lost on process 1
            boxes.eventually(lambda: b"idle" in app.container.logs())
        yield app


Bridge = Callable[..., contextlib.AbstractContextManager[App]]


@pytest.fixture(scope="session")
def app(lab: Lab, cli: Cli) -> Iterator[App]:
    """Bridged to the lab's target for the whole run. Tests only look through it; who disturbs a session starts one."""
    with bridged(lab, cli, f"docker/{lab.target.name}") as app:
        yield app


@pytest.fixture
def bridge(lab: Lab, own_cli: Cli) -> Bridge:
    """Starts a session of the test's own: `with bridge("docker/x", "-p", "8000:8000") as app`."""

    def start(target: str, *options: str, **more: object) -> contextlib.AbstractContextManager[App]:
        return bridged(lab, own_cli, target, *options, **more)  # type: ignore[arg-type]  # passed on as they come

    return start

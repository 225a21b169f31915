"""K15 with a Docker target: neighbouring releases meet on the link and at the bridge's door; another major is refused by name."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from bridge import __version__
from bridge.adapters import images
from tests.container.conftest import IDLE, bridged
from tests.container.test_lifecycle import host_process
from tests.lab.boxes import Box, Cli, eventually, of_session
from tests.lab.dockerlab import Lab
from tests.lab.release import Release, another_release

NEXT, NEXT_LINK = "0.2.0", (1, 1)


@pytest.fixture(scope="module")
def newer(client: docker.DockerClient, own_images: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    """The next minor, with both its images."""
    with another_release(client, tmp_path_factory.mktemp("newer"), NEXT, NEXT_LINK) as release:
        for which in images.NAMES:
            release.build(which)
        yield release


def works(lab: Lab, app: Box) -> None:
    """TCP, names and UDP, as the target has them."""
    assert app.probe("who", host="server.lab.test")["host"] == "server-host"
    assert app.probe("who", host=lab.server_ip)["peer"] == lab.target_ip
    seen = app.probe("udp", host=lab.server_ip, port=7002)
    assert json.loads(seen["text"])["peer"] == lab.target_ip


def release_of(lab: Lab, session: str, role: str) -> str:
    """What runs there: the test would prove nothing with two of one release."""
    (container,) = of_session(lab.client, session, role)
    return Box(container).run("/opt/mbridge/bin/python", "-c", "import bridge; print(bridge.__version__)").out.strip()


def test_K15_an_agent_one_minor_newer_serves_this_bridge(lab: Lab, own_cli: Cli, newer: Release) -> None:
    with bridged(lab, own_cli, f"docker/{lab.target.name}", "--agent-image", newer.name("agent")) as app:
        assert [release_of(lab, app.session, role) for role in ("bridge", "agent")] == [__version__, NEXT]
        works(lab, app)


def test_K15_an_agent_one_minor_older_serves_a_newer_bridge(lab: Lab, tmp_path: Path, newer: Release) -> None:
    with bridged(lab, newer.cli(tmp_path), f"docker/{lab.target.name}", "--agent-image", images.tag("agent")) as app:
        assert [release_of(lab, app.session, role) for role in ("bridge", "agent")] == [NEXT, __version__]
        works(lab, app)


@pytest.mark.parametrize("direction", ["upgrade", "downgrade"])
def test_K15_after_a_change_of_release_up_takes_over_the_session_of_the_one_before(
    lab: Lab, own_cli: Cli, newer: Release, tmp_path: Path, direction: str
) -> None:
    """The bridge lives on; the host at its door, and the agent that this one makes, are of the other release."""
    (tmp_path / "mbridge.yaml").write_text(
        json.dumps({"target": f"docker/{lab.target.name}", "app": {"image": lab.programs_image, "command": IDLE,
                    "networks": [lab.outside]}}))  # fmt: skip
    first, second, releases = own_cli, newer.cli(own_cli.state), [__version__, NEXT]
    if direction == "downgrade":
        first, second, releases = second, first, releases[::-1]
    begun = first.run("up", "-d", cwd=tmp_path)
    assert begun.returncode == 0, begun.stderr
    session = begun.stdout.strip()
    (app,) = of_session(lab.client, session, "app")
    started = app.attrs["State"]["StartedAt"]
    os.kill(host_process(first, session), signal.SIGKILL)
    eventually(lambda: second.status()[0]["state"], until=lambda state: state != "ready", limit_s=10)
    done = second.run("up", "-d", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    app.reload()
    assert app.attrs["State"]["StartedAt"] == started
    assert [release_of(lab, session, role) for role in ("bridge", "agent")] == releases
    works(lab, Box(app))


def test_K15_an_agent_of_another_major_is_refused_with_both_versions(lab: Lab, own_cli: Cli, tmp_path: Path) -> None:
    with another_release(lab.client, tmp_path / "release", "2.0.0", (2, 0)) as release:
        agent = release.build("agent")
        done = own_cli.run("run", "--agent-image", agent, f"docker/{lab.target.name}", lab.programs_image, "true", limit_s=30)
    assert done.returncode == 125
    assert "mbridge: error: the agent speaks link version 2.0 (release 2.0.0), this side 1.0" in done.stderr
    assert "mbridge: hint: " in done.stderr

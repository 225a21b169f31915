"""An engine that DOCKER_HOST names by ssh://, reached through a real sshd."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.adapters.docker.endpoint import find_endpoint
from tests.container.conftest import IDLE
from tests.lab import sshd
from tests.lab.boxes import Cli, eventually, of_session
from tests.lab.dockerlab import Lab
from tests.lab.sshd import Behind
from tests.unit.contracts.engine import CONTRACT, keep


@pytest.fixture(scope="module")
def behind(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Behind]:
    with sshd.engine_behind_ssh(lab, tmp_path_factory.mktemp("s")) as behind:
        yield behind


@pytest.fixture
def cli(behind: Behind, tmp_path: Path) -> Iterator[Cli]:
    cli = Cli(tmp_path / "state", behind.environ)
    yield cli
    cli.run("down", "--all", limit_s=120)


@pytest.mark.parametrize("check", CONTRACT)
def test_the_contract_of_engines_holds_through_ssh(lab: Lab, behind: Behind, monkeypatch: pytest.MonkeyPatch, check: str) -> None:
    for name, value in behind.environ.items():
        monkeypatch.setenv(name, value)
    asyncio.run(keep(check, find_endpoint(None, behind.environ), lab.lab_image))


def test_one_login_serves_command_after_command(behind: Behind, cli: Cli) -> None:
    behind.leave()
    before = behind.logins()
    for _ in range(3):
        assert cli.run("ls", "docker").returncode == 0
    assert behind.logins() - before == 1


def test_a_session_runs_and_leaves_no_process(lab: Lab, behind: Behind, cli: Cli) -> None:
    """It has some connections more than sshd gives one login (MaxSessions is 10): those log in by themselves."""
    done = cli.run(
        "run", f"docker/{lab.target.name}", lab.programs_image, "curl", "-sS", "--max-time", "20", f"http://{lab.server_ip}:7000/whoami",
        limit_s=120,
    )  # fmt: skip
    assert (done.returncode, lab.target_ip in done.stdout) == (0, True), done
    eventually(lambda: not behind.processes())


def test_ctrl_c_undoes_all_through_ssh(lab: Lab, behind: Behind, cli: Cli) -> None:
    run = cli.start("run", f"docker/{lab.target.name}", lab.programs_image, *IDLE)
    session = eventually(lambda: (found := cli.session(f"docker/{lab.target.name}")) and found["state"] == "ready" and found, limit_s=60)
    assert session["link"]["via"] == "exec"
    assert session["handed"], "what is on one engine does not go by the developer's machine"
    (app,) = of_session(lab.client, session["id"], "app")
    eventually(lambda: b"idle" in app.logs())
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=60)
    assert not of_session(lab.client, session["id"])
    eventually(lambda: not behind.processes())


def test_images_are_looked_at_and_saved_through_ssh(lab: Lab, behind: Behind, cli: Cli, tmp_path: Path) -> None:
    done = cli.run("images", "save", str(tmp_path / "images.tar"), limit_s=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "images.tar").stat().st_size > 10_000_000


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ssh://root@stranger", "Permission denied"),
        (f"ssh://root@{sshd.HOST}:1", "port 1: Connection refused"),
        (f"ssh://root@{sshd.HOST}/run/none.sock", "/run/none.sock: connect: no such file or directory"),
    ],
)
def test_why_it_cannot_be_reached_is_told_in_the_words_of_ssh(cli: Cli, url: str, said: str) -> None:
    done = cli.run("ls", "docker", DOCKER_HOST=url)
    assert (done.returncode, said in done.stderr) == (3, True), done.stderr
    assert f"the engine at {url} (DOCKER_HOST) cannot be reached" in done.stderr
    assert "hint: ssh -l root" in done.stderr

"""Bad input and faults: one line in the user's words, a hint, the right exit code, and nothing made."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from tests.lab.boxes import MBRIDGE, Cli
from tests.lab.dockerlab import Lab


@pytest.fixture
def nothing_made(lab: Lab, own_cli: Cli) -> Iterator[None]:
    """No session and no plan is left behind by what the test asked for."""
    yield
    assert own_cli.status() == []
    assert not list(own_cli.state.rglob("plan.json"))


def told(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """One line of error that holds the words, then at most a hint; never a traceback."""
    assert done.returncode == code, (done.returncode, done.stderr)
    errors = [line for line in done.stderr.splitlines() if line.startswith("mbridge: error: ")]
    assert len(errors) == 1, done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert not errors[0].endswith(".")


def up(cli: Cli, folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    (folder / "mbridge.yaml").write_text(text)
    return cli.run("up", "-d", cwd=folder)


@pytest.mark.parametrize("command", ["ls", "env", "run"])
def test_no_engine_is_one_line_and_a_hint(lab: Lab, own_cli: Cli, nothing_made: None, tmp_path: Path, command: str) -> None:
    words = {"ls": ("ls", "docker"), "env": ("env", "docker/x"), "run": ("run", "docker/x", "image", "true")}[command]
    done = own_cli.run(*words, DOCKER_HOST=f"unix://{tmp_path}/nobody.sock")
    told(done, 125 if command == "run" else 3, "nobody.sock", "mbridge: hint: ")


def test_an_engine_that_does_not_listen_is_told_within_seconds(lab: Lab, own_cli: Cli, nothing_made: None) -> None:
    told(own_cli.run("ls", "docker", DOCKER_HOST="tcp://127.0.0.1:1", limit_s=10), 3, "127.0.0.1:1")


def test_no_right_to_the_engines_socket_is_told_with_the_group_that_has_it(own_cli: Cli, tmp_path: Path) -> None:
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("only root can become another user")
    if subprocess.run(
        ["setpriv", "--reuid", "65534", "--clear-groups", str(MBRIDGE), "--version"], capture_output=True, check=False
    ).returncode:
        pytest.skip("lacks(a checkout that other users may read)")
    home = tmp_path / "home"
    home.mkdir()
    for folder in (home, *tmp_path.parents[:2]):
        os.chmod(folder, 0o777)
    done = subprocess.run(
        ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", str(MBRIDGE), "ls", "docker"],
        env=own_cli.env(HOME=str(home), XDG_STATE_HOME=str(home)), capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    told(done, 3, "docker.sock", "hint")


def test_a_target_that_does_not_exist_is_told_with_the_nearest_names(lab: Lab, own_cli: Cli, nothing_made: None) -> None:
    near = lab.target.name[:-1]
    told(own_cli.run("env", f"docker/{near}"), 4, near, f"docker/{lab.target.name}")
    told(own_cli.run("run", f"docker/{near}", lab.programs_image, "true"), 125, f"docker/{lab.target.name}")


def test_a_stopped_target_is_told_with_its_state(lab: Lab, own_cli: Cli, nothing_made: None) -> None:
    with lab.another_target(80) as target:
        target.container.stop(timeout=1)
        told(own_cli.run("env", f"docker/{target.name}"), 4, target.name, "exited")


def test_the_beginning_of_several_ids_is_told_with_their_names(lab: Lab, own_cli: Cli, nothing_made: None) -> None:
    """Ids are hexadecimal: among 17 containers two begin alike."""
    made = [lab.client.containers.create(lab.lab_image, ["true"], labels={"mbridge.test": str(os.getpid())}) for _ in range(17)]
    try:
        first = [box.id[0] for box in made]
        letter = next(letter for letter in first if first.count(letter) > 1)
        told(own_cli.run("env", f"docker/{letter}"), 4, letter)
    finally:
        for box in made:
            box.remove(force=True)


def test_an_unknown_kind_of_target_is_told_with_those_that_there_are(own_cli: Cli, lab: Lab, nothing_made: None) -> None:
    told(own_cli.run("env", "dokker/x"), 2, "dokker", "docker")


def test_a_target_on_the_hosts_network_needs_a_yes(lab: Lab, own_cli: Cli, nothing_made: None) -> None:
    box = lab.box("hostnet", lab.lab_image, ["sleep", "infinity"], network="host")
    try:
        told(own_cli.run("run", f"docker/{box.name}", lab.programs_image, "true"), 125, "--yes-host-network")
    finally:
        box.container.remove(force=True)


def test_all_faults_of_the_file_are_told_at_once_with_their_lines(lab: Lab, own_cli: Cli, nothing_made: None, tmp_path: Path) -> None:
    done = up(
        own_cli, tmp_path,
        f"target: docker/{lab.target.name}\napp: {{ image: x, comand: [true] }}\n"
        "outgoing:\n  rules:\n    - {to: 10.0.0.0/33, verdict: direct}\n    - {to: '10.0.0.1:70000', verdict: deny}\n"
        "  loopback: [0]\nlink: { via: exce }\nenv: { set: [1] }\n",
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    for line, word in ((2, "command"), (5, "10.0.0.0/33"), (6, "70000"), (7, "0"), (8, "exec"), (9, "set")):
        assert f"mbridge.yaml:{line}" in done.stderr, (line, done.stderr)
        assert word in done.stderr, (word, done.stderr)


def test_an_agent_image_that_cannot_be_had_is_told(lab: Lab, own_cli: Cli, nothing_made: None, tmp_path: Path) -> None:
    done = up(
        own_cli, tmp_path,
        f"target: docker/{lab.target.name}\napp: {{ image: '{lab.programs_image}', command: [sleep, infinity] }}\n"
        "agent: { image: 'localhost:1/nobody/agent:1' }\n",
    )  # fmt: skip
    assert done.returncode in (3, 4), done.stderr
    assert "localhost:1/nobody/agent:1" in done.stderr


def test_an_agent_that_dies_at_its_start_is_told_with_its_last_words(lab: Lab, own_cli: Cli, nothing_made: None, tmp_path: Path) -> None:
    made = lab.client.containers.create(lab.lab_image, ["true"], labels={"mbridge.test": str(os.getpid())})
    image: docker.models.images.Image = made.commit(
        "mbridge-test-broken", "1", conf={"Entrypoint": ["sh", "-c", "echo the well is dry; exit 3"]}
    )
    try:
        done = up(
            own_cli, tmp_path,
            f"target: docker/{lab.target.name}\napp: {{ image: '{lab.programs_image}', command: [sleep, infinity] }}\n"
            "agent: { image: 'mbridge-test-broken:1' }\n",
        )  # fmt: skip
        told(done, 4, "the well is dry")
    finally:
        made.remove(force=True)
        lab.client.images.remove(image.id, force=True)


def test_an_app_image_that_cannot_be_had_is_told_and_undone(lab: Lab, own_cli: Cli, nothing_made: None) -> None:
    done = own_cli.run("run", f"docker/{lab.target.name}", "localhost:1/nobody/app:1", "true")
    told(done, 125, "localhost:1/nobody/app:1")


def test_a_port_that_is_taken_is_told_and_undone(lab: Lab, own_cli: Cli, nothing_made: None) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = own_cli.run("run", "-p", f"127.0.0.1:{port}:80", f"docker/{lab.target.name}", lab.programs_image, "true")
    told(done, 125, str(port))


def test_forward_brings_a_port_of_the_targets_network_here(lab: Lab, own_cli: Cli) -> None:
    import re
    import signal
    import urllib.request

    process = own_cli.start("forward", f"docker/{lab.target.name}", "0:server:7010")
    try:
        assert process.stderr is not None
        assert process.stdout is not None
        said = b""
        port = None
        while port is None:
            line = process.stdout.readline() or process.stderr.readline()
            assert line, said
            said += line
            if found := re.search(rb"127\.0\.0\.1:(\d+)", line):
                port = int(found[1])
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/x", timeout=10) as answer:
            seen = json.loads(answer.read())
        assert seen["peer"] in (lab.target_ip, lab.target_ip6)
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)

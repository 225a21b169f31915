"""A31 to A33 and A40: environment, hostname, exit codes, signals, stdio and rights of the app, as `docker run` has them."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.container.conftest import IDLE, Bridge
from tests.lab.boxes import MBRIDGE, PROBES, Cli, eventually
from tests.lab.dockerlab import ENVIRON, Lab

HELD_BACK = {"PATH", "HOME", "HOSTNAME", "PYTHONUNBUFFERED"}


@pytest.fixture
def run(lab: Lab, own_cli: Cli):
    """`mbridge run OPTIONS docker/TARGET programs COMMAND`, to its end."""

    def start(*command: str, options: tuple[str, ...] = (), stdin: bytes | None = None) -> subprocess.CompletedProcess[str]:
        words = ("run", "--network", lab.outside, *options, f"docker/{lab.target.name}", lab.programs_image, *command)
        return own_cli.run(*words, stdin=stdin)

    return start


def entries(text: str) -> dict[str, str]:
    return dict(entry.split("=", 1) for entry in text.split("\0") if "=" in entry)


def target_environ(lab: Lab) -> dict[str, str]:
    """Of the process that serves in the target, which set some of it itself."""
    code = (
        "import os\nfor pid in filter(str.isdigit, os.listdir('/proc')):\n"
        "    if b'server.py' in open(f'/proc/{pid}/cmdline', 'rb').read():\n"
        "        print(open(f'/proc/{pid}/environ', 'rb').read().hex()); break"
    )
    return entries(bytes.fromhex(lab.target.run("python3", "-c", code).out.strip()).decode("latin-1"))


def seen_by(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    assert done.returncode == 0, done.stderr
    return entries(json.loads(done.stdout))


ENVIRON_PROBE = ("python3", "-c", PROBES, "environ", "{}")


def test_A31_the_app_has_the_environment_of_the_targets_own_process(lab: Lab, run) -> None:
    ours, theirs = seen_by(run(*ENVIRON_PROBE)), target_environ(lab)
    assert ours["LAB_LINES"] == "first\nsecond\n"
    assert {name: ours.get(name) for name in ENVIRON} == ENVIRON
    for name in set(theirs) - HELD_BACK:
        assert ours[name] == theirs[name], name


def test_A31_bytes_that_are_no_utf8_arrive_as_they_are(run) -> None:
    ours = seen_by(run(*ENVIRON_PROBE))
    assert ours["LAB_RAW"] == "\xff\xfe="


def test_A31_path_and_home_stay_the_images(lab: Lab, run) -> None:
    ours = seen_by(run(*ENVIRON_PROBE))
    assert ours["PATH"].startswith("/usr/local/sbin:")
    assert ours["HOME"] == "/root"


def test_A31_includes_excludes_and_settings(lab: Lab, run) -> None:
    ours = seen_by(
        run(*ENVIRON_PROBE, options=("--env-exclude", "AWS_*", "--env-exclude", "PG*", "--env-set", "PGHOST=mine", "--env-set", "NEW=1"))
    )
    assert "AWS_REGION" not in ours
    assert (ours["PGHOST"], ours["NEW"]) == ("mine", "1")
    ours = seen_by(run(*ENVIRON_PROBE, options=("--env-include", "LAB_P*")))
    assert ours["LAB_PLAIN"] == "plain value"


def test_A31_what_the_user_sets_beats_the_target(lab: Lab, run, tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("FROM_FILE=yes\nPGHOST=file\n")
    ours = seen_by(run(*ENVIRON_PROBE, options=("-e", "LAB_PLAIN=mine", "-e", "OWN=1", "--env-file", str(file))))
    assert (ours["LAB_PLAIN"], ours["OWN"], ours["FROM_FILE"], ours["PGHOST"]) == ("mine", "1", "yes", "file")


@pytest.mark.parametrize("form", ["dotenv", "json", "shell", "compose"])
def test_A31_env_prints_it_for_other_tools(lab: Lab, own_cli: Cli, form: str) -> None:
    done = own_cli.run("env", f"docker/{lab.target.name}", "--format", form)
    assert done.returncode == 0, done.stderr
    if form == "json":
        assert json.loads(done.stdout)["LAB_LINES"] == "first\nsecond\n"
    elif form == "shell":
        script = done.stdout.encode("utf-8", "surrogateescape") + b'\nprintf %s "$LAB_LINES$LAB_PLAIN"'
        ran = subprocess.run(["sh"], input=script, capture_output=True, check=True, timeout=10)
        assert ran.stdout == b"first\nsecond\nplain value"
    else:
        assert "LAB_PLAIN" in done.stdout


def test_A32_hostname_is_the_targets(lab: Lab, run) -> None:
    done = run("sh", "-c", "hostname; cat /etc/hostname; python3 -c 'import socket; print(socket.gethostname())'")
    assert done.stdout.split() == ["target-host"] * 3


@pytest.mark.parametrize("code", [0, 1, 42, 255])
def test_A33_the_exit_code_is_the_apps(run, code: int) -> None:
    assert run("sh", "-c", f"exit {code}").returncode == code


def test_A33_codes_of_docker_run_for_what_cannot_start(run) -> None:
    assert run("no-such-program").returncode == 127
    assert run("/etc/passwd").returncode == 126


def test_A33_mbridges_own_faults_are_125(lab: Lab, own_cli: Cli) -> None:
    done = own_cli.run("run", "docker/no-such-target-at-all", lab.programs_image, "true")
    assert done.returncode == 125
    assert "no-such-target-at-all" in done.stderr
    assert done.stdout == ""


def test_A33_stdout_is_the_apps_alone(run) -> None:
    done = run("sh", "-c", "echo out; echo err >&2")
    assert done.stdout == "out\n"
    assert "err" in done.stderr


def test_A33_stdin_reaches_the_app_and_so_does_its_end(run) -> None:
    done = run("sh", "-c", "cat; echo done", options=("-i",), stdin=b"one\ntwo\n")
    assert done.stdout == "one\ntwo\ndone\n"


def test_A33_without_i_stdin_is_empty(run) -> None:
    assert run("sh", "-c", "cat; echo done", stdin=b"not for you\n").stdout == "done\n"


def test_A33_a_pipeline_whose_reader_ends_does_not_wait_for_the_app(lab: Lab, own_cli: Cli) -> None:
    process = own_cli.start("run", "--network", lab.outside, f"docker/{lab.target.name}", lab.programs_image, "yes")
    assert process.stdout is not None
    assert process.stdout.read(2) == b"y\n"
    process.stdout.close()
    assert process.wait(30) == 128 + signal.SIGPIPE
    assert own_cli.status() == []


@pytest.mark.parametrize("name", ["INT", "TERM", "HUP"])
def test_A33_signals_are_passed_on(lab: Lab, own_cli: Cli, name: str) -> None:
    process = own_cli.start(
        "run", "--network", lab.outside, f"docker/{lab.target.name}", lab.programs_image,
        "bash", "-c", f"trap 'echo got {name}; exit 7' {name}; echo up; while :; do sleep 0.1; done",
    )  # fmt: skip
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"up\n"
        process.send_signal(getattr(signal, f"SIG{name}"))
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert out == f"got {name}\n".encode(), err
    assert process.returncode == 7


def test_A33_with_a_terminal_the_app_has_one_of_the_callers_size(lab: Lab, own_cli: Cli) -> None:
    import fcntl
    import struct
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 101, 0, 0))
    process = subprocess.Popen(
        [str(MBRIDGE), "run", "-it", "--network", lab.outside, f"docker/{lab.target.name}", lab.programs_image,
         "bash", "-c", "stty size; test -t 0 && test -t 1 && echo terminal; echo up; read line; stty size; exit 5"],
        env=own_cli.env(TERM="xterm"), stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    said = b""

    def heard(text: bytes, limit_s: float = 30) -> bool:
        nonlocal said
        ended = time.monotonic() + limit_s
        while text not in said and time.monotonic() < ended:
            if select.select([master], [], [], 0.2)[0]:
                try:
                    said += os.read(master, 4096)
                except OSError:
                    break
        return text in said

    try:
        assert heard(b"up"), said
        assert b"terminal" in said
        assert b"33 101" in said, "the size is right before the app's first instruction"
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 44, 120, 0, 0))
        process.send_signal(signal.SIGWINCH)
        time.sleep(0.5)  # the new size goes its own way, beside the bytes
        os.write(master, b"\n")
        assert heard(b"44 120"), said
        assert process.wait(30) == 5
    finally:
        process.kill()
        os.close(master)


def test_A33_docker_exec_finds_what_e_gave_and_nothing_of_the_targets(lab: Lab, bridge: Bridge, own_cli: Cli) -> None:
    with bridge(f"docker/{lab.target.name}", "-e", "MINE=for exec too") as app:
        assert app.run("sh", "-c", 'echo "$MINE"').out == "for exec too\n"
        assert "MINE=for exec too" in app.container.attrs["Config"]["Env"]
        assert f"LAB_PLAIN={ENVIRON['LAB_PLAIN']}" in app.probe("environ", pid=1)
        assert ENVIRON["LAB_PLAIN"] not in json.dumps(app.container.attrs), "the target's values are the app's own process's alone"
        (plan,) = own_cli.state.rglob("plan.json")
        assert "for exec too" not in plan.read_text()


@pytest.mark.parametrize(
    "options",
    [("-u", "65534:65534"), ("--read-only",), ("--cap-drop", "ALL"), ("--security-opt", "no-new-privileges"),
     ("-u", "1000", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--tmpfs", "/tmp")],
    ids=" ".join,
)  # fmt: skip
def test_A40_an_app_without_rights_is_bridged_all_the_same(lab: Lab, run, options: tuple[str, ...]) -> None:
    done = run("python3", "-c", PROBES, "who", json.dumps({"host": "server.lab.test"}), options=options)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["host"] == "server-host"
    assert seen["peer"] in (lab.target_ip, lab.target_ip6)


def test_A40_the_app_holds_no_right_of_ours(run) -> None:
    done = run("sh", "-c", "grep CapEff /proc/self/status; ls /run/mbridge /var/run/docker.sock /mbridge/root 2>/dev/null; true")
    assert done.stdout.split() == ["CapEff:", "00000000a80425fb"]  # the engine's own default set, without NET_ADMIN


def test_A33_options_of_docker_run_mean_what_they_mean_there(lab: Lab, run, tmp_path: Path) -> None:
    (tmp_path / "given").write_text("from the host")
    tmp_path.chmod(0o755)
    done = run(
        "sh", "-c", 'pwd; cat given; touch x 2>&1 | grep -o "Read-only"; id -u; df /scratch | tail -1 | cut -d" " -f1; echo $0 "$@"',
        "a b", options=("-v", f"{tmp_path}:/src:ro", "-w", "/src", "-u", "1234", "--tmpfs", "/scratch", "--memory", "200m"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["/src", "from the hostRead-only", "1234", "tmpfs", "a b"]


def test_A31_no_value_of_the_environment_stands_in_logs_or_the_containers_record(lab: Lab, own_cli: Cli) -> None:
    """Whoever may `docker inspect` the app must not read the target's secrets there, nor in our state folder."""
    secret = ENVIRON["LAB_PLAIN"]
    process = own_cli.start("run", "--network", lab.outside, f"docker/{lab.target.name}", lab.programs_image, *IDLE)
    try:
        status = eventually(
            lambda: own_cli.session(f"docker/{lab.target.name}"), until=lambda one: bool(one) and one["state"] == "ready", limit_s=40
        )
        from tests.lab.boxes import of_session

        for container in of_session(lab.client, status["id"]):
            assert secret not in json.dumps(container.attrs), container.name
            assert secret.encode() not in container.logs(), container.name
        for path in own_cli.state.rglob("*"):
            assert not path.is_file() or secret.encode() not in path.read_bytes(), path
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)

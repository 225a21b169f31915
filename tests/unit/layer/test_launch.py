"""layer/launch.c under AddressSanitizer and UndefinedBehaviorSanitizer: what the program that it starts finds in its environment."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SOURCE = Path(__file__).parents[3] / "layer" / "launch.c"
WARNINGS = ("-std=c11", "-Wall", "-Wextra", "-Werror")
SANITIZERS = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
# No look for leaks: the environment lies in the file's bytes, which are the program's until it execs or ends.
INHERITED = {"PATH": "/usr/bin:/bin", "HOME": "/root", "LANG": "C", "ASAN_OPTIONS": "detect_leaks=0"}

Launch = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is missing")
    made = tmp_path_factory.mktemp("launch") / "launch"
    subprocess.run(["gcc", *WARNINGS, *SANITIZERS, "-o", str(made), str(SOURCE)], check=True, timeout=60)
    return made


@pytest.fixture
def launch(program: Path, tmp_path: Path) -> Launch:
    def run(entries: bytes | None, *command: str) -> subprocess.CompletedProcess[bytes]:
        file = tmp_path / "env"
        if entries is not None:
            file.write_bytes(entries)
        words = [str(program), str(file), "--", *(command or ("env", "-0"))]
        return subprocess.run(words, env=INHERITED, capture_output=True, timeout=20, check=False)

    return run


def environment(ran: subprocess.CompletedProcess[bytes]) -> dict[bytes, bytes]:
    assert ran.returncode == 0, ran.stderr.decode()
    return dict(entry.split(b"=", 1) for entry in ran.stdout.split(b"\0") if entry)


def entries(*lines: bytes) -> bytes:
    return b"\0".join(lines) + b"\0"


def test_the_environment_is_what_the_file_says_and_nothing_else(launch: Launch) -> None:
    assert environment(launch(entries(b"A=1", b"PATH=/usr/bin:/bin"))) == {b"A": b"1", b"PATH": b"/usr/bin:/bin"}


def test_A31_values_keep_every_byte(launch: Launch) -> None:
    value = bytes(range(1, 256))
    found = environment(launch(entries(b"+PATH", b"A=" + value, b"B=two\nlines=1\n")))
    assert (found[b"A"], found[b"B"]) == (value, b"two\nlines=1\n")


def test_a_plus_takes_over_all_or_one_and_the_later_entry_wins(launch: Launch) -> None:
    assert environment(launch(entries(b"HOME=/x", b"+"))) == {name.encode(): value.encode() for name, value in INHERITED.items()}
    assert environment(launch(entries(b"+", b"HOME=/x", b"-LANG")))[b"HOME"] == b"/x"
    assert b"LANG" not in environment(launch(entries(b"+", b"-LANG")))
    assert environment(launch(entries(b"+PATH", b"+NOT_SET", b"A=1", b"A=2"))) == {b"PATH": b"/usr/bin:/bin", b"A": b"2"}


def test_a_name_may_begin_like_a_directive(launch: Launch) -> None:
    assert environment(launch(entries(b"+PATH", b"-x=1", b"+y=2", b"@z=3"))) == {
        b"PATH": b"/usr/bin:/bin",
        b"-x": b"1",
        b"+y": b"2",
        b"@z": b"3",
    }


def test_what_is_neither_is_passed_over_and_the_last_nul_may_be_missing(launch: Launch) -> None:
    assert environment(launch(b"+PATH\0\0=odd\0nothing\0@24x80\0@x\0-\0A=1")) == {b"PATH": b"/usr/bin:/bin", b"A": b"1"}


def test_the_program_is_found_by_the_new_path(launch: Launch, tmp_path: Path) -> None:
    script = tmp_path / "only-here"
    script.write_text("#!/bin/sh\necho found")
    script.chmod(0o755)
    assert launch(entries(b"PATH=" + os.fsencode(tmp_path)), "only-here").stdout == b"found\n"


@pytest.mark.parametrize(
    ("content", "command", "code", "said"),
    [
        (entries(b"+"), ("no-such-program",), 127, b"No such file or directory"),
        (entries(b"+"), ("/etc/passwd",), 126, b"Permission denied"),
        (entries(b"A=" + b"x" * (200 << 10), b"+"), ("env",), 126, b"Argument list too long"),
        (None, ("env",), 125, b"No such file or directory"),
        (bytes((16 << 20) + 1), ("env",), 125, b"File too large"),
    ],
)
def test_exit_codes_are_docker_runs(launch: Launch, content: bytes | None, command: tuple[str, ...], code: int, said: bytes) -> None:
    ran = launch(content, *command)
    assert ran.returncode == code, ran.stderr.decode()
    assert ran.stderr.startswith(b"mbridge: launch: ")
    assert said in ran.stderr


def test_a_wrong_call_says_how_it_is_called(program: Path) -> None:
    ran = subprocess.run([str(program), "file", "env"], env=INHERITED, capture_output=True, timeout=20, check=False)
    assert (ran.returncode, ran.stderr) == (125, b"mbridge: launch: usage: launch ENVFILE -- PROGRAM [ARGUMENT...]\n")


def test_the_program_gets_no_descriptor_of_ours(launch: Launch) -> None:
    assert launch(entries(b"+"), "sh", "-c", "ls /proc/self/fd | wc -l").stdout.strip() == b"4"  # stdio and ls's own


NAMES = st.sampled_from([b"A", b"B", b"HOME", b"LANG", b"-x", b"+", b""])
VALUES = st.binary(max_size=12).map(lambda value: value.replace(b"\0", b""))
ENTRIES = st.one_of(
    st.builds(lambda name, value: name + b"=" + value, NAMES, VALUES),
    st.builds(lambda sign, name: sign + name, st.sampled_from([b"+", b"-", b"@", b""]), st.one_of(NAMES, VALUES)),
)


def model(lines: list[bytes]) -> dict[bytes, bytes]:
    """The header of launch.c, in Python."""
    found: dict[bytes, bytes] = {}
    inherited = {os.fsencode(name): os.fsencode(value) for name, value in INHERITED.items()}
    for line in lines:
        if line[:1] != b"=" and b"=" in line[1:]:
            name, value = line[:1] + line[1:].split(b"=", 1)[0], line[1:].split(b"=", 1)[1]
            found[name] = value
        elif line == b"+":
            found |= inherited
        elif line.startswith(b"+"):
            found |= {name: value for name, value in inherited.items() if name == line[1:]}
        elif line.startswith(b"-") and b"=" not in line:
            found.pop(line[1:], None)
    return found


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])  # each example writes its own file
@given(lines=st.lists(ENTRIES, max_size=12))
def test_any_file_gives_the_environment_that_the_header_promises(launch: Launch, lines: list[bytes]) -> None:
    assert environment(launch(entries(*lines, b"PATH=/usr/bin:/bin"))) == model([*lines, b"PATH=/usr/bin:/bin"])

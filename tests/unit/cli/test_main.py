"""The entry point: help, unknown words, exit codes, and that it comes at once and everywhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest

import bridge
from bridge.cli.main import COMMANDS, cli
from bridge.errors import BridgeError, ClusterError, HostError, LinkError, SpecError
from tests.unit.cli.fakes import FakeWiring, mbridge


def all_commands() -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    ctx = click.Context(cli)
    for name in COMMANDS:
        command = cli.get_command(ctx, name)
        found.append((name,))
        if isinstance(command, click.Group):
            found += [(name, inner) for inner in command.commands]
    return found


@pytest.mark.parametrize("words", all_commands(), ids=" ".join)
def test_every_help_teaches_with_an_example(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    ran = mbridge(*words, "--help")
    text = capsys.readouterr().out
    assert ran.code == 0
    assert f"mbridge {' '.join(words)}" in text.partition("Examples:")[2]


def test_the_help_lists_every_command_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert mbridge("--help").code == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in COMMANDS)


def test_a_command_is_called_what_the_table_calls_it() -> None:
    ctx = click.Context(cli)
    assert {name: command.name for name in COMMANDS if (command := cli.get_command(ctx, name))} == {name: name for name in COMMANDS}


@pytest.mark.parametrize("words", all_commands(), ids=" ".join)
def test_every_option_says_what_it_does(words: tuple[str, ...]) -> None:
    command: click.Command | None = cli
    for word in words:
        assert isinstance(command, click.Group)
        command = command.get_command(click.Context(command), word)
    assert command is not None
    mute = [one.name for one in command.params if isinstance(one, click.Option) and not one.help]
    assert mute == []


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert mbridge("--version").code == 0
    assert capsys.readouterr().out == f"mbridge {bridge.__version__}\n"


def test_an_unknown_command_names_the_nearest() -> None:
    ran = mbridge("stauts")
    assert ran.code == 2
    assert ran.err.startswith("mbridge: error: no command 'stauts'; did you mean status?\n")


def test_an_unknown_option_names_the_nearest() -> None:
    ran = mbridge("ls", "--jsn")
    assert ran.code == 2
    assert ran.err == "mbridge: error: no option --jsn; did you mean --json?\nmbridge: hint: mbridge ls --help\n"


def test_no_words_at_all_show_the_help() -> None:
    ran = mbridge()
    assert ran.code == 2
    assert "Commands:" in ran.out + ran.err


@pytest.mark.parametrize(
    ("failure", "code"), [(SpecError("x"), 2), (HostError("x"), 3), (ClusterError("x"), 4), (LinkError("x"), 5), (BridgeError("x"), 1)]
)
def test_a_failure_ends_with_the_code_of_its_kind(failure: BridgeError, code: int) -> None:
    ran = mbridge("ls", wiring=FakeWiring(failure=failure))
    assert ran.code == code
    assert ran.err == "mbridge: error: x\n"


def test_ctrl_c_ends_with_130_and_no_traceback() -> None:
    ran = mbridge("ls", wiring=FakeWiring(failure=KeyboardInterrupt()))
    assert (ran.code, ran.err) == (130, "")


def test_a_bug_is_one_line_and_its_traceback_goes_to_a_file_without_the_words_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    ran = mbridge("ls", "--docker-context", "s3cret", wiring=FakeWiring(failure=KeyError("oops")))
    assert ran.code == 1
    assert "this is a fault of mbridge itself: KeyError: 'oops'" in ran.err
    assert "Traceback" not in ran.err
    written = (tmp_path / "mbridge" / "fault.log").read_text()
    assert "KeyError: 'oops'" in written
    assert "s3cret" not in written


def test_verbose_and_quiet_stand_before_or_after_the_command() -> None:
    assert mbridge("--quiet", "ls").err == mbridge("ls", "--quiet").err == ""
    assert mbridge("ls").err != ""


# What a macOS machine has not: the Linux libraries of bridge and agent.
_ELSEWHERE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"pyroute2", "nftables", "uvloop"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import asyncio, os, socket, sysconfig, urllib.request, zoneinfo  # the standard library asks for the platform too
sysconfig.get_config_vars()
for name in ("AF_NETLINK", "AF_PACKET", "SO_MARK", "SO_BINDTODEVICE"):
    if hasattr(socket, name):
        delattr(socket, name)
for name in ("memfd_create", "eventfd", "setns", "unshare", "pidfd_open"):
    if hasattr(os, name):
        delattr(os, name)
sys.platform = "darwin"
import importlib, pathlib, bridge.cli
for file in sorted(pathlib.Path(bridge.cli.__file__).parent.glob("*.py")):
    importlib.import_module("bridge.cli." + file.stem)
print("imported")
"""


def test_the_command_line_imports_where_pyroute2_and_linux_do_not_exist() -> None:
    done = subprocess.run([sys.executable, "-c", _ELSEWHERE], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("imported\n", "")


def test_the_help_imports_nothing_heavy() -> None:
    heavy = ["asyncio", "asyncssh", "docker", "kubernetes", "pydantic", "rich", "ruamel", "dns", "aiohttp", "requests", "pyroute2"]
    program = f"import sys; from bridge.cli.main import run; run(['--help']); print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_reader_that_has_seen_enough_is_no_fault_of_ours() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "bridge.cli.main", "completion", "fish"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(20) == 1

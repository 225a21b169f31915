"""What ssh is asked to do, and what is made of its words. A real sshd: tests/container/test_engine_behind_ssh.py."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from bridge.adapters.docker.endpoint import Endpoint
from bridge.adapters.docker.wire import Wire
from bridge.errors import EngineUnavailable

# Plays ssh: notes its words, then does what the test has written for `-O`, for `-f` and for everything else.
_SSH = """#!{python}
import json, os, sys
words = sys.argv[1:]
with open("{folder}/asked", "a") as asked:
    print(json.dumps(words), file=asked)
kind = "check" if "-O" in words else "login" if "-f" in words else "dial"
plan = json.load(open("{folder}/plan"))[kind]
print(plan["says"], file=sys.stderr)
if plan.get("serves"):
    os.read(0, 65536)
    body = b'{{"ApiVersion": "1.45"}}'
    os.write(1, b"HTTP/1.1 200 OK\\r\\nContent-Type: application/json\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body) + body)
sys.exit(plan["code"])
"""
NO, YES = {"says": "", "code": 255}, {"says": "", "code": 0}
SERVES = {"says": "", "code": 0, "serves": True}


class Ssh:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.plan(check=NO, login=YES, dial=SERVES)

    def plan(self, **kinds: object) -> None:
        (self._folder / "plan").write_text(json.dumps(kinds))

    def asked(self) -> list[list[str]]:
        return [json.loads(line) for line in (self._folder / "asked").read_text().splitlines()]


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ssh:
    script = tmp_path / "bin" / "ssh"
    script.parent.mkdir()
    script.write_text(_SSH.format(python=sys.executable, folder=tmp_path))
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(script.parent))
    return Ssh(tmp_path)


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A short path: a socket's has 104 bytes."""
    with tempfile.TemporaryDirectory(prefix="mbt-") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield Path(folder)


def _version(url: str, times: int = 1) -> list[object]:
    async def ask() -> list[object]:
        wire = Wire(Endpoint(url, "DOCKER_HOST"))
        return [await wire.request("GET", "/version", timeout_s=20) for _ in range(times)]

    return asyncio.run(ask())


def _options(words: list[str]) -> dict[str, str]:
    return dict(word.split("=", 1) for at, word in enumerate(words) if words[at - 1] == "-o")


def test_one_login_serves_all_connections(ssh: Ssh, runtime: Path) -> None:
    assert _version("ssh://me@box:2222", times=3) == [{"ApiVersion": "1.45"}] * 3
    check, login, *dials = ssh.asked()
    there = ["-l", "me", "-p", "2222", "--", "box"]
    assert (check[-8:], login[-8:]) == (["-O", "check", *there], ["-f", "-N", *there])
    assert [words[-4:] for words in dials] == [["box", "docker", "system", "dial-stdio"]] * 3
    paths = {_options(words)["ControlPath"] for words in (check, login, *dials)}
    assert len(paths) == 1
    assert Path(paths.pop()).parent.parent == runtime


def test_a_master_that_is_there_is_used(ssh: Ssh, runtime: Path) -> None:
    ssh.plan(check=YES, login=NO, dial=SERVES)
    _version("ssh://box")
    assert not [words for words in ssh.asked() if "-f" in words]


def test_connections_never_ask_on_the_terminal(ssh: Ssh, runtime: Path) -> None:
    _version("ssh://box")
    assert all(_options(words)["BatchMode"] == "yes" for words in ssh.asked() if "dial-stdio" in words)


def test_a_path_names_the_socket_at_the_other_end(ssh: Ssh, runtime: Path) -> None:
    _version("ssh://box/run/user/1000/docker.sock")
    assert ssh.asked()[-1][-6:] == ["box", "docker", "--host", "unix:///run/user/1000/docker.sock", "system", "dial-stdio"]


def _of_others(runtime: Path) -> None:
    (runtime / "mbridge-ssh-0").mkdir(mode=0o777)
    (runtime / "mbridge-ssh-0").chmod(0o777)


def _a_link(runtime: Path) -> None:
    (runtime / "elsewhere").mkdir(mode=0o700)
    (runtime / "mbridge-ssh-0").symlink_to(runtime / "elsewhere")


@pytest.mark.parametrize("spoil", [_of_others, _a_link])
def test_a_folder_that_others_may_write_to_holds_no_socket(
    ssh: Ssh, runtime: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None]
) -> None:
    monkeypatch.setattr("os.getuid", lambda: 0)
    spoil(runtime)
    _version("ssh://box")
    (dial,) = ssh.asked()
    assert "ControlPath" not in _options(dial)


def test_a_path_too_long_for_a_socket_has_every_connection_log_in(ssh: Ssh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 80)
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    _version("ssh://box")
    (dial,) = ssh.asked()
    assert "ControlMaster" not in _options(dial)


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ({"login": {"says": "Warning: noise\nssh: connect to host box port 22: Connection refused", "code": 255}}, "connect to host box"),
        ({"dial": {"says": "bash: line 1: docker: command not found", "code": 127}}, "docker: command not found"),
    ],
)
def test_why_it_failed_is_told_in_the_last_words_of_the_process(ssh: Ssh, runtime: Path, plan: dict[str, object], said: str) -> None:
    ssh.plan(**{"check": NO, "login": YES, "dial": SERVES, **plan})
    with pytest.raises(EngineUnavailable, match=said) as told:
        _version("ssh://me@box:2222")
    assert told.value.message.startswith("the engine at ssh://me@box:2222 (DOCKER_HOST) cannot be reached: ")
    assert told.value.hint == "ssh -l me -p 2222 box docker version"


def test_a_login_that_failed_is_tried_again(ssh: Ssh, runtime: Path) -> None:
    async def twice() -> object:
        wire = Wire(Endpoint("ssh://box"))
        ssh.plan(check=NO, login={"says": "No route to host", "code": 255}, dial=SERVES)
        with pytest.raises(EngineUnavailable, match="No route to host"):
            await wire.request("GET", "/version", timeout_s=20)
        ssh.plan(check=NO, login=YES, dial=SERVES)
        return await wire.request("GET", "/version", timeout_s=20)

    assert asyncio.run(twice()) == {"ApiVersion": "1.45"}


def test_without_ssh_it_says_what_to_install(runtime: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineUnavailable, match="needs OpenSSH's client") as told:
        _version("ssh://box")
    assert told.value.hint == "install openssh-client"

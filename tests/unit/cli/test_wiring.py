"""The real wiring, as far as it goes without an engine: sessions on disk, options that cannot be read, no engine at all."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace

import docker.errors
import pytest

from bridge.cli import sessions
from bridge.cli.main import Caller, run
from bridge.cli.ui import Ui
from bridge.cli.wiring import Wiring
from bridge.model.plan import Plan
from tests.unit.cli.fakes import Ran, Stream, status


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    for name in ("KUBECONFIG", "DOCKER_CONTEXT"):
        monkeypatch.delenv(name, raising=False)


def mbridge(*words: str) -> Ran:
    out, err = Stream(), Stream()
    code = run(words, Caller(Ui(out, err, environ={}), Wiring, {}))
    return Ran(code, out.getvalue(), err.getvalue(), None)  # type: ignore[arg-type]  # no fake here


def session(name: str = "kqzwtb") -> sessions.SessionFolder:
    folder = sessions.SessionFolder(sessions.root() / name)
    folder.path.mkdir()
    folder.write_status(status(id=name))
    return folder


def test_status_is_what_the_host_process_wrote_last() -> None:
    with session().lock():
        shown = json.loads(mbridge("status", "--json").out)
    assert [(one["id"], one["state"], one["why"]) for one in shown] == [("kqzwtb", "ready", None)]


def test_status_of_a_session_whose_host_process_is_gone_says_so_and_what_to_do() -> None:
    session()
    out = mbridge("status").out
    assert "failed" in out
    assert "its host process is gone; `mbridge up` takes it over, `mbridge down` removes it" in out


def test_a_folder_that_cannot_be_read_hides_no_other_session() -> None:
    (session("aaaaaa").path / "status.json").write_text("{")
    session("bbbbbb")
    shown = json.loads(mbridge("status", "--json").out)
    assert [(one["id"], one["state"]) for one in shown] == [("aaaaaa", "failed"), ("bbbbbb", "failed")]
    assert "mbridge down" in shown[0]["why"]


def test_A34_down_removes_what_a_dead_session_left_and_twice_is_fine() -> None:
    session()
    assert mbridge("down").code == 0
    assert sessions.all_sessions() == []
    assert mbridge("down").code == 0


def test_a_session_that_cannot_be_undone_keeps_no_other_from_it() -> None:
    (session("aaaaaa").path / "plan.json").write_text("{")
    session("bbbbbb")
    ran = mbridge("down", "aaaaaa", "bbbbbb")
    assert ran.code == 7
    assert "plan is damaged" in ran.err
    assert "cannot be removed: no engine" in ran.err
    assert "bbbbbb: undone" in ran.err
    assert [folder.id for folder in sessions.all_sessions()] == ["aaaaaa"]


@pytest.mark.parametrize("where", [{}, {"endpoint": {"url": "unix:///nowhere/at/all.sock"}}])
def test_logs_of_a_forward_which_has_no_engine_of_its_own(where: dict[str, object]) -> None:
    folder = session()
    folder.save(Plan("kqzwtb", "docker/x", "forward", "", {}, where))
    folder.log.write_text("INFO linked\n")
    ran = mbridge("logs", "--part", "host")
    assert (ran.code, ran.out) == (0, "host | INFO linked\n")
    assert mbridge("logs", "--part", "agent").code == (3 if where else 0)


def test_diagnose_takes_the_records_of_all_sessions() -> None:
    session().log.write_text("INFO linked\n")
    assert Wiring().records()["sessions/kqzwtb/log"] == "INFO linked\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-p", "0:80"], "-p 0:80: ports are 1 to 65535"),
        (["-p", "80:70000"], "-p 80:70000: ports are 1 to 65535"),
        (["-p", "x"], "-p x: not [IP:][PORT:]PORT"),
        (["-v", "a:b"], "-v a:b"),
        (["-m", "lots"], "--memory lots: not a size"),
        (["--cpus", "few"], "--cpus few: not a number"),
        (["--env-file", "absent.env"], "--env-file absent.env: no such file"),
        (["-e", "=x"], "-e '=x': not a name"),
        (["--add-host", "db"], "--add-host db: not NAME:ADDRESS"),
        (["--add-host", "db:there"], "--add-host db:there: 'there' is no IP address"),
        (["--network", "host"], "--network host: the app gets a network namespace of its own"),
        (["--tmpfs", "run"], "--tmpfs run"),
    ],
)
def test_an_option_of_the_app_that_cannot_be_read_is_told_before_an_engine_is_asked(words: list[str], said: str) -> None:
    for dry in ([], ["--dry-run"]):
        ran = mbridge("run", *dry, *words, "docker/x", "img")
        assert ran.code == 125
        assert said in ran.err
        assert "no engine" not in ran.err


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["ls"], 3),
        (["run", "docker/x", "img"], 125),
        (["env", "docker/x"], 3),
        (["forward", "docker/x", "0:80"], 3),
        (["images", "ls"], 3),
        (["images", "build"], 3),
        (["up", "docker/x", "--config", "m.yaml"], 3),
        (["up", "-d", "docker/x", "--config", "m.yaml"], 3),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_no_engine_is_one_line_and_a_hint_and_nothing_is_left(words: list[str], code: int) -> None:
    Path("m.yaml").write_text("app: {image: img}\n")
    ran = mbridge(*words)
    assert ran.code == code
    assert ran.err.startswith("mbridge: error: no engine: ")
    assert ran.err.splitlines()[1].startswith("mbridge: hint: ")
    assert len(ran.err.splitlines()) == 2
    assert sessions.all_sessions() == []


def test_doctor_without_an_engine_says_which_one_was_tried() -> None:
    ran = mbridge("doctor")
    assert ran.code == 3
    assert "✗ engine      no engine: " in ran.out
    assert "(DOCKER_HOST)" in ran.out


class Stock:
    """docker-py's low-level calls on an engine that has one old image of ours, which may have begun to be used."""

    def __init__(self, refuses: bool) -> None:
        self.api, self.kept, self.refuses = self, ["mbridge-agent:0"], refuses

    def containers(self, all: bool) -> list[dict[str, str]]:
        return []

    def images(self, filters: dict[str, str]) -> list[dict[str, object]]:
        labels = {"mbridge.image": "agent"}
        return [{"Id": "1", "RepoTags": [name], "Labels": labels, "Size": 9} for name in self.kept if filters["label"] in labels]

    def remove_image(self, name: str) -> None:
        if self.refuses:
            response = SimpleNamespace(status_code=409, reason="Conflict", url="")
            raise docker.errors.APIError("in use", response)  # type: ignore[arg-type]  # a fake
        self.kept.remove(name)

    def df(self) -> dict[str, int]:
        return {"LayersSize": 5_000_000 * len(self.kept)}


@pytest.mark.parametrize("refuses", [False, True])
def test_prune_removes_what_a_dry_run_has_named_and_says_how_much_that_gave(monkeypatch: pytest.MonkeyPatch, refuses: bool) -> None:
    stock = Stock(refuses)
    monkeypatch.setattr(Wiring, "_docker_py", lambda *_: contextlib.nullcontext(stock))
    dry = mbridge("images", "prune", "--dry-run")
    assert (dry.out, stock.kept) == ("mbridge-agent:0\n", ["mbridge-agent:0"])
    ran = mbridge("images", "prune")
    assert (ran.code, ran.out) == (0, "" if refuses else "mbridge-agent:0\n")
    assert ("prune: 0 images, 0 MB" if refuses else "prune: 1 image, 5 MB") in ran.err


def test_a_docker_context_that_does_not_exist_is_told() -> None:
    ran = mbridge("ls", "--docker-context", "far")
    assert ran.code == 2
    assert "no docker context is called 'far'" in ran.err

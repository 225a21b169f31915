"""`mbridge diagnose`: what a bug report needs is in the bundle, no secret is, and a bug does not keep it from being made."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import pytest

from bridge.errors import BridgeError
from tests.unit.cli.fakes import FakeWiring, mbridge, status


def unpacked(file: str) -> dict[str, str]:
    with tarfile.open(file) as tar:
        members = {name.removeprefix("mbridge-diagnose/"): tar.extractfile(name) for name in tar.getnames()}
        return {name: member.read().decode() for name, member in members.items() if member}


def test_diagnose_packs_what_a_report_needs_and_no_secret() -> None:
    Path("mbridge.yaml").write_text("target: docker/x\napp: {image: img, env: {TOKEN: hunter2}}\nenv: {set: {DB_PASSWORD: hunter2}}\n")
    files = {
        "sessions/kqzwtb/log": "INFO connected\nDEBUG Authorization: Bearer hunter2hunter2\n",
        "sessions/kqzwtb/plan.json": json.dumps({"steps": [{"body": {"Env": ["A=hunter2"], "Image": "img"}}]}),
    }
    ran = mbridge("diagnose", "--output", "d.tar.gz", wiring=FakeWiring(running=[status()], files=files))
    assert (ran.code, ran.out) == (0, "d.tar.gz\n")
    assert os.stat("d.tar.gz").st_mode & 0o077 == 0
    texts = unpacked("d.tar.gz")
    assert "docker/shop-api" in texts["status.json"]
    assert "INFO connected" in texts["sessions/kqzwtb/log"]
    assert "docker/x" in texts["config.json"]
    assert json.loads(texts["sessions/kqzwtb/plan.json"])["steps"][0]["body"]["Image"] == "img"
    assert "hunter2" not in "".join(texts.values())


def test_diagnose_works_where_much_does_not() -> None:
    Path("mbridge.yaml").write_text("nonsense: [\n")
    ran = mbridge("diagnose", wiring=FakeWiring(failure=BridgeError("state folder unreadable")))
    assert ran.code == 0
    assert "state folder unreadable" in unpacked(ran.out.strip())["status.json"]


def test_diagnose_overwrites_nothing() -> None:
    Path("d.tar.gz").write_text("mine")
    assert mbridge("diagnose", "--output", "d.tar.gz").code == 3
    assert Path("d.tar.gz").read_text() == "mine"


@pytest.mark.parametrize("failure", [RuntimeError("a bug"), KeyError("State"), OSError(28, "no space")])
def test_a_bug_in_one_part_is_written_in_its_place(failure: Exception) -> None:
    """The very command that the line about a bug names."""

    class Broken(FakeWiring):
        def records(self) -> dict[str, str]:
            raise failure

    ran = mbridge("diagnose", wiring=Broken(failure=failure))
    assert ran.code == 0
    found = unpacked(ran.out.strip())
    for name in ("status.json", "sessions.txt"):
        assert type(failure).__name__ in found[name]
        assert "Traceback" in found[name]
    assert "Python" in found["version.txt"]

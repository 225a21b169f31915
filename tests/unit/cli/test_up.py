"""`mbridge up` and `config`: what mbridge.yaml becomes, and where each value came from."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.unit.cli.fakes import mbridge

ONE = """\
target: docker/shop-api
app: {image: img, command: [python, -m, app], ports: ["8000:8000"], volumes: [".:/src", "data:/d"], env: {A: b}, workdir: /src}
env: {exclude: [AWS_*], set: {LOG_LEVEL: debug}}
"""
TWO = """\
target: docker/shop-api
agent: {ttl: 60}
apps:
  orders: {app: {image: orders}}
  web: {target: compose/shop/web, app: {image: web}, link: {via: exec}}
"""


def wishes(*words: str) -> list[tuple[str, str, str]]:
    ran = mbridge("up", *words)
    assert ran.code == 0, ran.err
    return [(wish.app_name, str(wish.target), wish.app.image) for wish in ran.wiring.asked[-1][1]]


def test_the_file_describes_the_app_and_what_joins_it() -> None:
    Path("mbridge.yaml").write_text(ONE)
    wish = mbridge("up").wish
    assert (str(wish.target), wish.app.image, wish.app.command) == ("docker/shop-api", "img", ("python", "-m", "app"))
    assert (wish.app.ports, wish.app.env, wish.app.workdir) == (("8000:8000",), ("A=b",), "/src")
    assert (wish.env.exclude, wish.env.set) == (("AWS_*",), {"LOG_LEVEL": "debug"})


def test_a_folder_that_begins_with_a_dot_is_meant_from_the_file() -> None:
    Path("deep").mkdir()
    Path("deep/other.yaml").write_text(ONE)
    wish = mbridge("up", "--config", "deep/other.yaml").wish
    assert wish.app.volumes == (f"{Path('deep').resolve()}:/src", "data:/d")


def test_several_apps_are_several_sessions_over_common_settings() -> None:
    Path("mbridge.yaml").write_text(TWO)
    assert wishes() == [("orders", "docker/shop-api", "orders"), ("web", "compose/shop/web", "web")]
    assert [wish.agent_ttl_s for wish in mbridge("up").wiring.asked[-1][1]] == [60, 60]


def test_names_pick_apps_and_a_target_replaces_the_files() -> None:
    Path("mbridge.yaml").write_text(TWO)
    assert wishes("web") == [("web", "compose/shop/web", "web")]
    assert wishes("docker/else", "orders") == [("orders", "docker/else", "orders")]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nope"], "mbridge.yaml has no app called nope"),
        (["docker/a", "docker/b"], "several targets: docker/a, docker/b"),
        (["--json"], "--json goes with --dry-run or -d"),
    ],
)
def test_what_cannot_be_meant_is_said(words: list[str], said: str) -> None:
    Path("mbridge.yaml").write_text(TWO)
    ran = mbridge("up", *words)
    assert ran.code == 2
    assert said in ran.err


def test_without_a_file_the_hint_makes_one() -> None:
    ran = mbridge("up")
    assert ran.code == 2
    assert "there is no mbridge.yaml here, and target and app.image are not set" in ran.err
    assert "hint: mbridge init" in ran.err


def test_a_file_without_what_is_needed_names_the_keys() -> None:
    Path("mbridge.yaml").write_text("apps: {web: {app: {command: [x]}}}\n")
    assert "mbridge.yaml: apps.web.target and apps.web.app.image are not set" in mbridge("up").err


def test_detached_prints_the_ids_when_ready() -> None:
    Path("mbridge.yaml").write_text(TWO)
    assert mbridge("up", "-d").out == "kqzwtb\nkqzwtb\n"
    assert json.loads(mbridge("up", "-d", "--json").out) == ["kqzwtb", "kqzwtb"]


def test_a_dry_run_shows_each_apps_plan() -> None:
    Path("mbridge.yaml").write_text(TWO)
    ran = mbridge("up", "--dry-run")
    assert ran.out.count("2 steps") == 2
    assert ran.wiring.asked == []


WRONG = """\
target: dokcer/x
app: {imgae: x, ports: ["0:80", "70000:1"]}
outgoing:
  rules:
    - {to: 10.0.0.0/33, verdict: direct}
    - {to: 10.0.0.0/8, verdict: drect}
"""


@pytest.mark.parametrize("words", [["config", "check"], ["up"], ["config", "show"]], ids=" ".join)
def test_all_faults_of_a_file_are_told_at_once_with_their_lines(words: list[str]) -> None:
    Path("mbridge.yaml").write_text(WRONG)
    ran = mbridge(*words)
    assert ran.code == 2
    for said in ("mbridge.yaml:1: target: ", "mbridge.yaml:2: unknown key 'imgae' in app; did you mean 'image'", "0 is no port",
                 "mbridge.yaml:2: app.ports[1]: 70000 is no port", "mbridge.yaml:5: ", "mbridge.yaml:6: outgoing.rules[1].verdict: 'drect'",
                 "did you mean 'direct'"):  # fmt: skip
        assert said in ran.err


def test_config_check_praises_a_good_file_and_misses_an_absent_one() -> None:
    assert mbridge("config", "check").code == 2
    Path("mbridge.yaml").write_text(TWO)
    ran = mbridge("config", "check")
    assert (ran.code, ran.err) == (0, "mbridge: mbridge.yaml is fine: 2 apps\n")


def test_config_show_says_where_each_value_came_from() -> None:
    Path("mbridge.yaml").write_text(ONE)
    ran = mbridge("config", "show", "--via", "exec", environ={"MBRIDGE_AGENT_TTL": "90"})
    origins = {line.split()[0]: " ".join(line.split()[-2:]) for line in ran.out.splitlines()}
    assert origins["link.via"].endswith("flag --via")
    assert origins["agent.ttl"].endswith("MBRIDGE_AGENT_TTL")
    assert origins["app.image"].endswith("mbridge.yaml:2")
    assert origins["env.set.LOG_LEVEL"].endswith("mbridge.yaml:3")
    assert "link.max_rate" not in origins


def test_config_show_as_json_with_the_defaults() -> None:
    Path("mbridge.yaml").write_text(TWO)
    shown = json.loads(mbridge("config", "show", "--all", "--json").out)
    assert shown["target"] == {"value": "docker/shop-api", "origin": "mbridge.yaml:1"}
    assert shown["link.via"] == {"value": "auto", "origin": "default"}
    assert shown["apps.web.link.via"] == {"value": "exec", "origin": "mbridge.yaml:5"}
    assert "apps.web.agent.ttl" not in shown  # the file's common value stands once


def test_config_schema_is_a_json_schema() -> None:
    assert json.loads(mbridge("config", "schema").out)["properties"]["target"]


def test_init_writes_a_file_that_up_takes() -> None:
    ran = mbridge("init", "compose/shop/api", "--image", "node:22", "--command", "sh -c 'npm start'")
    assert ran.code == 0, ran.err
    wish = mbridge("up").wish
    assert (str(wish.target), wish.app.image, wish.app.command) == ("compose/shop/api", "node:22", ("sh", "-c", "npm start"))
    assert mbridge("config", "check").code == 0


def test_inits_comments_are_valid_settings_too() -> None:
    mbridge("init", "docker/x")
    text = Path("mbridge.yaml").read_text()
    _, rest = text.split("\n", 1)
    Path("mbridge.yaml").write_text(re.sub(r"(?m)^( *)# ", r"\1", rest))
    ran = mbridge("config", "check")
    assert ran.code == 0, ran.err


def test_init_replaces_nothing_unless_told_to() -> None:
    Path("mbridge.yaml").write_text("mine")
    ran = mbridge("init", "docker/x")
    assert (ran.code, Path("mbridge.yaml").read_text()) == (2, "mine")
    assert "--force" in ran.err
    assert mbridge("init", "docker/x", "--force").code == 0


def test_init_refuses_what_is_no_target_and_writes_nothing() -> None:
    assert mbridge("init", "shop").code == 2
    assert not Path("mbridge.yaml").exists()


def test_init_says_what_is_wrong_with_a_command_or_a_folder() -> None:
    ran = mbridge("init", "docker/x", "--command", "it's")
    assert (ran.code, ran.err.splitlines()[0]) == (2, 'mbridge: error: --command "it\'s": no closing quotation')
    ran = mbridge("init", "docker/x", "--output", "no/such/folder.yaml")
    assert (ran.code, ran.err.splitlines()[0]) == (2, "mbridge: error: cannot write no/such/folder.yaml: no such file or directory")
    assert not Path("mbridge.yaml").exists()

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bridge.errors import SpecError
from bridge.model.config import Loaded, apps, load
from bridge.model.config_schema import schema
from bridge.model.rules import Verdict, parse_rule


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)

    def read(text: str, flags: dict[str, Any] | None = None, environ: dict[str, str] | None = None) -> Loaded:
        path = tmp_path / "mbridge.yaml"
        path.write_text(text)
        return load(path, flags or {}, environ or {})

    return read


@pytest.fixture
def faults(read: Any) -> Any:
    def faults(text: str, **more: Any) -> list[str]:
        with pytest.raises(SpecError) as caught:
            read(text, **more)
        assert caught.value.exit_code == 2
        return caught.value.message.splitlines()

    return faults


def test_without_a_file_everything_is_a_default() -> None:
    loaded = load(None, {}, {})
    assert (loaded.value.target, loaded.value.link.via, loaded.value.agent.ttl) == (None, "auto", 180)
    assert set(loaded.origin.values()) == {"default"}


def test_a_flag_beats_the_environment_beats_the_file_beats_the_default_and_each_says_so(read: Any) -> None:
    text = "target: docker/x\nlink:\n  via: exec\nagent: {ttl: 60}\nnamespace: shop\n"
    loaded = read(text, {"via": "direct", "context": None}, {"MBRIDGE_LINK_VIA": "auto", "MBRIDGE_AGENT_TTL": "90", "MBRIDGE_CONTEXT": ""})
    assert (loaded.value.link.via, loaded.value.agent.ttl, loaded.value.namespace) == ("direct", 90, "shop")
    keys = ("link.via", "agent.ttl", "namespace", "target", "context", "agent.kind")
    assert [loaded.origin[key] for key in keys] == [
        "flag --via",
        "MBRIDGE_AGENT_TTL",
        "mbridge.yaml:5",
        "mbridge.yaml:1",
        "default",
        "default",
    ]


def test_yaml_1_2_words_stay_words(read: Any) -> None:
    loaded = read(
        "files: {mode: off}\napp: {ports: [8080:22, 9090], user: 1000, cpus: 1.50, env: {ON: yes, N: 1, KEEP: null, D: 2024-01-01}}\n"
    )
    app = loaded.value.app
    assert loaded.value.files.mode == "off"
    assert (app.ports, app.user, app.cpus) == (("8080:22", "9090"), "1000", "1.50")
    assert app.env == ("ON=yes", "N=1", "KEEP", "D=2024-01-01")


def test_env_set_is_merged_by_name_and_lists_are_replaced(read: Any) -> None:
    text = "env:\n  exclude: [A]\n  set:\n    X: file\n    Y: file\n"
    loaded = read(text, {"env_set": ("X=a=b",), "env_exclude": ("B", "C")})
    assert loaded.value.env.set == {"X": "a=b", "Y": "file"}
    assert loaded.value.env.exclude == ("B", "C")
    assert (loaded.origin["env.set.X"], loaded.origin["env.set.Y"]) == ("flag --env-set", "mbridge.yaml:5")


def test_lists_of_the_environment_are_written_with_commas_or_as_yaml(read: Any) -> None:
    loaded = read(
        "",
        environ={
            "MBRIDGE_ENV_EXCLUDE": "A, B*",
            "MBRIDGE_OUTGOING_LOOPBACK": "[9092]",
            "MBRIDGE_OUTGOING_RULES": "[{to: x, verdict: deny}]",
        },
    )
    assert loaded.value.env.exclude == ("A", "B*")
    assert loaded.value.outgoing.loopback == (9092,)
    assert [parse_rule(rule).verdict for rule in loaded.value.rules] == [Verdict.DENY]


def test_apps_have_the_keys_beside_them_as_defaults_and_flags_hold_for_all(read: Any) -> None:
    text = """\
target: docker/shop
app: {workdir: /src}
env: {set: {A: all, B: all}}
apps:
  orders: {app: {image: python}}
  web:
    target: docker/web
    env: {set: {B: web}}
    link: {via: exec}
"""
    loaded = read(text, {"agent_image": "x/y"})
    found = apps(loaded)
    assert list(found) == ["orders", "web"]
    assert (found["orders"].target, found["orders"].app.image, found["orders"].app.workdir) == ("docker/shop", "python", "/src")
    assert (found["web"].target, found["web"].env.set, found["web"].link.via) == ("docker/web", {"A": "all", "B": "web"}, "exec")
    assert {config.agent.image for config in found.values()} == {"x/y"}
    assert (loaded.origin["apps.web.target"], loaded.origin["apps.orders.target"]) == ("mbridge.yaml:7", "mbridge.yaml:1")
    assert found["orders"].link.via == "auto"


def test_without_apps_the_file_describes_one_that_is_called_app(read: Any) -> None:
    loaded = read("app: {image: x}\n")
    assert apps(loaded) == {"app": loaded.value}


def test_all_faults_are_told_at_once_with_line_and_nearest_name(faults: Any) -> None:
    found = faults(
        """\
target: dcoker/x
nmespace: shop
app:
  imgae: x
  ports: ["8080:0", "70000", "9-8"]
  tty: maybe
outgoing:
  rules:
    - {to: 10.0.0.0/33, verdict: direct}
    - {to: x, verdict: dirct}
    - {two: x}
  loopback: [0, 70000]
link: 5
apps:
  web: {link: {vai: exec}}
"""
    )
    expected = [
        ("mbridge.yaml:1: ", "did you mean 'docker'"),
        ("mbridge.yaml:2: ", "unknown key 'nmespace'; did you mean 'namespace'"),
        ("mbridge.yaml:4: ", "unknown key 'imgae' in app; did you mean 'image'"),
        ("mbridge.yaml:5: ", "app.ports[0]: 0 is no port"),
        ("mbridge.yaml:5: ", "app.ports[1]: 70000 is no port"),
        ("mbridge.yaml:5: ", "ends before it begins"),
        ("mbridge.yaml:6: ", "app.tty: true or false is expected, not 'maybe'"),
        ("mbridge.yaml:9: ", "'10.0.0.0/33' is no network"),
        ("mbridge.yaml:10: ", "outgoing.rules[1].verdict: 'dirct' is none of cluster, direct, deny; did you mean 'direct'"),
        ("mbridge.yaml:11: ", "outgoing.rules[2].to: this key is missing"),
        ("mbridge.yaml:11: ", "unknown key 'two' in outgoing.rules[2]; did you mean 'to'"),
        ("mbridge.yaml:12: ", "outgoing.loopback[0]: 0 is no port"),
        ("mbridge.yaml:12: ", "outgoing.loopback[1]: 70000 is no port"),
        ("mbridge.yaml:13: ", "link: a mapping is expected, not 5"),
        ("mbridge.yaml:15: ", "unknown key 'vai' in apps.web.link; did you mean 'via'"),
    ]
    assert len(found) == len(expected)
    for line, (start, told) in zip(found, expected, strict=True):
        assert line.startswith(start)
        assert told in line


def test_a_bad_flag_or_variable_is_told_by_its_own_name(faults: Any) -> None:
    assert faults("", flags={"via": "exce"}) == [
        "flag --via: link.via: 'exce' is none of auto, direct, port-forward, exec; did you mean 'exec'"
    ]
    assert faults("", environ={"MBRIDGE_AGENT_TTL": "soon"}) == ["MBRIDGE_AGENT_TTL: agent.ttl: a whole number is expected, not 'soon'"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: [1\n", "mbridge.yaml:2: "),
        ("link: {via: exec}\nlink: {}\n", "mbridge.yaml:2: key 'link' stands twice (first in line 1)"),
        ("- a\n", "mbridge.yaml:1: a mapping of settings is expected"),
        ("a: !x 1\n", "mbridge.yaml:1: unknown tag"),
        ("a: &x [*x]\n", "mbridge.yaml:1: an alias that contains itself"),
        ("{}\n---\n{}\n", "mbridge.yaml:2: "),
        ("apps: [a]\n", "mbridge.yaml:1: apps: a mapping"),
        ("apps: {A B: {}}\n", "mbridge.yaml:1: apps: 'A B' is no name"),
        ("apps: {a: 5}\n", "mbridge.yaml:1: apps.a: a mapping"),
        ("[" * 600, "mbridge.yaml:1: nested too deeply"),
    ],
)
def test_a_broken_file_is_told_with_its_line(faults: Any, text: str, told: str) -> None:
    found = faults(text)
    assert len(found) == 1
    assert found[0].startswith(told)


def test_an_alias_bomb_is_refused_in_time(faults: Any) -> None:
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    assert "more than" in faults(bomb)[0]


def test_a_missing_file_or_one_that_is_no_text_is_told(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="does not exist"):
        load(tmp_path / "none.yaml", {}, {})
    (tmp_path / "raw.yaml").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(SpecError, match="not UTF-8"):
        load(tmp_path / "raw.yaml", {}, {})


DESIGN = """\
target: deploy/orders
namespace: shop
app: { image: python:3.12, command: [python, -m, orders], ports: ["8000:8000"], volumes: [".:/src"], workdir: /src }
outgoing: { rules: [ {to: "*.corp.example:443", verdict: direct}, {to: 169.254.169.254, verdict: deny} ], loopback: [9092] }
env: { exclude: [AWS_*], set: { LOG_LEVEL: debug } }
agent: { kind: auto, image: registry.example/mbridge-agent, ttl: 180, pull_policy: IfNotPresent }
link: { via: auto, max_rate: 16MB }
"""
LATER = """\
incoming: { mode: steal, ports: [8080:8000], fallback: target, http: {
  any: [ {header: "x-dev: ana"}, {all: [ {path: {prefix: /v2}}, {not: {method: GET}} ]} ] } }
files: { mode: read, rules: [ {path: /etc/orders/**, verdict: cluster}, {path: /data/**, map: /mnt/data} ] }
"""


def test_the_designs_example_is_understood(read: Any) -> None:
    config = read(DESIGN).value
    assert config.app.command == ("python", "-m", "orders")
    assert [parse_rule(rule).verdict for rule in config.rules] == [Verdict.DIRECT, Verdict.DENY]
    assert config.link.max_rate_bytes == 16_000_000


def test_what_is_not_built_yet_is_told_and_not_ignored(faults: Any) -> None:
    found = faults(DESIGN + LATER + "apps: {web: {outgoing: {unix: [/run/pg.sock]}}, api: {app: {devcontainer: .}}}\n")
    assert [line.split(": ")[:2] for line in found] == [
        ["mbridge.yaml:8", "apps.web.incoming.mode"],
        ["mbridge.yaml:10", "apps.web.files.mode"],
        ["mbridge.yaml:11", "apps.web.outgoing.unix"],
        ["mbridge.yaml:11", "apps.api.app.devcontainer"],
    ]
    assert all("not built yet" in line for line in found)
    assert "incoming.ports" in faults("incoming: {ports: [8080]}\n")[0]
    assert "flag --files" in faults("", flags={"files": "read"})[0]


@pytest.mark.parametrize(("text", "ports"), [("9092", (9092,)), ("9092, 80", (9092, 80)), ("[9092]", (9092,))])
def test_a_list_of_numbers_in_the_environment_is_written_with_commas_or_as_yaml(read: Any, text: str, ports: tuple[int, ...]) -> None:
    assert read("", environ={"MBRIDGE_OUTGOING_LOOPBACK": text}).value.outgoing.loopback == ports
    assert read("", environ={"MBRIDGE_ENV_EXCLUDE": "1, B*"}).value.env.exclude == ("1", "B*")


def test_what_a_helper_pod_may_be_given_is_understood_and_bounded(read: Any, faults: Any) -> None:
    agent = read("agent: {kind: pod, pull_secrets: [regcred], tolerations: [{operator: Exists}], annotations: {team: shop}}\n").value.agent
    assert agent.pull_secrets == ("regcred",)
    assert agent.tolerations == ({"operator": "Exists"},)
    assert agent.annotations == {"team": "shop"}
    assert "agent.deadline" in faults("agent: {deadline: 5}\n")[0]


def test_incoming_and_files_that_are_off_are_fine_with_all_their_keys(read: Any) -> None:
    read(LATER.replace("steal", "off").replace("read", "off"))


def test_matches_are_exact_or_one_pattern(faults: Any) -> None:
    mode = "incoming: {mode: off, http: "
    assert "exactly one of" in faults(mode + "{path: /a, method: GET}}")[0]
    assert "no regular expression" in faults(mode + "{path: {regex: '('}}}")[0]
    assert "{prefix: …}" in faults(mode + "{path: {prefix: /a, regex: b}}}")[0]


def test_the_schema_comes_from_the_same_model() -> None:
    made = schema()
    assert made["additionalProperties"] is False
    assert {"target", "app", "outgoing", "incoming", "files", "env", "agent", "link", "apps"} <= set(made["properties"])
    assert made["$defs"]["Link"]["properties"]["via"]["enum"] == ["auto", "direct", "port-forward", "exec"]
    assert "not" in made["$defs"]["HttpMatch"]["properties"]

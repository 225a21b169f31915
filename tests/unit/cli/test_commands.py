"""The commands that look and end: status, down, ls, env, forward, logs, doctor, images, completion."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bridge.cli.cmd_doctor import Check, kernel_checks
from bridge.cli.cmd_forward import Forward, parse_forward
from bridge.cli.looking import Listed, Where
from bridge.errors import EngineUnavailable, SpecError
from bridge.model.session import LinkStatus, State
from tests.unit.cli.fakes import FakeWiring, mbridge, status


def since(**ago: int) -> str:
    return (datetime.now(UTC) - timedelta(**ago)).strftime("%Y-%m-%dT%H:%M:%SZ")


# status


def test_status_shows_what_is_bridged_and_since_when() -> None:
    ran = mbridge("status", wiring=FakeWiring(running=[status(since=since(minutes=3))]))
    header, row = ran.out.splitlines()
    assert header.split() == ["SESSION", "TARGET", "STATE", "SINCE", "LINK", "AGENT", "PORTS"]
    assert row.split()[:3] == ["kqzwtb", "docker/shop-api", "ready"]
    assert " 3m 0" in row
    assert "direct up" in row
    assert row.endswith("8000:8000")


@pytest.mark.parametrize("handed", [True, False])
def test_status_says_whether_connections_are_handed_to_the_agent(handed: bool) -> None:
    wiring = FakeWiring(running=[status(handed=handed)])
    assert ("direct up handed" in mbridge("status", wiring=wiring).out) is handed
    assert json.loads(mbridge("status", "--json", wiring=wiring).out)[0]["handed"] is handed


def test_status_says_why_not_and_what_is_degraded_beneath_the_session() -> None:
    link = LinkStatus(None, "connecting", since(seconds=12))
    one = status(state=State.RECONNECTING, why="the target shop-api has stopped", link=link, warnings=("no NFQUEUE",), app="orders")
    text = mbridge("status", wiring=FakeWiring(running=[one, status(id="zzzzzz")])).out
    lines = text.splitlines()
    assert "reconnecting" in lines[1]
    assert "docker/shop-api (orders)" in lines[1]
    assert lines[2] == "  why: the target shop-api has stopped"
    assert lines[3].startswith("  the link is connecting since 1")
    assert lines[4] == "  warning: no NFQUEUE"
    assert lines[5].startswith("zzzzzz")


def test_status_as_json_is_the_published_list() -> None:
    shown = json.loads(mbridge("status", "--json", wiring=FakeWiring(running=[status()])).out)
    assert {name: shown[0][name] for name in ("id", "target", "state", "since", "why", "agent", "ports")} == {
        "id": "kqzwtb",
        "target": "docker/shop-api",
        "state": "ready",
        "since": "2026-03-01T09:30:00Z",
        "why": None,
        "agent": "mbridge-kqzwtb-agent",
        "ports": ["8000:8000"],
    }
    assert shown[0]["link"] == {"via": "direct", "state": "up", "since": "2026-03-01T09:30:00Z"}
    assert json.loads(mbridge("status", "--json").out) == []


def test_status_of_one_session_by_id_its_beginning_or_its_app() -> None:
    wiring = FakeWiring(running=[status(), status(id="zzzzzz", app="web")])
    for word in ("zzzzzz", "zz", "web"):
        assert [one["id"] for one in json.loads(mbridge("status", word, "--json", wiring=wiring).out)] == ["zzzzzz"]
    ran = mbridge("status", "nope", wiring=wiring)
    assert ran.code == 2
    assert "kqzwtb (docker/shop-api), zzzzzz (docker/shop-api)" in ran.err


def test_status_without_a_session_says_how_to_start_one() -> None:
    ran = mbridge("status")
    assert (ran.code, ran.out) == (0, "")
    assert "mbridge run" in ran.err


def test_watch_shows_each_change_once_until_ctrl_c() -> None:
    ready, broken = [status()], [status(state=State.FAILED, why="gone")]
    wiring = FakeWiring(pictures=[ready, ready, broken, broken], failure=KeyboardInterrupt())
    ran = mbridge("status", "--watch", "--json", "--interval", "0.1", wiring=wiring)
    assert [json.loads(line)[0]["state"] for line in ran.out.splitlines()] == ["ready", "failed"]
    assert ran.code == 130


def test_watch_elsewhere_than_on_a_terminal_is_silent_while_only_time_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 600, 60))
    monkeypatch.setattr("bridge.cli.cmd_status.ago", lambda seconds: f"{next(clock)}s")
    wiring = FakeWiring(pictures=[[status()], [status()], [status()]], failure=KeyboardInterrupt())
    assert mbridge("status", "--watch", "--interval", "0.1", wiring=wiring).out.count("kqzwtb ") == 1


def test_watch_draws_over_the_last_picture_on_a_terminal_only() -> None:
    for terminal in (True, False):
        wiring = FakeWiring(pictures=[[status()]], failure=KeyboardInterrupt())
        assert ("\x1b[H\x1b[J" in mbridge("status", "--watch", "--interval", "0.1", wiring=wiring, terminal=terminal).out) is terminal


def test_a_status_with_control_characters_moves_no_cursor() -> None:
    out = mbridge("status", wiring=FakeWiring(running=[status(why="\x1b[2J\nmbridge: all fine")])).out
    assert "\x1b" not in out
    assert "\\x1b[2J\\nmbridge: all fine" in out


# down


def test_down_ends_the_only_session() -> None:
    wiring = FakeWiring(running=[status()])
    assert mbridge("down", wiring=wiring).code == 0
    assert wiring.asked == [("down", ["kqzwtb"], False)]


def test_down_asks_which_where_there_are_several_and_ends_none() -> None:
    wiring = FakeWiring(running=[status(), status(id="zzzzzz")])
    ran = mbridge("down", wiring=wiring)
    assert (ran.code, wiring.asked) == (2, [])
    assert "mbridge down --all, or one of: kqzwtb (docker/shop-api), zzzzzz" in ran.err


def test_down_takes_ids_and_names_of_apps() -> None:
    wiring = FakeWiring(running=[status(app="orders"), status(id="zzzzzz", app="web")])
    mbridge("down", "web", wiring=wiring)
    mbridge("down", "kqzwtb", "zzzzzz", wiring=wiring)
    mbridge("down", "--all", wiring=wiring)
    assert wiring.asked == [("down", ["zzzzzz"], False), ("down", ["kqzwtb", "zzzzzz"], False), ("down", ["kqzwtb", "zzzzzz"], True)]


def test_A34_down_of_nothing_or_twice_is_fine() -> None:
    for words in (["down"], ["down", "kqzwtb"], ["down", "--all"]):
        ran = mbridge(*words)
        assert ran.code == 0
        assert "nothing to end" in ran.err


def test_down_of_all_takes_no_names() -> None:
    assert mbridge("down", "--all", "kqzwtb").code == 2


# ls


def test_ls_says_what_can_be_a_target_and_why_something_cannot() -> None:
    listed = [Listed("docker/web", "nginx", "Up 2 hours"), Listed("compose/shop/api", "api", "Exited (0)", "it does not run")]
    ran = mbridge("ls", wiring=FakeWiring(listed=listed))
    assert "docker/web        nginx  Up 2 hours\n" in ran.out
    assert "it does not run" in ran.out
    shown = json.loads(mbridge("ls", "compose", "--json", wiring=FakeWiring(listed=listed)).out)
    assert shown == [{"target": "compose/shop/api", "what": "api", "state": "Exited (0)", "why_not": "it does not run"}]


def test_ls_looks_where_flags_and_settings_say() -> None:
    Path("mbridge.yaml").write_text("namespace: shop\n")
    ran = mbridge("ls", "deploy", "--context", "prod", "--docker-context", "far", environ={"MBRIDGE_KUBECONFIG": "k.yaml"})
    assert ran.wiring.asked == [("targets", "deploy", Where("far", "shop", "prod", "k.yaml"))]


def test_doctor_prints_the_role_to_ask_for_and_looks_at_nothing() -> None:
    ran = mbridge("doctor", "deploy/orders", "-n", "shop", "--role")
    assert (ran.code, ran.wiring.asked) == (0, [])
    assert "kind: Role" in ran.out
    assert "namespace: shop" in ran.out
    assert "deployments" in ran.out
    assert "statefulsets" not in ran.out
    assert "statefulsets" in mbridge("doctor", "--role").out
    assert mbridge("doctor", "docker/x", "--role").code == 2


def test_doctor_names_the_kubeconfigs_namespace_in_the_role_where_none_is_given() -> None:
    ran = mbridge("doctor", "deploy/orders", "--role")
    assert "namespace: of-the-context}" in ran.out
    assert "kubectl create rolebinding mbridge --role=mbridge --user=NAME -n of-the-context" in ran.err


def test_doctor_looks_at_the_cluster_where_a_namespace_is_named_and_at_the_machine_alone_else() -> None:
    Path("mbridge.yaml").write_text("namespace: [\n")
    assert mbridge("doctor").wiring.asked == [("checks", None, Where())], "a file that cannot be read keeps nobody from it"
    Path("mbridge.yaml").unlink()
    assert mbridge("doctor", "-n", "shop").wiring.asked == [("checks", None, Where(namespace="shop"))]
    ((_, wish, where),) = mbridge("doctor", "deploy/x", "-n", "shop", "--context", "prod").wiring.asked
    assert (str(wish.target), where) == ("deploy/x", Where(None, "shop", "prod", None))


@pytest.mark.parametrize(
    ("word", "said", "hint"),
    [
        ("dokcer", "'dokcer' is no kind of target; did you mean docker?", "kinds are docker, compose, pod, deploy, "),
        ("node", "'node' is no kind of target", "kinds are docker, compose, pod, deploy, "),
        ("deploy/web", "'deploy/web' is a target, and ls lists all of a kind", "mbridge doctor deploy/web looks at one"),
    ],
)
def test_ls_of_what_is_no_kind_says_what_one_is(word: str, said: str, hint: str) -> None:
    ran = mbridge("ls", word)
    assert ran.code == 2
    assert ran.err.startswith(f"mbridge: error: {said}\nmbridge: hint: {hint}")


@pytest.mark.parametrize(
    ("word", "kind"), [("deployments", "deploy"), ("Deployment", "deploy"), ("po", "pod"), ("cj", "cronjob"), ("svc", "svc")]
)
def test_ls_knows_kinds_by_kubectls_names_too(word: str, kind: str) -> None:
    ran = mbridge("ls", word)
    assert ran.wiring.asked == [("targets", kind, Where())]
    assert f"no {kind} in this namespace" in ran.err


def test_no_engine_ends_with_3_and_one_hint() -> None:
    ran = mbridge("ls", wiring=FakeWiring(failure=EngineUnavailable("no engine: /var/run/docker.sock does not exist", hint="start Docker")))
    assert ran.code == 3
    assert ran.err == "mbridge: error: no engine: /var/run/docker.sock does not exist\nmbridge: hint: start Docker\n"


# env

ENVIRON = b"PATH=/bin\0GREETING=hello world\0EMPTY=\0MULTI=a\nb\0HTTP_PROXY=http://p\0"


def test_A31_env_is_the_targets_less_what_would_break_programs_here() -> None:
    ran = mbridge("env", "docker/x", "--json", wiring=FakeWiring(env=ENVIRON))
    assert json.loads(ran.out) == {"GREETING": "hello world", "EMPTY": "", "MULTI": "a\nb"}


def test_env_includes_excludes_and_sets() -> None:
    words = ["--env-include", "HTTP_*", "--env-exclude", "M*", "--env-set", "NEW=1", "--format", "shell"]
    out = mbridge("env", "docker/x", *words, wiring=FakeWiring(env=ENVIRON)).out
    assert out == "export GREETING='hello world'\nexport EMPTY=''\nexport HTTP_PROXY=http://p\nexport NEW=1\n"


def test_env_knows_four_forms() -> None:
    assert mbridge("env", "docker/x", wiring=FakeWiring(env=b"A=b c\0")).out == "A='b c'\n"
    assert mbridge("env", "docker/x", "--format", "compose", wiring=FakeWiring(env=b"A=$b\0")).out == 'environment:\n  "A": "$$b"\n'
    assert mbridge("env", "docker/x", "--format", "yaml").code == 2


# forward


@pytest.mark.parametrize(
    ("text", "forward"),
    [
        ("8080", Forward("127.0.0.1", 8080, "127.0.0.1", 8080)),
        ("18080:8080", Forward("127.0.0.1", 18080, "127.0.0.1", 8080)),
        ("db:5432", Forward("127.0.0.1", 5432, "db", 5432)),
        ("0:db:5432", Forward("127.0.0.1", 0, "db", 5432)),
        ("15432:db.shop.svc:5432", Forward("127.0.0.1", 15432, "db.shop.svc", 5432)),
        ("[fd00::1]:80", Forward("127.0.0.1", 80, "fd00::1", 80)),
        ("8080:[fd00::1]:80", Forward("127.0.0.1", 8080, "fd00::1", 80)),
    ],
)
def test_a_forward_is_here_host_port(text: str, forward: Forward) -> None:
    assert parse_forward(text, "127.0.0.1") == forward


@pytest.mark.parametrize(
    "text", ["", "0", "70000", "x", "1:2:3", "a:b", ":80:", "db:0", "-1", "8080:db:", "[::1]", "[::1:80", "²", "1:db:2:3"]
)
def test_what_is_no_forward_is_refused(text: str) -> None:
    with pytest.raises(SpecError):
        parse_forward(text, "127.0.0.1")


def test_forwards_are_read_before_anything_is_made() -> None:
    ran = mbridge("forward", "docker/x", "8080", "0:db:5432", "--address", "0.0.0.0")
    assert [str(one) for one in ran.wiring.asked[-1][2]] == ["0.0.0.0:8080 -> 127.0.0.1:8080", "0.0.0.0:0 -> db:5432"]
    bad = mbridge("forward", "docker/x", "8080", "70000")
    assert (bad.code, bad.wiring.asked) == (2, [])


# logs


def test_logs_are_of_the_only_session_and_not_the_apps_unless_asked() -> None:
    wiring = FakeWiring(running=[status()])
    mbridge("logs", wiring=wiring)
    mbridge("logs", "kq", "--part", "app", "-f", "--tail", "5", wiring=wiring)
    assert wiring.asked == [("logs", "kqzwtb", ("host", "bridge", "agent"), False, None), ("logs", "kqzwtb", ("app",), True, 5)]


def test_logs_of_none_or_of_several_ask_which() -> None:
    assert mbridge("logs").code == 2
    assert "name one of" in mbridge("logs", wiring=FakeWiring(running=[status(), status(id="zzzzzz")])).err


# doctor

FINE = {"tun": True, "nft": True, "nfqueue": "nft", "ipv6": True, "ping": True, "settings": True}


def test_doctor_is_content_where_all_is_there() -> None:
    ran = mbridge("doctor", wiring=FakeWiring(findings=list(kernel_checks(FINE))))
    assert ran.code == 0
    assert ran.out.count("✓") == 6
    assert "→" not in ran.out


@pytest.mark.parametrize(
    ("lacks", "name", "code", "hint"),
    [
        ({"tun": "no such device"}, "tun", 3, "modprobe tun"),
        ({"nft": "operation not supported"}, "nftables", 3, "modprobe nf_tables"),
        ({"nfqueue": None}, "nfqueue", 0, "modprobe nfnetlink_queue"),
        ({"ipv6": False}, "ipv6", 0, "disable_ipv6"),
        ({"ping": "permission denied"}, "ping", 0, "ping_group_range"),
        ({"settings": "net.ipv4.fwmark_reflect is 1"}, "settings", 0, "HostConfig.Sysctls"),
    ],
)
def test_what_lacks_is_told_with_what_to_do_and_ends_with_3_only_where_it_is_needed(
    lacks: dict[str, object], name: str, code: int, hint: str
) -> None:
    findings = list(kernel_checks(FINE | lacks))
    ran = mbridge("doctor", wiring=FakeWiring(findings=findings))
    assert ran.code == code
    line = next(line for line in ran.out.splitlines() if line[2:].startswith(name))
    assert line[0] == ("✗" if code else "!")
    assert hint in ran.out
    assert (f"missing: {name}" in ran.err) is bool(code)


def test_doctor_as_json() -> None:
    ran = mbridge("doctor", "--json", wiring=FakeWiring(findings=[Check("engine", False, "no engine", "start it")]))
    assert ran.code == 3
    assert json.loads(ran.out) == [{"name": "engine", "good": False, "what": "no engine", "hint": "start it"}]


# images


def test_images_says_which_are_there() -> None:
    ran = mbridge("images", "ls")
    assert "bridge  mbridge-bridge:1  90 MB" in ran.out
    assert "not built: mbridge images build" in ran.out
    assert [one["present"] for one in json.loads(mbridge("images", "ls", "--json").out)] == [True, False]
    assert "prune" not in ran.err
    of_before = mbridge("images", "ls", wiring=FakeWiring(old_images=["mbridge-agent:0"]))
    assert "1 more of other versions; mbridge images prune removes them" in of_before.err


def test_images_are_built_saved_loaded_and_pushed_by_name() -> None:
    Path("x.tar").write_bytes(b"")
    built = mbridge("images", "build", "agent", "--force", "--docker-context", "far")
    assert (built.out, built.wiring.asked) == ("mbridge-agent:1\n", [("build", ("agent",), True, "far")])
    saved = mbridge("images", "save", "y.tar")
    assert saved.wiring.asked == [("save", Path("y.tar"), ("bridge", "agent"))]
    assert mbridge("images", "load", "x.tar").out == "mbridge-bridge:1\n"
    assert mbridge("images", "load", "absent.tar").code == 2
    assert mbridge("images", "push", "reg/team/mb", "agent").out == "reg/team/mb-agent:1\n"


def test_images_load_without_a_file_brings_the_agents_into_a_cluster() -> None:
    ran = mbridge("images", "load", "--to", "kind:dev", "--kubeconfig", "k", "--docker-context", "far")
    assert (ran.out, ran.wiring.asked) == ("mbridge-agent:1\n", [("load", "kind:dev", None, Where("far", None, None, "k"))])
    assert mbridge("images", "load", "--command", "cat").wiring.asked == [("load", None, "cat", Where())]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["x.tar", "--to", "kind"], "x.tar goes into the engine; what goes into a cluster is the agent's image, without a file"),
        (["--to", "kind", "--command", "cat"], "--to and --command are two ways to one cluster: name one of them"),
        (["--command", " "], "--command is empty"),
    ],
)
def test_images_load_into_two_places_at_once_is_refused(words: list[str], said: str) -> None:
    Path("x.tar").write_bytes(b"")
    ran = mbridge("images", "load", *words)
    assert (ran.code, ran.wiring.asked) == (2, [])
    assert f"mbridge: error: {said}\n" in ran.err


@pytest.mark.parametrize("name", ["BAD NAME", "reg/x:1", "reg/Team", "https://reg/x", ""])
def test_images_push_to_what_is_no_repository_is_refused_before_anything_is_built(name: str) -> None:
    ran = mbridge("images", "push", name)
    assert ran.code == 2
    assert f"mbridge: error: {name!r} is no repository: HOST/PATH in lower case, without a tag\n" in ran.err


@pytest.mark.parametrize("name", ["mbridge", "reg:5000/x", "Reg.example/team/mbridge_x"])
def test_images_push_to_a_repository(name: str) -> None:
    assert mbridge("images", "push", name, "agent").out == f"{name}-agent:1\n"


def test_images_prune_says_what_went_and_what_would_go() -> None:
    old = ["mbridge-agent:0", "stage of mbridge-agent:0"]
    ran = mbridge("images", "prune", "--docker-context", "far", wiring=FakeWiring(old_images=old))
    assert (ran.out.splitlines(), ran.wiring.asked) == (old, [("prune", False, "far")])
    dry = mbridge("images", "prune", "--dry-run", wiring=FakeWiring(old_images=old))
    assert (dry.out.splitlines(), dry.wiring.asked) == (old, [("prune", True, None)])
    assert "2 in all; without --dry-run they are removed" in dry.err
    assert "nothing to remove" in mbridge("images", "prune").err


# completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script_that_asks_us_back(shell: str) -> None:
    script = mbridge("completion", shell).out
    assert "mbridge" in script
    assert f"_MBRIDGE_COMPLETE={shell}_complete" in script


def completed(words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wiring: FakeWiring) -> list[str]:
    monkeypatch.setenv("_MBRIDGE_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
    mbridge(wiring=wiring)
    return [line.partition(",")[2] for line in capsys.readouterr().out.splitlines() if line]


LISTED = [Listed("docker/web", "nginx", "Up"), Listed("docker/db", "pg", "Up"), Listed("compose/shop/api", "api", "Up")]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("mbridge st", ["status"]),
        ("mbridge run docker/", ["docker/web", "docker/db"]),
        ("mbridge run -p 80:80 comp", ["compose/shop/api"]),
        ("mbridge env docker/w", ["docker/web"]),
        ("mbridge down kq", ["kqzwtb"]),
        ("mbridge status ", ["kqzwtb"]),
        ("mbridge ls d", ["docker", "deploy", "ds"]),
        ("mbridge run docker/web --cap-", ["--cap-add", "--cap-drop"]),
        ("mbridge images s", ["save"]),
    ],
)
def test_targets_and_sessions_are_completed_as_well_as_commands_and_options(
    words: str, expected: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert completed(words, monkeypatch, capsys, FakeWiring(listed=LISTED, running=[status()])) == expected


def test_completion_is_silent_where_there_is_no_engine(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert completed("mbridge run doc", monkeypatch, capsys, FakeWiring(failure=EngineUnavailable("no"))) == []

"""`mbridge run`: how its command line is read, and what a wish it becomes."""

from __future__ import annotations

import io
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge.errors import ClusterError
from bridge.model.environ import EnvWish
from bridge.model.target import ComposeTarget, DockerTarget
from bridge.model.wish import AppWish
from tests.unit.cli.fakes import FakeWiring, mbridge

ORDERS = [
    ["-p", "80:80", "-e", "A=1", "--via", "exec", "docker/x", "img", "cmd"],
    ["docker/x", "-p", "80:80", "-e", "A=1", "--via", "exec", "img", "cmd"],
    ["-p", "80:80", "docker/x", "-e", "A=1", "--via", "exec", "img", "cmd"],
    ["-p80:80", "docker/x", "-eA=1", "--via=exec", "img", "cmd"],
    ["docker/x", "-p", "80:80", "--env=A=1", "--via", "exec", "--", "img", "cmd"],
]


@pytest.mark.parametrize("words", ORDERS, ids=" ".join)
def test_our_options_stand_before_or_after_the_target(words: list[str]) -> None:
    ran = mbridge("run", *words)
    assert ran.code == 0, ran.err
    assert (ran.wish.target, ran.wish.via) == (DockerTarget("x"), "exec")
    assert ran.wish.app == AppWish("img", ("cmd",), ports=("80:80",), env=("A=1",))


@pytest.mark.parametrize(
    "words",
    [
        ["-v", "x"],
        ["--help"],
        ["-it", "-p", "1"],
        ["--", "-c", "echo"],
        ["--dry-run"],
        ["sh", "-c", "exit 3", "--via", "exec"],
        ["-"],
        [""],
    ],
    ids=" ".join,
)
def test_what_follows_the_image_is_the_apps_whatever_it_looks_like(words: list[str]) -> None:
    for ours, ports in (([], ()), (["-p80:80"], ("80:80",)), (["-ip80:80"], ("80:80",)), (["-ip", "80:80"], ("80:80",))):
        ran = mbridge("run", "docker/x", *ours, "img", *words)
        assert ran.code == 0, ran.err
        assert (ran.wish.app.image, ran.wish.app.command, ran.wish.app.ports) == ("img", tuple(words), ports)


def test_flags_in_one_word_take_no_value_but_the_last_may(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", terminal)
    ran = mbridge("run", "-itp", "80:80", "docker/x", "img")
    assert (ran.wish.app.interactive, ran.wish.app.tty, ran.wish.app.ports) == (True, True, ("80:80",))
    assert ran.wish.app.image == "img"


def test_every_option_of_docker_run_reaches_the_app_as_it_was_written() -> None:
    words = shlex.split(
        "-p 127.0.0.1:80:80/udp -v .:/src:ro,z -v data:/data -e A=b=c -e HOME --env-file x.env -w /src -u 1000:1000 -i --entrypoint sh "
        "--mount type=tmpfs,target=/t --tmpfs /run:size=1m --network front --add-host db:10.0.0.1 --cap-add NET_RAW --cap-drop ALL "
        "--security-opt no-new-privileges --read-only --pull always --platform linux/arm64 -m 64m --cpus 1.5 --gpus all -l a=b --name web"
    )
    ran = mbridge("run", *words, "compose/shop/api", "img")
    assert ran.code == 0, ran.err
    assert ran.wish.target == ComposeTarget("shop", "api")
    assert ran.wish.app == AppWish(
        "img",
        ports=("127.0.0.1:80:80/udp",),
        volumes=(".:/src:ro,z", "data:/data"),
        env=("A=b=c", "HOME"),
        env_files=("x.env",),
        workdir="/src",
        user="1000:1000",
        interactive=True,
        entrypoint="sh",
        mounts=("type=tmpfs,target=/t",),
        tmpfs=("/run:size=1m",),
        networks=("front",),
        add_hosts=("db:10.0.0.1",),
        cap_add=("NET_RAW",),
        cap_drop=("ALL",),
        security_opt=("no-new-privileges",),
        read_only=True,
        pull="always",
        platform="linux/arm64",
        memory="64m",
        cpus="1.5",
        gpus="all",
        labels=("a=b",),
        name="web",
    )


def test_our_own_options_reach_the_session() -> None:
    words = shlex.split(
        "-n shop -c api --context prod --kubeconfig k.yaml --docker-context far --via exec --agent pod --agent-image reg/agent:1 "
        "--yes-host-network --env-include HTTP_PROXY --env-exclude AWS_* --env-exclude GCP_* --env-set A=b=c"
    )
    wish = mbridge("run", "docker/x", *words, "img").wish
    assert (wish.namespace, wish.container, wish.context, wish.kubeconfig) == ("shop", "api", "prod", "k.yaml")
    assert (wish.docker_context, wish.via, wish.agent_kind, wish.agent_image) == ("far", "exec", "pod", "reg/agent:1")
    assert wish.yes_host_network
    assert wish.env == EnvWish(("HTTP_PROXY",), ("AWS_*", "GCP_*"), {"A": "b=c"})


def test_the_file_says_how_the_two_are_joined_and_never_which_app() -> None:
    Path("mbridge.yaml").write_text(
        "target: docker/other\ncontainer: side\napp: {image: theirs, ports: ['1:1'], env: {A: b}}\n"
        "outgoing: {rules: [{to: '10.0.0.0/8', verdict: direct}], loopback: [9092]}\nlink: {via: exec}\n"
    )
    wish = mbridge("run", "docker/x", "img").wish
    assert wish.app == AppWish("img")
    assert (wish.target, wish.via, wish.loopback) == (DockerTarget("x"), "exec", (9092,))
    assert wish.rules == ({"to": "10.0.0.0/8", "verdict": "direct"},)
    assert wish.container is None
    assert mbridge("run", "docker/other", "img").wish.container == "side"
    assert mbridge("run", "-c", "mine", "docker/x", "img").wish.container == "mine"


FLAGS = st.fixed_dictionaries(
    {},
    optional={
        "--via": st.sampled_from(["auto", "direct", "port-forward", "exec"]),
        "--agent": st.sampled_from(["auto", "ephemeral", "pod"]),
        "--yes-host-network": st.none(),
        **{
            name: st.lists(st.sampled_from(["A=b", "C=", "D==", "HTTP_*"]), min_size=1, max_size=2)
            for name in ("--env-include", "--env-exclude")
        },
        "--env-set": st.lists(st.sampled_from(["A=b", "A=", "B==c,d", "C=[x]", "D=off", "E=1.50"]), min_size=1, max_size=3),
        **{
            name: st.sampled_from(["x", "off", "1.50", "~", "null", "[a]", "a,b", "0x10", " s", ""])
            for name in ("-n", "-c", "--context", "--kubeconfig", "--docker-context", "--agent-image")
        },
    },
)


@given(FLAGS)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_flags_alone_are_the_same_wish_without_the_model_and_with_it(flags: dict[str, str | list[str] | None]) -> None:
    words = []
    for name, value in flags.items():
        for one in value if isinstance(value, list) else [value]:
            words += [name] if one is None else [name, one]
    quick, slow = mbridge("run", *words, "docker/x", "img"), mbridge("run", *words, "docker/x", "img", environ={"MBRIDGE_UNUSED": "1"})
    assert (quick.code, quick.err) == (slow.code, slow.err)
    assert quick.wish == slow.wish


def test_flags_alone_do_not_import_the_model() -> None:
    program = (
        "import sys; from tests.unit.cli.fakes import mbridge; ran = mbridge('run', '--via', 'exec', 'docker/x', 'img');"
        "print(ran.wish.via, [m for m in ('pydantic', 'ruamel', 'bridge.model.config') if m in sys.modules])"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True, env={"PYTHONPATH": str(root)}
    )
    assert done.stdout == "exec []\n"


def test_a_flag_beats_the_environment_beats_the_file() -> None:
    Path("mbridge.yaml").write_text("link: {via: direct}\n")
    assert mbridge("run", "docker/x", "img").wish.via == "direct"
    assert mbridge("run", "docker/x", "img", environ={"MBRIDGE_LINK_VIA": "exec"}).wish.via == "exec"
    assert mbridge("run", "--via", "auto", "docker/x", "img", environ={"MBRIDGE_LINK_VIA": "exec"}).wish.via == "auto"


@pytest.mark.parametrize("code", [0, 3, 126, 127, 137])
def test_A33_the_exit_code_is_the_apps(code: int) -> None:
    assert mbridge("run", "docker/x", "img", wiring=FakeWiring(app_exit=code)).code == code


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "TARGET is missing"),
        (["docker/x"], "IMAGE is missing"),
        (["--prot", "80", "docker/x", "img"], "no option --prot"),
        (["-p"], "option -p"),
        (["shop", "img"], "'shop' is no target: its kind is missing"),
        (["dokcer/x", "img"], "did you mean 'docker'"),
        (
            ["--via", "exce", "docker/x", "img"],
            "flag --via: link.via: 'exce' is none of auto, direct, port-forward, exec; did you mean 'exec'",
        ),
        (["--pull", "sometimes", "docker/x", "img"], "--pull: 'sometimes' is not one of"),
        (["--env-set", "A", "docker/x", "img"], "flag --env-set: 'A' sets nothing: write NAME=VALUE"),
        (["--config", "nope.yaml", "docker/x", "img"], "--config: there is no file nope.yaml"),
        (["--json", "docker/x", "img"], "--json goes with --dry-run"),
        (["-it", "docker/x", "img"], "stdin is no terminal"),
    ],
)
def test_what_mbridge_cannot_read_ends_with_125_and_says_what_is_wrong(words: list[str], said: str) -> None:
    ran = mbridge("run", *words)
    assert ran.code == 125
    assert said in ran.err
    assert ran.wiring.asked == []


def test_a_failure_before_the_app_ends_with_125_whatever_its_kind() -> None:
    assert mbridge("run", "docker/x", "img", wiring=FakeWiring(failure=ClusterError("gone"))).code == 125


def test_nothing_of_ours_is_written_to_stdout() -> None:
    assert mbridge("run", "docker/x", "img").out == ""


def test_a_dry_run_prints_the_plan_and_starts_nothing() -> None:
    ran = mbridge("run", "--dry-run", "docker/x", "img")
    assert ran.code == 0
    assert "docker/x with img: 2 steps" in ran.out
    assert "   1  put an agent beside it\n" in ran.out
    assert ran.wiring.asked == []


def test_a_dry_run_as_json_is_for_programs() -> None:
    ran = mbridge("run", "--dry-run", "--json", "docker/x", "img")
    assert '"target": "docker/x"' in ran.out

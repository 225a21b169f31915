from __future__ import annotations

import json
import subprocess

import pytest

from bridge.errors import SpecError
from bridge.model.environ import EnvWish, choose, envfile, parse_environ, render

TARGET = (
    b"PATH=/bin\0LEVEL=info\0MULTI=a\nb=c\0RAW=\xff\xfe\0EMPTY=\0LD_PRELOAD=x.so\0HTTP_PROXY=p\0https_proxy=p\0GIT_DIR=x\0TZ=Europe/Rome\0"
)


def names(chosen: dict[bytes, bytes]) -> list[str]:
    return [name.decode() for name in chosen]


def test_A31_the_environment_is_read_as_the_process_has_it() -> None:
    found = parse_environ(TARGET)
    assert list(found) == [b"PATH", b"LEVEL", b"MULTI", b"RAW", b"EMPTY", b"LD_PRELOAD", b"HTTP_PROXY", b"https_proxy", b"GIT_DIR", b"TZ"]
    assert found[b"MULTI"] == b"a\nb=c"
    assert found[b"RAW"] == b"\xff\xfe"
    assert found[b"EMPTY"] == b""


def test_of_a_name_that_stands_twice_the_first_counts_as_for_getenv_and_rubbish_is_left_out() -> None:
    assert parse_environ(b"A=1\0A=2\0rubbish\0=x\0\0B=3") == {b"A": b"1", b"B": b"3"}


def test_A31_what_would_redirect_the_developers_tools_is_left_out_unless_it_is_included() -> None:
    found = parse_environ(TARGET)
    assert names(choose(found, EnvWish())) == ["LEVEL", "MULTI", "RAW", "EMPTY", "TZ"]
    assert names(choose(found, EnvWish(include=("GIT_*", "PATH"), exclude=("M*",)))) == ["PATH", "LEVEL", "RAW", "EMPTY", "GIT_DIR", "TZ"]
    assert names(choose(found, EnvWish(include=("GIT_*",), exclude=("GIT_DIR",)))) == names(choose(found, EnvWish()))


def test_A31_set_beats_the_target_and_a_name_that_cannot_be_set_is_told() -> None:
    found = choose(parse_environ(TARGET), EnvWish(set={"LEVEL": "debug", "HOME": "/x"}))
    assert (found[b"LEVEL"], found[b"HOME"]) == (b"debug", b"/x")
    with pytest.raises(SpecError):
        choose({}, EnvWish(set={"A=B": "x"}))


def test_the_file_for_the_launcher_has_the_containers_own_first_and_the_terminals_size_last() -> None:
    assert envfile({b"A": b"1\n2", b"RAW": b"\xff"}) == b"+\0A=1\n2\0RAW=\xff\0"
    assert envfile({b"A": b"1"}, (33, 101)) == b"+\0A=1\0@33x101\0"


HARD = {b"A": b'it\'s $HOME `id` "x" \\n', b"MULTI": b"a\nb", b"PLAIN": b"x:/y", b"EMPTY": b"", b"RAW": b"\xff'\n", b"spring.name": b"x"}


def test_the_shell_form_gives_a_shell_the_same_bytes() -> None:
    script = render({name: value for name, value in HARD.items() if name != b"RAW"}, "shell")
    assert "spring.name" not in script
    shown = subprocess.run(["sh", "-c", script + 'printf "%s\\0" "$A" "$MULTI" "$PLAIN" "$EMPTY"'], capture_output=True, check=True)
    assert shown.stdout.split(b"\0")[:-1] == [HARD[b"A"], HARD[b"MULTI"], HARD[b"PLAIN"], b""]
    raw = subprocess.run(["bash", "-c", render({b"RAW": HARD[b"RAW"]}, "shell") + 'printf "%s" "$RAW"'], capture_output=True, check=True)
    assert raw.stdout == HARD[b"RAW"]


def test_the_json_form_keeps_every_byte() -> None:
    back = json.loads(render(HARD, "json"))
    assert {name.encode(): value.encode(errors="surrogateescape") for name, value in back.items()} == HARD


def test_the_dotenv_form_quotes_only_what_needs_it() -> None:
    shown = render({b"PLAIN": b"x:/y", b"SPACE": b"a $b", b"MULTI": b'it\'s\n"$x"'}, "dotenv")
    assert shown == 'PLAIN=x:/y\nSPACE=\'a $b\'\nMULTI="it\'s\\n\\"\\$x\\""\n'


def test_the_compose_form_is_yaml_whose_dollars_compose_leaves_alone() -> None:
    assert render({b"A": b'x$y"\n'}, "compose") == 'environment:\n  "A": "x$$y\\"\\n"\n'
    assert render({}, "compose") == "environment: {}\n"

"""The runner of all levels: what counts as a failure, a skip or an unstable test. A runner that forgets one hides it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

TESTS = Path(__file__).parents[1]


def loaded(file: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"mbridge_test_{Path(file).stem}", TESTS / file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


levels, conftest = loaded("levels.py"), loaded("conftest.py")


def outcome(*lines: tuple[str, str]) -> dict[str, str]:
    found = levels.Outcome()
    for test, became in lines:
        found.take({"test": test, "outcome": became, "text": "why"})
    return dict(found.outcomes)


def test_a_teardown_that_fails_after_a_pass_is_a_failure_and_nothing_undoes_one() -> None:
    assert outcome(("a", "started"), ("a", "passed"), ("a", "failed")) == {"a": "failed"}
    assert outcome(("a", "failed"), ("a", "passed")) == {"a": "failed"}


def test_a_test_that_never_ended_is_known_by_name() -> None:
    found = levels.Outcome()
    for line in ({"test": "a", "outcome": "started"}, {"test": "a", "outcome": "passed"}, {"test": "b", "outcome": "started"}):
        found.take(line)
    assert found.unfinished == "b"


def test_the_sum_fails_with_a_failure_or_with_nothing_run_and_counts_skips(capsys: pytest.CaptureFixture[str]) -> None:
    found = levels.Outcome({"a": "passed", "b": "skipped", "c": "skipped"}, {"b": "lacks(ipv6)", "c": "lacks(ipv6)"})
    assert levels._close(found, ["a"], 1) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "SKIPPED 2 x lacks(ipv6)"
    assert any(line.startswith("UNSTABLE a") for line in said)
    assert said[-1] == "1 passed, 0 failed, 2 skipped"
    found.outcomes["a"] = "failed"
    assert levels._close(found, [], 1) == 1
    assert levels._close(levels.Outcome(), [], 1) == 1


@pytest.mark.parametrize("words", [["--scenario", "a3"], ["--scenario=a3"]])
def test_our_words_end_at_the_first_option_of_pytests(words: list[str]) -> None:
    assert levels._split(["unit", *words, "-x", "cli"]) == (["unit", *words], ["-x", "cli"])
    assert levels._padded("a3") == levels._padded("A03") == "A03"


@pytest.mark.parametrize(
    ("must", "level", "reason", "became"),
    [
        ("netns,unit", "unit", "needs root", "failed"),
        ("netns", "unit", "needs root", "skipped"),
        ("unit", "unit", "lacks(nft queue)", "skipped"),
        ("", "unit", "needs root", "skipped"),
    ],
)
def test_a_skip_where_the_level_must_run_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, must: str, level: str, reason: str, became: str
) -> None:
    monkeypatch.setenv("MBRIDGE_MUST_RUN", must)
    report = pytest.TestReport("a", ("a", 1, "a"), {}, "skipped", ("a", 1, f"Skipped: {reason}"), "call")
    conftest._refuse_skip(report, level)
    assert report.outcome == became


def test_every_folder_with_tests_is_a_level_that_is_run() -> None:
    folders = {path.parent.relative_to(TESTS).parts[0] for path in TESTS.rglob("test_*.py")}
    assert folders == set(levels.LIMITS) == set(conftest.LEVELS)

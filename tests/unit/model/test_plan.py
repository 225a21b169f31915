"""A plan survives its journal, and says what it will do."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.errors import SpecError
from bridge.model import plan
from bridge.model.plan import Agent, Container, Folder, Op, Plan, Start, Volume

NAMES = st.text(min_size=1, max_size=12)
OPS: st.SearchStrategy[Op] = st.one_of(
    st.builds(Folder, NAMES, st.sampled_from((0o700, 0o777))),
    st.builds(Agent, NAMES),
    st.builds(Volume, NAMES),
    st.builds(Start, NAMES),
    st.builds(
        Container,
        NAMES,
        NAMES,
        st.dictionaries(NAMES, st.lists(NAMES) | st.booleans() | st.integers(0, 9)),
        st.lists(NAMES).map(tuple),
        st.lists(NAMES).map(tuple),
        st.none() | NAMES,
    ),
)


@given(st.lists(OPS))
def test_a_plan_comes_back_from_its_journal(steps: list[Op]) -> None:
    made = Plan("abcdef", "docker/x", "app", "k:f", {"url": "unix:///x"}, {"target": "docker/x"}, tuple(steps))
    assert plan.loads(plan.dumps(made)) == made


@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda raw: raw.decode("latin-1")))
def test_a_damaged_journal_is_told_and_never_a_crash(text: str) -> None:
    with pytest.raises(SpecError, match=r"damaged|version"):
        plan.loads(text)


@pytest.mark.parametrize(
    "step",
    [
        {"do": "fly"},
        {"do": "volume"},
        {"do": "volume", "name": "v", "colour": "red"},
        {"name": "v"},
        ["volume"],
        {"do": "folder", "path": 7},
        {"do": "volume", "name": None},
        {"do": "container", "role": "app", "name": "a", "body": "none"},
        {"do": ["folder"], "path": "/x"},
    ],
)
def test_a_step_that_nobody_knows_is_damage(step: object) -> None:
    value = Plan("abcdef", "docker/x", "app", "k", {}, {}).to_json() | {"steps": [step]}
    with pytest.raises(SpecError, match="damaged"):
        plan.loads(json.dumps(value))


def test_a_later_versions_journal_is_refused_by_its_version() -> None:
    with pytest.raises(SpecError, match="version 99"):
        plan.loads('{"version": 99, "steps": []}')


@given(st.integers(0, 10_000))
def test_of_a_plan_that_breaks_off_both_engines_are_known_once_they_stand_there_whole(cut: int) -> None:
    engine, place = {"url": "unix:///x"}, {"target": "docker/x", "endpoint": {"url": "tcp://y:1"}}
    text = plan.dumps(Plan("abcdef", "docker/x", "app", "k:f", engine, place, (Volume("v"),) * 50))
    cut = min(cut, len(text))
    assert plan.salvaged(text[:cut], "engine") in (None, engine)
    assert plan.salvaged(text[:cut], "place") in (None, place)
    if "steps" in text[:cut]:
        assert plan.salvaged(text[:cut], "engine") == engine
        assert plan.salvaged(text[:cut], "place") == place


def test_a_dry_run_reads_as_a_list_of_acts() -> None:
    steps = (Agent("docker/api"), Container("pause", "p", {"Image": "b:1"}), Start("p"))
    assert Plan("abcdef", "docker/api", "app", "k", {}, {}, steps).lines() == [
        "put an agent beside docker/api",
        "create container p (pause) from b:1",
        "start container p",
    ]

from __future__ import annotations

import pytest

from bridge.errors import SpecError
from bridge.model.target import ComposeTarget, DockerTarget, KubeTarget, Target, Targetless, parse_target


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("docker/shop-api-1", DockerTarget("shop-api-1")),
        ("compose/shop/api", ComposeTarget("shop", "api")),
        ("deploy/orders", KubeTarget("deploy", "orders")),
        ("rollout/orders", KubeTarget("rollout", "orders")),
        ("targetless", Targetless()),
    ],
)
def test_a_target_is_read_and_written_back_the_same(text: str, target: Target) -> None:
    assert parse_target(text) == target
    assert str(target) == text


def test_long_kinds_of_kubectl_are_printed_short() -> None:
    assert str(parse_target("deployment/orders")) == "deploy/orders"
    assert str(parse_target("StatefulSet/db-0")) == "sts/db-0"


def test_a_misspelt_kind_is_told_with_the_nearest_one() -> None:
    with pytest.raises(SpecError, match="did you mean 'docker'"):
        parse_target("dcoker/api")


def test_a_bare_name_is_told_with_the_kinds_it_may_have_meant() -> None:
    with pytest.raises(SpecError) as caught:
        parse_target("shop-api")
    assert caught.value.hint is not None
    assert "docker/shop-api" in caught.value.hint


@pytest.mark.parametrize(
    "text", ["", "/", "docker/", "docker/a/b", "docker/-x", "compose/shop", "compose//api", "pod/UPPER", "targetless/x", "pod/a b"]
)
def test_what_is_no_target_is_refused_with_the_form_to_write(text: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_target(text)
    assert caught.value.exit_code == 2

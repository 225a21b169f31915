"""Which containers can be targets, as an engine lists them."""

from __future__ import annotations

from typing import Any

from bridge.cli.looking import compose_targets, docker_targets


def container(name: str, state: str = "running", network: str = "bridge", **labels: str) -> dict[str, Any]:
    status = {"running": "Up 2 hours", "paused": "Up 2 hours (Paused)"}.get(state, "Exited (0)")
    return {"Id": name * 8, "Names": [f"/{name}"], "Image": "img", "State": state, "Status": status,
            "HostConfig": {"NetworkMode": network}, "Labels": labels}  # fmt: skip


def service(name: str, project: str, word: str, state: str = "running", **labels: str) -> dict[str, Any]:
    return container(name, state, **{"com.docker.compose.project": project, "com.docker.compose.service": word}, **labels)


def test_containers_are_listed_by_name_those_that_can_be_targets_first() -> None:
    found = docker_targets([container("zoo"), container("old", "exited"), container("net", network="host"), container("frozen", "paused")])
    assert [(one.target, one.why_not) for one in found] == [
        ("docker/zoo", None),
        ("docker/frozen", "it is paused"),
        ("docker/net", "on its host's network: --yes-host-network"),
        ("docker/old", "it does not run"),
    ]


def test_our_own_containers_are_no_targets() -> None:
    ours = service("app", "shop", "app", **{"mbridge.session": "kqzwtb"})
    assert docker_targets([ours]) == compose_targets([ours]) == []


def test_a_linked_container_is_called_by_its_own_name() -> None:
    assert docker_targets([container("db") | {"Names": ["/web/db", "/db"]}])[0].target == "docker/db"


def test_an_image_that_has_lost_its_name_is_shown_by_the_beginning_of_its_id() -> None:
    assert docker_targets([container("db") | {"Image": "sha256:12eafbda08a8f2fc4f3fd347"}])[0].what == "12eafbda08a8"


def test_a_service_stands_once_by_the_container_that_serves_best() -> None:
    found = compose_targets(
        [service("a-1", "shop", "api", "exited"), service("a-2", "shop", "api"), service("b-1", "shop", "web", "exited")]
    )
    assert [(one.target, one.why_not) for one in found] == [("compose/shop/api", None), ("compose/shop/web", "it does not run")]


def test_one_off_containers_and_strangers_are_no_services() -> None:
    assert compose_targets([container("x"), service("y", "shop", "api", **{"com.docker.compose.oneoff": "True"})]) == []

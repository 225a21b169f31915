"""`docker network connect` while the session runs: its namespace gets an address more, and may lose it again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import pytest

from tests.netns.conftest import FAR, PORT, SERVER, WAIT_S, World


@pytest.fixture(autouse=True)
def no_strays() -> None:
    """Not here: what goes to the joined network is meant to be there."""


def _place(world: World) -> str:
    """Who answers at FAR, an address that both sides have."""
    with world.ses.connect(FAR, PORT) as app:
        return app.recv(100).split()[0].decode()


def _eventually(answer: Callable[[], str], wanted: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while (seen := answer()) != wanted:
        assert time.monotonic() < deadline, seen


@contextlib.contextmanager
def _joined(world: World, *addresses: str) -> Iterator[None]:
    words = [f"{address} dev eth0\n" for address in addresses]
    world.ses.ip("".join(f"addr add {word}" for word in words))
    world.dev.ip("route replace 10.78.0.2/32 dev eth0\n")  # FAR is on the developer's side of that network
    try:
        yield
    finally:
        world.ses.ip("".join(f"addr del {word}" for word in words))
        _eventually(lambda: _place(world), "cluster")


def test_a_network_is_the_apps_own_from_its_joining_to_its_leaving(world: World) -> None:
    assert _place(world) == "cluster"
    with _joined(world, "10.78.0.2/24"):
        _eventually(lambda: _place(world), "dev")
        with world.ses.udp(FAR) as app:
            app.sendto(b"who", (FAR, PORT))
            assert app.recv(100).startswith(b"dev")
        with world.ses.connect(SERVER, PORT) as app:
            assert app.recv(100).startswith(b"cluster"), "all else goes where it went"


def test_a_network_that_overlaps_the_targets_stays_the_targets(world: World) -> None:
    with _joined(world, "10.77.0.200/24", "10.78.0.2/24"):
        _eventually(lambda: _place(world), "dev")  # both have been looked at
        with world.ses.connect(SERVER, PORT) as app:
            assert app.recv(100).startswith(b"cluster")


def test_a_new_bridge_finds_what_was_joined_while_there_was_none(world: World) -> None:
    world.kill_bridge()
    try:
        world.ses.ip("addr add 10.78.0.2/24 dev eth0\n")
        world.start()
        assert _place(world) == "dev"
    finally:
        world.ses.ip("addr del 10.78.0.2/24 dev eth0\n")

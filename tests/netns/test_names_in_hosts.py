"""Rules by name for the names of the target's /etc/hosts: the app looks them up in its own copy of that file, by no resolver."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import pytest

from bridge.protocol import door
from tests.netns.conftest import FACTS, FAR, SERVER, SERVER6, WAIT_S, World

HOSTS = f"{SERVER} barred.example barred\n{SERVER6} barred.example\n{FAR} files.home.example # theirs\n10.78.0.2 let.example\n"
FACTS = dataclasses.replace(FACTS, hosts=HOSTS)
RULES = (
    {"to": "barred.example:7000", "verdict": "deny"},
    {"to": "let.example", "verdict": "cluster"},
    {"to": "later.example:7100", "verdict": "deny"},
    {"to": "10.78.0.2", "verdict": "deny"},
    {"to": "*.home.example", "verdict": "direct"},
)
CONNECT = """
import errno, socket, sys
try:
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), 10) as sock:
        print(sock.getpeername()[0], sock.recv(100).decode())
except OSError as exc:
    print(errno.errorcode[exc.errno])
"""


@pytest.fixture(autouse=True)
def no_strays(world: World):
    """But what goes to FAR, which is DIRECT here."""
    yield
    assert [stray for stray in world.sentinel.strays() if f"-> {FAR} protocol 6" not in stray] == []


def _connect(world: World, host: str, port: int = 7000) -> list[str]:
    return world.python(CONNECT, host, str(port)).stdout.split()


@pytest.mark.parametrize("host", ["barred.example", "barred", SERVER, SERVER6])
def test_A20_a_name_of_the_hosts_file_is_denied_by_each_name_that_its_address_has(world: World, host: str) -> None:
    assert _connect(world, host) == ["EACCES"]


def test_A20_the_rule_says_one_port_alone(world: World) -> None:
    assert _connect(world, "barred.example", 1) == ["ECONNREFUSED"]


def test_A20_a_wildcard_rule_makes_a_name_of_the_hosts_file_direct(world: World) -> None:
    assert _connect(world, "files.home.example") == [FAR, "dev", "172.30.0.2"]


def test_A20_a_name_of_the_hosts_file_overrules_a_later_rule_for_its_network(world: World) -> None:
    world.clu.ip("addr add 10.78.0.2/32 dev lo\n")
    try:
        assert _connect(world, "let.example") == ["10.78.0.2", "cluster", "10.77.0.3"]
    finally:
        world.clu.ip("addr del 10.78.0.2/32 dev lo\n")


def test_A20_a_new_bridge_knows_the_names_before_anybody_looks_them_up(world: World) -> None:
    world.kill_bridge()
    assert _connect(world, "barred.example") == ["EACCES"]
    world.start()
    assert _connect(world, "barred.example") == ["EACCES"]


@pytest.mark.links("real")  # only an agent can tell new facts
def test_A38_a_hosts_file_that_the_target_has_later_counts_from_then_on(world: World) -> None:
    assert world.agent is not None
    assert world.host is not None
    assert _connect(world, SERVER, 7100) == ["ECONNREFUSED"]
    world.facts = dataclasses.replace(world.facts, hosts=f"{SERVER} later.example\n")
    world.start_agent()
    world.host._dial = world.agent.dial
    world.host.send(door.Agent(world.agent.host_key, world.agent.agent_id))
    _eventually(lambda: _connect(world, "later.example", 7100), ["EACCES"])
    assert _connect(world, SERVER, 7101) == ["ECONNREFUSED"]
    assert _connect(world, SERVER) == ["EACCES"], "what an earlier file said of an address holds for a day"


def _eventually(answer: Callable[[], list[str]], wanted: list[str]) -> None:
    deadline = time.monotonic() + WAIT_S
    while (seen := answer()) != wanted:
        assert time.monotonic() < deadline, seen

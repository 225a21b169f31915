"""The engine adapter against the fake engine: its contract, and how faults are told."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bridge.adapters.docker.endpoint import Endpoint
from bridge.adapters.docker.engine import Engine, split_image
from bridge.errors import EngineUnavailable
from tests.unit.contracts import engine as contract
from tests.unit.fake_engine import Container, FakeEngine, Say


async def _shell(container: Container) -> int:
    """What the contract's programs do."""
    match container.body["Cmd"][-1]:
        case contract.OUT_AND_ERR:
            container.output += [(1, b"out\n"), (2, b"err\n")]
            return 7
        case contract.CAT:
            container.output += [(1, await container.stdin.read()), (2, b"end\n")]
            return 0
    container.output.append((1, b"ready\n"))
    while (signal := await container.killed_by()) != "KILL":
        if container.body["Cmd"][-1] == contract.UNTIL_TERM:
            return 3
        container.killed.clear()
    return 128 + {"KILL": 9}[signal]


async def _cat(command: list[str], stdin: asyncio.StreamReader, say: Say) -> None:
    assert command == ["sh", "-c", contract.CAT]
    say(1, await stdin.read())
    say(2, b"end\n")


@pytest.mark.parametrize("check", contract.CONTRACT)
def test_the_fake_engine_keeps_the_contract_of_engines(tmp_path: Path, check: str) -> None:
    async def keep() -> None:
        async with FakeEngine(tmp_path) as engine:
            engine.programs["app:1"], engine.commands["app:1"] = _shell, _cat
            engine.lacks = ["net.ipv4.mbridge_none"]
            await contract.keep(check, engine.endpoint, "app:1")

    asyncio.run(keep())


def test_no_socket_is_told_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable, match="does not exist") as told:
        asyncio.run(Engine(Endpoint(f"unix://{tmp_path}/none.sock")).connect())
    assert told.value.hint
    assert told.value.exit_code == 3


def test_a_socket_that_nobody_serves_is_an_engine_that_is_not_running(tmp_path: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "dead.sock"))
    with pytest.raises(EngineUnavailable, match="not running: connection refused"):
        asyncio.run(Engine(Endpoint(f"unix://{tmp_path}/dead.sock")).connect())


@pytest.mark.parametrize(
    ("image", "parts"),
    [
        ("alpine", ("alpine", "latest")),
        ("python:3.12", ("python", "3.12")),
        ("localhost:5000/app", ("localhost:5000/app", "latest")),
        ("localhost:5000/app:1", ("localhost:5000/app", "1")),
        ("app@sha256:00", ("app", "sha256:00")),
    ],
)
def test_an_image_is_cut_into_name_and_tag(image: str, parts: tuple[str, str]) -> None:
    assert split_image(image) == parts

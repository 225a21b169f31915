"""The contract of an engine: what mbridge takes for granted of one. The fake passes it as unit tests, dockerd at level container.

Use: `await check_engine(endpoint, image)`; `image` has `sleep` and `sh`. The fake's program of that image plays along.
"""

from __future__ import annotations

import asyncio
import secrets

import pytest

from bridge.adapters.docker.endpoint import Endpoint
from bridge.adapters.docker.engine import Engine
from bridge.adapters.docker.wire import STDERR, STDOUT, EngineRefused


async def check_engine(endpoint: Endpoint, image: str) -> None:
    engine = await Engine(endpoint).connect()
    name = f"mbt-contract-{secrets.token_hex(3)}"
    label = f"mbridge.test={name}"
    labels = dict([label.split("=")])
    body = {"Image": image, "Entrypoint": [], "Cmd": ["sh", "-c", "echo out; echo err >&2; exit 7"], "Labels": labels}
    try:
        await _absence_is_an_answer(engine, name)
        container = await engine.create(name, body)
        with pytest.raises(EngineRefused, match="already in use"):
            await engine.create(name, body)
        assert [one["Id"] for one in await engine.containers(label=[label])] == [container]
        await _first_byte_and_exit_code_are_seen(engine, container)
        assert not await engine.kill(container), "it does not run any more"
        await engine.stop(container, 1)  # no fault
        assert await engine.wait(container, asyncio.Event(), "not-running") == 7
        await _a_volume_comes_and_goes(engine, name)
        await _a_signal_ends_it_and_events_tell(engine, name, image, labels)
        assert await engine.remove(container)
        assert not await engine.remove(container)
    finally:
        for one in await engine.containers(label=[label]):
            await engine.remove(one["Id"])


async def _absence_is_an_answer(engine: Engine, name: str) -> None:
    assert await engine.inspect(name) is None
    assert await engine.image(f"{name}:none") is None
    assert not await engine.remove(name)
    assert not await engine.kill(name)
    assert not await engine.remove_volume(name)
    assert await engine.last_lines(name, 5) == []
    with pytest.raises(EngineRefused) as refused:
        await engine.start(name)
    assert refused.value.status == 404


async def _first_byte_and_exit_code_are_seen(engine: Engine, container: str) -> None:
    stream = await engine.attach(container, stdin=False, tty=False)
    noted = asyncio.Event()
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        waiting = group.create_task(engine.wait(container, noted), name="wait")
        await noted.wait()
        await engine.start(container)
        said: dict[int, bytes] = {STDOUT: b"", STDERR: b""}
        async for kind, data in stream.chunks():
            said[kind] += data
    stream.close()
    assert said == {STDOUT: b"out\n", STDERR: b"err\n"}
    assert waiting.result() == 7
    assert sorted(await engine.last_lines(container, 5)) == ["err", "out"]


async def _a_volume_comes_and_goes(engine: Engine, name: str) -> None:
    await engine.create_volume(name, {"mbridge.test": name})
    await engine.create_volume(name, {"mbridge.test": name})  # again is fine
    assert name in await engine.volumes(f"mbridge.test={name}")
    assert await engine.remove_volume(name)


async def _a_signal_ends_it_and_events_tell(engine: Engine, name: str, image: str, labels: dict[str, str]) -> None:
    command = ["sh", "-c", 'trap "exit 3" TERM; while :; do sleep 0.05; done']
    container = await engine.create(f"{name}-long", {"Image": image, "Entrypoint": [], "Cmd": command, "Labels": labels})
    async with asyncio.timeout(30), engine.events(type=["container"], event=["start", "die"], container=[f"{name}-long"]) as events:
        await engine.start(container)
        await engine.start(container)  # it runs: no fault
        assert (await anext(events))["Action"] == "start"
        found = await engine.inspect(container)
        assert found is not None
        assert found["State"]["Running"]
        await engine.put_files(container, "/", {"left": b"\xff\x00"})
        await asyncio.sleep(0.3)  # for its trap to be set: nothing of a shell tells
        assert await engine.kill(container, "TERM")
        died = await anext(events)
    assert (died["Action"], died["Actor"]["Attributes"]["exitCode"]) == ("die", "3")

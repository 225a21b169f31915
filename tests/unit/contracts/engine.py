"""The contract of an engine: what mbridge takes for granted of one. The fake keeps it as unit tests, dockerd at level container.

Use: `await keep(NAME, endpoint, image)` for each name of CONTRACT; `image` has `sh` and `cat`. The fake plays the programs of
this file (`OUT_AND_ERR`, …) by their text.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from bridge.adapters.docker.endpoint import Endpoint
from bridge.adapters.docker.engine import Engine
from bridge.adapters.docker.wire import STDERR, STDOUT, EngineRefused, Hijacked

OUT_AND_ERR = "echo out; echo err >&2; exit 7"
CAT = "cat; echo end >&2"
UNTIL_TERM = 'trap "exit 3" TERM; echo ready; while :; do sleep 0.05; done'
DEAF = 'trap "" TERM; echo ready; while :; do sleep 0.05; done'
LIMIT_S = 60


@dataclass
class Scene:
    """One engine, and names and labels that are this check's alone."""

    engine: Engine
    image: str
    name: str = field(default_factory=lambda: f"mbt-contract-{secrets.token_hex(3)}")

    @property
    def label(self) -> str:
        return f"mbridge.test={self.name}"

    async def create(self, script: str = UNTIL_TERM, suffix: str = "", **body: Any) -> str:
        labels = {"mbridge.test": self.name, **body.pop("Labels", {})}
        whole = {"Image": self.image, "Entrypoint": [], "Cmd": ["sh", "-c", script], "Labels": labels, **body}
        return await self.engine.create(self.name + suffix, whole)

    async def running(self, script: str = UNTIL_TERM, suffix: str = "", **body: Any) -> str:
        """Started, and past its first word: its trap is set."""
        container = await self.create(script, suffix, **body)
        await self.engine.start(container)
        async with self.engine.logs(container, follow=True) as stream:
            async for _, data in stream.chunks():
                assert data.strip() == b"ready"
                break
        return container

    @contextlib.asynccontextmanager
    async def network(self, suffix: str = "") -> AsyncIterator[str]:
        """One of the user's; mbridge itself makes none."""
        name = f"{self.name}{suffix}"
        await self.engine.wire.request("POST", "/networks/create", body={"Name": name, "Labels": {"mbridge.test": self.name}})
        try:
            yield name
        finally:
            for one in await self.engine.containers(network=[name]):
                await self.engine.remove(one["Id"])
            await self.engine.wire.request("DELETE", f"/networks/{name}")

    async def clean(self) -> None:
        for one in await self.engine.containers(label=[self.label]):
            await self.engine.remove(one["Id"])
        for volume in await self.engine.volumes(self.label):
            await self.engine.remove_volume(volume)


async def keep(check: str, endpoint: Endpoint, image: str) -> None:
    scene = Scene(await Engine(endpoint).connect(), image)
    try:
        async with asyncio.timeout(LIMIT_S):
            await CONTRACT[check](scene)
    finally:
        await scene.clean()


async def _said(stream: Hijacked) -> dict[int, bytes]:
    said: dict[int, bytes] = {STDOUT: b"", STDERR: b""}
    async for kind, data in stream.chunks():
        said[kind] += data
    stream.close()
    return said


async def _ran(scene: Scene, container: str, *, stdin: bytes | None = None, tty: bool = False) -> tuple[dict[int, bytes], int]:
    """Started with somebody at its stdio: all that it said, and its exit code."""
    stream = await scene.engine.attach(container, stdin=stdin is not None, tty=tty)
    noted = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(scene.engine.wait(container, noted), name="wait")
        await noted.wait()
        await scene.engine.start(container)
        if stdin is not None:
            stream.writer.write(stdin)
            await stream.writer.drain()
            stream.end_input()
        said = await _said(stream)
    return said, waiting.result()


async def absence_is_an_answer(scene: Scene) -> None:
    engine, name = scene.engine, scene.name
    assert await engine.inspect(name) is None
    assert await engine.inspect("no name at all") is None
    assert await engine.image(f"{name}:none") is None
    assert await engine.network(name) is None
    assert not await engine.remove(name)
    assert not await engine.kill(name)
    assert not await engine.resize(name, 1, 1)
    assert not await engine.remove_volume(name)
    assert await engine.last_lines(name, 5) == []
    assert await engine.containers(label=[scene.label]) == []
    assert await engine.volumes(scene.label) == []
    for asked in (engine.start(name), engine.exec(name, ["true"]), engine.read_file(name, "/x"), engine.put_files(name, "/", {"x": b""})):
        with pytest.raises(EngineRefused) as refused:
            await asked
        assert refused.value.status == 404


async def a_name_is_given_once_and_an_image_must_be_there(scene: Scene) -> None:
    await scene.create()
    for name, image, status, words in (
        (scene.name, scene.image, 409, "already in use"),
        (scene.name + "-2", f"{scene.name}:none", 404, "No such image"),
        ("no name", scene.image, 400, "Invalid container name"),
    ):
        with pytest.raises(EngineRefused, match=words) as refused:
            await scene.engine.create(name, {"Image": image, "Labels": {"mbridge.test": scene.name}})
        assert refused.value.status == status
    unnamed = await scene.engine.create(None, {"Image": scene.image, "Cmd": ["true"], "Labels": {"mbridge.test": scene.name}})
    found = await scene.engine.inspect(unnamed)
    assert found is not None
    assert len(found["Name"]) > 1


async def inspect_tells_what_was_created(scene: Scene) -> None:
    await scene.engine.create_volume(scene.name, {"mbridge.test": scene.name})
    container = await scene.create(
        Labels={"colour": "red"}, Env=["A=1"], Hostname="orders", Tty=True,
        HostConfig={"NetworkMode": "none", "Mounts": [{"Type": "volume", "Source": scene.name, "Target": "/data"}]},
    )  # fmt: skip
    found = await scene.engine.inspect(scene.name)
    assert found is not None
    assert found == await scene.engine.inspect(container)
    assert (found["Id"], found["Name"]) == (container, f"/{scene.name}")
    state = found["State"]
    assert (state["Status"], state["Running"], state["Pid"], state["ExitCode"]) == ("created", False, 0, 0)
    config = found["Config"]
    assert config["Labels"] == {"mbridge.test": scene.name, "colour": "red"}
    assert "A=1" in config["Env"]
    assert (config["Hostname"], config["Tty"]) == ("orders", True)
    assert found["HostConfig"]["NetworkMode"] == "none"
    assert [(mount["Type"], mount["Destination"]) for mount in found["Mounts"]] == [("volume", "/data")]


async def lists_are_of_what_bears_every_label(scene: Scene) -> None:
    engine = scene.engine
    red, blue = await scene.create(suffix="-1", Labels={"colour": "red"}), await scene.running(suffix="-2", Labels={"colour": "blue"})
    both = {one["Id"]: one for one in await engine.containers(label=[scene.label])}
    assert set(both) == {red, blue}
    assert [one["Id"] for one in await engine.containers(label=[scene.label, "colour=red"])] == [red]
    assert [one["Id"] for one in await engine.containers(label=["colour", scene.label], status=["running"])] == [blue]
    assert (both[red]["Names"], both[red]["State"], both[blue]["State"]) == ([f"/{scene.name}-1"], "created", "running")
    assert both[red]["Labels"]["colour"] == "red"


async def the_first_byte_and_the_exit_code_are_seen(scene: Scene) -> None:
    container = await scene.create(OUT_AND_ERR)
    assert await _ran(scene, container) == ({STDOUT: b"out\n", STDERR: b"err\n"}, 7)
    assert sorted(await scene.engine.last_lines(container, 5)) == ["err", "out"]
    assert len(await scene.engine.last_lines(container, 1)) == 1
    assert await scene.engine.wait(container, asyncio.Event(), "not-running") == 7
    found = await scene.engine.inspect(container)
    assert found is not None
    assert (found["State"]["Status"], found["State"]["Running"], found["State"]["ExitCode"]) == ("exited", False, 7)


async def stdin_is_read_to_its_end(scene: Scene) -> None:
    options = {"AttachStdin": True, "OpenStdin": True, "StdinOnce": True}
    container = await scene.create(CAT, **options)
    assert await _ran(scene, container, stdin=b"\x00\xffhello") == ({STDOUT: b"\x00\xffhello", STDERR: b"end\n"}, 0)


async def with_a_terminal_there_is_one_raw_stream(scene: Scene) -> None:
    container = await scene.create(OUT_AND_ERR, Tty=True)
    assert not await scene.engine.resize(container, 30, 100), "it does not run"
    said, code = await _ran(scene, container, tty=True)
    assert (said, code) == ({STDOUT: b"out\r\nerr\r\n", STDERR: b""}, 7)
    async with scene.engine.logs(container, follow=False) as stream:
        assert stream.raw
        assert await _said(stream) == said
    running = await scene.create(UNTIL_TERM, "-2", Tty=True)
    await scene.engine.start(running)
    assert await scene.engine.resize(running, 30, 100)


async def a_signal_ends_it_and_events_tell(scene: Scene) -> None:
    engine, name = scene.engine, scene.name
    container = await scene.create()
    other = await scene.create(OUT_AND_ERR, "-other")
    async with engine.events(type=["container"], event=["start", "die"], container=[name]) as events:
        await engine.start(other)  # to this filter a name is the beginning of names
        assert await _event(events) == ("start", other, f"{name}-other", None)
        assert await _event(events) == ("die", other, f"{name}-other", "7")
        await engine.start(container)
        await engine.start(container)  # it runs: no fault
        assert await _event(events) == ("start", container, name, None)
        async with engine.logs(container, follow=True) as stream:
            async for _ in stream.chunks():
                break  # it is ready
        found = await engine.inspect(container)
        assert found is not None
        started = found["State"]["StartedAt"]
        assert found["State"]["Running"]
        assert await engine.kill(container, "TERM")
        assert await _event(events) == ("die", container, name, "3")
        assert not await engine.kill(container), "it does not run any more"
        await engine.start(container)
        assert await _event(events) == ("start", container, name, None)
        found = await engine.inspect(container)
        assert found is not None
        assert found["State"]["StartedAt"] != started


async def events_are_told_by_label(scene: Scene) -> None:
    mine = {"shop": scene.name}
    async with scene.engine.events(type=["container"], event=["start"], label=[f"shop={scene.name}", "web"]) as events:
        await scene.running(suffix="-1", Labels=mine)
        wanted = await scene.running(suffix="-2", Labels={**mine, "web": ""})
        assert (await _event(events))[1] == wanted


async def _event(events: AsyncIterator[Any]) -> tuple[str, str, str, str | None]:
    event = await anext(events)
    attributes = event["Actor"]["Attributes"]
    return event["Action"], event["Actor"]["ID"], attributes["name"], attributes.get("exitCode")


async def a_stop_gives_time_and_then_none(scene: Scene) -> None:
    engine = scene.engine
    heeds, deaf = await scene.running(suffix="-1"), await scene.running(DEAF, "-2")
    await engine.stop(heeds, 10)
    assert await engine.wait(heeds, asyncio.Event(), "not-running") == 3
    await engine.stop(heeds, 1)  # no fault
    await engine.stop(deaf, 1)
    assert await engine.wait(deaf, asyncio.Event(), "not-running") == 137


async def a_removal_needs_no_stop_and_twice_is_fine(scene: Scene) -> None:
    container = await scene.running(DEAF)
    waiting = asyncio.ensure_future(scene.engine.wait(container, noted := asyncio.Event()))
    await noted.wait()
    assert await scene.engine.remove(container)
    assert await waiting == 137
    assert not await scene.engine.remove(container)
    assert await scene.engine.inspect(container) is None


async def a_program_is_run_beside_and_joined(scene: Scene) -> None:
    container = await scene.running()
    joined = await scene.engine.exec(container, ["sh", "-c", CAT])
    joined.writer.write(b"a\x00b")
    await joined.writer.drain()
    joined.end_input()
    assert await _said(joined) == {STDOUT: b"a\x00b", STDERR: b"end\n"}
    await scene.engine.kill(container)
    await scene.engine.wait(container, asyncio.Event(), "not-running")
    with pytest.raises(EngineRefused, match="is not running") as refused:
        await scene.engine.exec(container, ["true"])
    assert refused.value.status == 409


async def files_are_put_and_read_before_and_after_the_start(scene: Scene) -> None:
    engine = scene.engine
    container = await scene.create()
    await engine.put_files(container, "/tmp", {"left": b"\xff\x00", "right": b""})
    assert await engine.read_file(container, "/tmp/left") == b"\xff\x00"
    await engine.start(container)
    await engine.put_files(container, "/tmp", {"left": b"again"})
    assert await engine.read_file(container, "/tmp/left") == b"again"
    assert await engine.read_file(container, "/tmp/right") == b""
    for asked in (engine.read_file(container, "/tmp/none"), engine.put_files(container, "/none", {"x": b""})):
        with pytest.raises(EngineRefused) as refused:
            await asked
        assert refused.value.status == 404


async def a_volume_comes_and_goes_but_not_under_a_container(scene: Scene) -> None:
    engine, name = scene.engine, scene.name
    await engine.create_volume(name, {"mbridge.test": name})
    await engine.create_volume(name, {"mbridge.test": name})  # again is fine
    assert await engine.volumes(scene.label) == [name]
    container = await scene.create(HostConfig={"Binds": [f"{name}:/data"]})
    with pytest.raises(EngineRefused, match="in use") as refused:
        await engine.remove_volume(name)
    assert refused.value.status == 409
    assert await engine.remove(container)
    assert await engine.remove_volume(name)
    assert await engine.volumes(scene.label) == []


async def networks_are_joined_and_events_tell(scene: Scene) -> None:
    engine = scene.engine
    async with scene.network() as first, scene.network("-2") as second:
        container = await scene.create(HostConfig={"NetworkMode": first})
        assert (await engine.network(second) or {})["Name"] == second
        await engine.start(container)
        async with engine.events(type=["network"], event=["connect", "disconnect"]) as events:
            await engine.join_network(second, container, {"Aliases": ["orders"]})
            async for event in events:
                if event["Actor"]["Attributes"]["name"] == second:
                    break
            assert (event["Action"], event["Actor"]["Attributes"]["container"]) == ("connect", container)
        found = await engine.inspect(container)
        assert found is not None
        joined = found["NetworkSettings"]["Networks"]
        assert set(joined) == {first, second}
        assert "orders" in joined[second]["Aliases"]
        assert all(one["IPAddress"] for one in joined.values())
        for network in (first, second):
            assert [one["Id"] for one in await engine.containers(network=[network])] == [container]
        with pytest.raises(EngineRefused, match="already exists in network") as refused:
            await engine.join_network(second, container, {})
        assert refused.value.status == 403
        for network, whom in ((f"{scene.name}-none", container), (second, f"{scene.name}-none")):
            with pytest.raises(EngineRefused, match=r"(?i)no such|not found") as refused:
                await engine.join_network(network, whom, {})
            assert refused.value.status == 404


async def a_network_that_is_not_there_is_refused_at_the_start(scene: Scene) -> None:
    container = await scene.create(HostConfig={"NetworkMode": f"{scene.name}-none"})
    with pytest.raises(EngineRefused, match="not found") as refused:
        await scene.engine.start(container)
    assert refused.value.status == 404


async def a_setting_that_the_kernel_lacks_is_refused_by_its_name(scene: Scene) -> None:
    container = await scene.create(HostConfig={"Sysctls": {"net.ipv4.mbridge_none": "1"}})
    with pytest.raises(EngineRefused, match=r"/proc/sys/net/ipv4/mbridge_none|sysctl net\.ipv4\.mbridge_none"):
        await scene.engine.start(container)
    found = await scene.engine.inspect(container)
    assert found is not None
    assert not found["State"]["Running"]


async def a_log_is_followed_to_the_end(scene: Scene) -> None:
    container = await scene.running()
    async with scene.engine.logs(container, follow=True) as stream:
        await scene.engine.kill(container, "TERM")
        assert await _said(stream) == {STDOUT: b"ready\n", STDERR: b""}


_CHECKS: tuple[Callable[[Scene], Awaitable[None]], ...] = (
    absence_is_an_answer,
    a_name_is_given_once_and_an_image_must_be_there,
    inspect_tells_what_was_created,
    lists_are_of_what_bears_every_label,
    the_first_byte_and_the_exit_code_are_seen,
    stdin_is_read_to_its_end,
    with_a_terminal_there_is_one_raw_stream,
    a_signal_ends_it_and_events_tell,
    events_are_told_by_label,
    a_stop_gives_time_and_then_none,
    a_removal_needs_no_stop_and_twice_is_fine,
    a_program_is_run_beside_and_joined,
    files_are_put_and_read_before_and_after_the_start,
    a_volume_comes_and_goes_but_not_under_a_container,
    networks_are_joined_and_events_tell,
    a_network_that_is_not_there_is_refused_at_the_start,
    a_setting_that_the_kernel_lacks_is_refused_by_its_name,
    a_log_is_followed_to_the_end,
)
CONTRACT = {check.__name__: check for check in _CHECKS}

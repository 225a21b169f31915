"""What `doctor` looks at, against an engine that answers as told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bridge.cli.checks import engine_checks, host_checks, kernel, target_checks
from bridge.cli.cmd_doctor import Check
from bridge.errors import EngineUnavailable, HostError, TargetNotFound
from bridge.model.environ import Environ
from bridge.model.facts import TargetFound


@dataclass
class Engine:
    says: list[str] = field(default_factory=list)
    code: int = 0
    failure: HostError | None = None
    options: tuple[str, ...] = ()
    url: str = "unix:///run/docker.sock"
    removed: list[str] = field(default_factory=list)
    body: dict[str, Any] = field(default_factory=dict)
    info: dict[str, str] = field(default_factory=lambda: {"Version": "27.0"})

    @property
    def endpoint(self) -> Any:
        return SimpleNamespace(url=self.url, source="DOCKER_HOST", is_unix=self.url.startswith("unix"))

    @property
    def wire(self) -> Any:
        async def request(method: str, path: str) -> dict[str, Any]:
            return {"OperatingSystem": "Debian", "SecurityOptions": list(self.options)}

        return SimpleNamespace(request=request)

    async def connect(self) -> None:
        if self.failure:
            raise self.failure

    async def create(self, name: str | None, body: dict[str, Any]) -> str:
        self.body = body
        return "probe"

    async def start(self, container: str) -> None:
        if self.failure:
            raise self.failure

    async def wait(self, container: str, started: asyncio.Event) -> int:
        started.set()
        await asyncio.sleep(0)
        return self.code

    async def last_lines(self, container: str, count: int) -> list[str]:
        return self.says[-count:]

    async def remove(self, container: str) -> None:
        self.removed.append(container)


def all_of(source: AsyncIterator[Check]) -> list[Check]:
    async def collect() -> list[Check]:
        async with asyncio.timeout(5):
            return [check async for check in source]

    return asyncio.run(collect())


def verdicts(checks: Iterable[Check]) -> dict[str, bool | None]:
    return {check.name: check.good for check in checks}


def test_a_state_folder_that_is_ours_is_fine_and_keeps_nothing_of_the_look(tmp_path: Path) -> None:
    assert verdicts(host_checks(tmp_path / "mbridge")) == {"mbridge": True, "state": True}
    assert list((tmp_path / "mbridge").iterdir()) == []


def test_a_state_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert verdicts(host_checks(tmp_path / "file" / "mbridge"))["state"] is False


def test_a_key_that_others_may_read_is_told_with_the_command_that_helps(tmp_path: Path) -> None:
    (tmp_path / "id_ed25519").write_text("")
    (tmp_path / "id_ed25519").chmod(0o644)
    last = list(host_checks(tmp_path))[-1]
    assert (last.good, last.hint) == (False, f"chmod 600 {tmp_path / 'id_ed25519'}")


def test_an_engine_is_named_with_its_kind_and_who_named_it() -> None:
    check = all_of(engine_checks(Engine(options=("name=seccomp,profile=default", "name=rootless"))))[0]  # type: ignore[arg-type]  # a fake
    assert (check.good, check.what) == (True, "Debian, rootless, version 27.0 at unix:///run/docker.sock (DOCKER_HOST)")


def test_a_remote_engine_is_carried_by_exec_which_is_said() -> None:
    checks = all_of(engine_checks(Engine(url="tcp://far:2375")))  # type: ignore[arg-type]  # a fake
    assert verdicts(checks) == {"engine": True, "carrier": None}


def test_no_engine_is_one_line_and_nothing_more() -> None:
    checks = all_of(engine_checks(Engine(failure=EngineUnavailable("no engine", hint="start it"))))  # type: ignore[arg-type]  # a fake
    assert checks == [Check("engine", False, "no engine", "start it")]


FINE = json.dumps({"tun": True, "nft": True, "nfqueue": "nft", "ipv6": True, "ping": True, "settings": True})


def test_the_kernel_is_tried_with_a_bridges_rights_in_a_container_that_goes_away() -> None:
    engine = Engine(says=["a warning", FINE])
    checks = all_of(kernel(engine, "mbridge-bridge:1", True))  # type: ignore[arg-type]  # a fake
    assert set(verdicts(checks).values()) == {True}
    assert engine.removed == ["probe"]
    assert engine.body["HostConfig"]["CapAdd"] == ["NET_ADMIN", "NET_RAW"]
    assert engine.body["HostConfig"]["NetworkMode"] == "none"
    assert engine.body["HostConfig"]["Sysctls"]["net.ipv4.fwmark_reflect"] == "0"


def test_a_probe_that_cannot_start_is_told_and_leaves_nothing() -> None:
    engine = Engine(failure=HostError("error gathering device information while adding custom device /dev/net/tun: no such file"))
    checks = all_of(kernel(engine, "img", True))  # type: ignore[arg-type]  # a fake
    assert [(check.name, check.good) for check in checks] == [("kernel", False)]
    assert "modprobe tun" in (checks[0].hint or "")
    assert engine.removed == ["probe"]


@pytest.mark.parametrize(
    "words",
    [
        "container init: open /proc/sys/net/ipv6/conf/all/disable_ipv6: no such file or directory",
        "container init: open sysctl net.ipv6.conf.all.disable_ipv6 file: unsafe procfs detected: openat2 …: no such file or directory",
    ],
)
def test_a_kernel_without_ipv6_is_tried_without_its_settings(words: str) -> None:
    class Old(Engine):
        async def start(self, container: str) -> None:
            if any("ipv6" in name for name in self.body["HostConfig"]["Sysctls"]):
                raise HostError(words)

    engine = Old(says=[FINE])
    assert set(verdicts(all_of(kernel(engine, "img", True))).values()) == {True}  # type: ignore[arg-type]  # a fake
    assert engine.removed == ["probe", "probe"]
    assert engine.body["HostConfig"]["Sysctls"]["net.ipv4.conf.all.arp_ignore"] == "1"


def test_a_probe_that_says_nothing_of_use_is_told_with_its_last_words() -> None:
    for says in ([], ["Traceback", "ImportError: x"], ["[1]"]):
        engine = Engine(says=says, code=1)
        checks = all_of(kernel(engine, "img", True))  # type: ignore[arg-type]  # a fake
        assert checks[0].good is False
        assert engine.removed == ["probe"]
    assert "ImportError: x" in all_of(kernel(Engine(says=["ImportError: x"], code=1), "img", True))[0].what  # type: ignore[arg-type]


def test_an_image_that_is_not_built_is_no_fault_and_nothing_is_made() -> None:
    engine = Engine()
    assert verdicts(all_of(kernel(engine, "img", False))) == {"kernel": None}  # type: ignore[arg-type]  # a fake
    assert engine.body == {}


TWO = Environ(b"A=1\0B=2\0")


@dataclass
class Place:
    found: TargetFound | TargetNotFound
    env: Environ | HostError = TWO

    async def find(self) -> TargetFound:
        if isinstance(self.found, TargetNotFound):
            raise self.found
        return self.found

    async def environ(self) -> Environ:
        if isinstance(self.env, HostError):
            raise self.env
        return self.env


def looked_at(place: Place) -> list[Check]:
    return all_of(target_checks(place))  # type: ignore[arg-type]  # a fake


HERE = TargetFound("docker/x", "container x", "1")


def test_a_target_is_looked_up_and_its_environment_counted_never_shown() -> None:
    checks = looked_at(Place(HERE))
    assert verdicts(checks) == {"target": True, "environment": True}
    assert checks[1].what.startswith("2 variables")


def test_an_environment_that_is_not_the_process_own_is_called_so() -> None:
    _, environment = looked_at(Place(HERE, Environ(b"A=1\0", "the environment is the spec's")))
    assert environment == Check("environment", None, "the environment is the spec's")


def test_a_target_that_is_not_there_ends_the_look() -> None:
    assert looked_at(Place(TargetNotFound("no x", hint="mbridge ls"))) == [Check("target", False, "no x", "mbridge ls")]


def test_a_target_on_its_hosts_network_or_with_a_closed_environment_is_done_without() -> None:
    on_host = TargetFound("docker/x", "container x", "1", host_network=True)
    assert verdicts(looked_at(Place(on_host, HostError("not permitted")))) == {"target": None, "environment": None}

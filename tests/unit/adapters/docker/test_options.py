"""`docker run` options mean what they mean to docker; what cannot be read names its option."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.adapters.docker import bodies, options
from bridge.errors import SpecError
from bridge.model.wish import AppWish

APP = AppWish(image="app:1")
BASE = Path("/home/ana/shop")
IMAGE: dict[str, Any] = {"Config": {"Entrypoint": ["/entry"], "Cmd": ["serve"]}}


@pytest.mark.parametrize(
    ("text", "key", "bound"),
    [
        ("80", "80/tcp", [{"HostIp": "", "HostPort": ""}]),
        ("8080:80", "80/tcp", [{"HostIp": "", "HostPort": "8080"}]),
        ("127.0.0.1:8080:80", "80/tcp", [{"HostIp": "127.0.0.1", "HostPort": "8080"}]),
        ("127.0.0.1::80", "80/tcp", [{"HostIp": "127.0.0.1", "HostPort": ""}]),
        ("[::1]:8080:80/udp", "80/udp", [{"HostIp": "::1", "HostPort": "8080"}]),
        ("8000-8010:80", "80/tcp", [{"HostIp": "", "HostPort": "8000-8010"}]),
    ],
)
def test_a_published_port(text: str, key: str, bound: list[dict[str, str]]) -> None:
    assert options.published((text,)) == ({key: {}}, {key: bound})


def test_a_range_is_published_port_by_port() -> None:
    _, bindings = options.published(("9000-9001:90-91",))
    assert bindings == {"90/tcp": [{"HostIp": "", "HostPort": "9000"}], "91/tcp": [{"HostIp": "", "HostPort": "9001"}]}


@pytest.mark.parametrize("text", ["", "x", "80:x", "0", "70000:80", "80/icmp", "9000-9002:90-91", "1:2:3:4"])
def test_what_is_no_port_is_refused_with_its_text(text: str) -> None:
    with pytest.raises(SpecError) as told:
        options.published((text,))
    assert told.value.message.startswith(f"-p {text}")


@given(st.text(max_size=30))
def test_any_text_is_a_port_or_an_error(text: str) -> None:
    try:
        exposed, bindings = options.published((text,))
    except SpecError:
        return
    assert exposed.keys() == bindings.keys()


def test_volumes_keep_their_options_and_relative_paths_are_the_callers() -> None:
    binds, anonymous = options.volumes((".:/src", "../lib:/lib:ro", "cache:/c:z", "/abs:/abs:Z", "/data"), BASE)
    assert binds == ["/home/ana/shop:/src", "/home/ana/lib:/lib:ro", "cache:/c:z", "/abs:/abs:Z"]
    assert anonymous == {"/data": {}}


@pytest.mark.parametrize("text", ["a:b", ":/x", "a:/b:ro:z", "data"])
def test_what_is_no_volume_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match=r"^-v "):
        options.volumes((text,), BASE)


def test_mounts() -> None:
    (bind, volume, tmpfs) = options.mounts(
        (
            "type=bind,source=.,target=/src,readonly",
            'source=data,target=/d,"volume-opt=o=addr=h,rw",volume-nocopy',
            "type=tmpfs,target=/t,tmpfs-size=64m,tmpfs-mode=1770",
        ),
        BASE,
    )
    assert bind == {"Type": "bind", "Source": "/home/ana/shop", "Target": "/src", "ReadOnly": True}
    assert volume["VolumeOptions"] == {"DriverConfig": {"Options": {"o": "addr=h,rw"}}, "NoCopy": True}
    assert tmpfs["TmpfsOptions"] == {"SizeBytes": 64 << 20, "Mode": 0o1770}


@pytest.mark.parametrize(
    "text", ["type=bind", "target=x", "target=/x,colour=red", "target=/x,ro=maybe", "type=tmpfs,target=/x,tmpfs-mode=9"]
)
def test_what_is_no_mount_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match=r"^--mount "):
        options.mounts((text,), BASE)


def test_a_bare_name_passes_the_callers_variable_and_options_beat_files(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_bytes(b"# comment\nA=file\nB=\xff\n\nUNSET\nPASSED\n")
    wish = replace(APP, env=("A=option", "EMPTY="), env_files=(str(file),))
    assert options.environment(wish, {b"PASSED": b"caller"}) == {b"A": b"option", b"B": b"\xff", b"PASSED": b"caller", b"EMPTY": b""}


def test_a_missing_env_file_is_named() -> None:
    with pytest.raises(SpecError, match="--env-file /nowhere: no such file"):
        options.environment(replace(APP, env_files=("/nowhere",)), {})


@pytest.mark.parametrize(("text", "size"), [("512", 512), ("2g", 2 << 30), ("1.5k", 1536), ("64MiB", 64 << 20)])
def test_sizes(text: str, size: int) -> None:
    assert options.size("--memory", text) == size


def test_resources_and_rights_reach_the_app() -> None:
    host = options.host_config(replace(APP, memory="64m", cpus="1.5", gpus="all", cap_drop=("ALL",), read_only=True, tmpfs=("/t:size=1m",)))
    assert (host["Memory"], host["NanoCpus"], host["CapDrop"], host["ReadonlyRootfs"]) == (64 << 20, 1_500_000_000, ["ALL"], True)
    assert host["DeviceRequests"][0]["Count"] == -1
    assert host["Tmpfs"] == {"/t": "size=1m"}


@pytest.mark.parametrize(
    ("entrypoint", "command", "runs"),
    [
        (None, (), ["/entry", "serve"]),
        (None, ("test",), ["/entry", "test"]),
        ("sh", (), ["sh"]),
        ("sh", ("-c", "true"), ["sh", "-c", "true"]),
        ("", ("ls",), ["ls"]),
    ],
)
def test_the_launcher_starts_what_docker_would(entrypoint: str | None, command: tuple[str, ...], runs: list[str]) -> None:
    body = bodies.app(replace(APP, entrypoint=entrypoint, command=command), IMAGE, "pause", "volume", {})
    assert [*body["Entrypoint"], *body["Cmd"]] == ["/mbridge/launch", "/mbridge/environ", "--", *runs]


def test_an_image_without_a_program_needs_a_command() -> None:
    with pytest.raises(SpecError, match="names no program"):
        bodies.app(APP, {"Config": {}}, "pause", "volume", {})


def test_the_app_gets_no_right_of_ours_and_no_value_passes_the_engine() -> None:
    body = bodies.app(replace(APP, env=("TOKEN=secret",)), IMAGE, "pause", "volume", {})
    assert "Env" not in body
    assert not body["HostConfig"]["CapAdd"]
    assert body["HostConfig"]["Mounts"][-1]["ReadOnly"]


def test_what_belongs_to_the_owner_of_the_namespace_is_pauses() -> None:
    wish = replace(APP, ports=("80",), add_hosts=("db:10.0.0.1", "six=[::1]"), networks=("shop", "other"))
    body = bodies.pause("bridge:1", wish, "orders-1", {}, ("web",))
    assert body["Hostname"] == "orders-1"
    assert body["HostConfig"]["ExtraHosts"] == ["db:10.0.0.1", "six:::1"]
    assert body["HostConfig"]["NetworkMode"] == "shop"
    assert body["NetworkingConfig"] == {"EndpointsConfig": {"shop": {"Aliases": ["web"]}}}
    assert body["HostConfig"]["CapDrop"] == ["ALL"]
    assert body["HostConfig"]["Sysctls"]["net.ipv4.conf.all.arp_ignore"] == "1"


@pytest.mark.parametrize("network", ["host", "none", "container:x"])
def test_the_app_cannot_have_another_netns(network: str) -> None:
    with pytest.raises(SpecError, match="network namespace of its own"):
        bodies.pause("bridge:1", replace(APP, networks=(network,)), None, {}, ())


def test_the_agent_has_no_right_at_all() -> None:
    body = bodies.agent("agent:1", "target", "ssh-ed25519 AAAA", 180, "any", {})
    host = body["HostConfig"]
    assert (body["User"], host["CapDrop"], host["ReadonlyRootfs"], "CapAdd" in host) == ("65532:65532", ["ALL"], True, False)

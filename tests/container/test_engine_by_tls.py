"""An engine that listens on tcp:// with TLS and asks for the client's certificate, as a remote one is mostly set up."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bridge.adapters.docker.endpoint import find_endpoint
from tests.lab.authority import Authority
from tests.lab.boxes import Cli, eventually
from tests.lab.dockerlab import Lab
from tests.unit.contracts.engine import CONTRACT, keep

_SOCKET = "/var/run/docker.sock"  # in the container


@dataclass(frozen=True)
class Remote:
    """`environ` makes mbridge use it."""

    url: str
    environ: dict[str, str]


@pytest.fixture(scope="module")
def remote(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    folder = tmp_path_factory.mktemp("tls")
    authority = Authority("tests")
    authority.issue(folder, "server")
    (folder / "ca.pem").write_bytes(authority.pem)
    authority.issue(folder, "")
    box = lab.box(
        "tls", lab.programs_image, ["/programs/tls-relay", "0", "/tls", _SOCKET], network="host",
        binds={str(folder): {"bind": "/tls", "mode": "ro"}, find_endpoint(None, os.environ).path: {"bind": _SOCKET}},
    )  # fmt: skip
    try:
        port = int(eventually(lambda: box.container.logs().strip()))
        url = f"tcp://127.0.0.1:{port}"
        yield Remote(url, {"DOCKER_HOST": url, "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(folder)})
    finally:
        box.container.remove(force=True)


@pytest.mark.parametrize("check", CONTRACT)
def test_the_contract_of_engines_holds_through_tls(lab: Lab, remote: Remote, check: str) -> None:
    asyncio.run(keep(check, find_endpoint(None, remote.environ), lab.lab_image))


def test_a_session_runs_through_tls_and_its_stdin_ends(lab: Lab, remote: Remote, tmp_path: Path) -> None:
    cli = Cli(tmp_path / "state", remote.environ)
    ask = f"curl -sS --max-time 20 http://{lab.server_ip}:7000/whoami; cat"
    done = cli.run("run", "-i", f"docker/{lab.target.name}", lab.programs_image, "sh", "-c", ask, stdin=b"the end", limit_s=120)
    assert (done.returncode, lab.target_ip in done.stdout, done.stdout[-7:]) == (0, True, "the end"), done


def test_an_engine_of_another_authority_is_not_used(remote: Remote, tmp_path: Path) -> None:
    stranger = Authority("another")
    (tmp_path / "ca.pem").write_bytes(stranger.pem)
    stranger.issue(tmp_path, "")
    done = Cli(tmp_path / "state", {**remote.environ, "DOCKER_CERT_PATH": str(tmp_path)}).run("ls", "docker")
    assert done.returncode == 3
    assert f"the engine at {remote.url} (DOCKER_HOST) failed the TLS handshake: CERTIFICATE_VERIFY_FAILED" in done.stderr


def test_without_a_certificate_of_ones_own_the_engine_s_refusal_is_told(remote: Remote, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(Path(remote.environ["DOCKER_CERT_PATH"], "ca.pem").read_bytes())
    done = Cli(tmp_path / "state", {**remote.environ, "DOCKER_CERT_PATH": str(tmp_path)}).run("ls", "docker")
    assert done.returncode == 3
    assert f"the engine at {remote.url} (DOCKER_HOST) ended the TLS connection: " in done.stderr
    assert "CERTIFICATE" in done.stderr
    assert "hint: it takes certificates of its own authority" in done.stderr

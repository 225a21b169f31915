"""Which engine is meant, in the order in which docker asks."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from bridge.adapters.docker.endpoint import DEFAULT_URL, Endpoint, find_endpoint
from bridge.errors import EngineUnavailable, SpecError


@pytest.fixture
def home(tmp_path: Path) -> Path:
    _context(tmp_path, "colima", {"Host": "unix:///colima.sock", "SkipTLSVerify": False})
    _context(tmp_path, "far", {"Host": "tcp://far.example:2376", "SkipTLSVerify": False}, certs=True)
    return tmp_path


def _context(home: Path, name: str, docker: dict[str, Any], certs: bool = False) -> None:
    digest = hashlib.sha256(name.encode()).hexdigest()
    meta = home / ".docker" / "contexts" / "meta" / digest / "meta.json"
    meta.parent.mkdir(parents=True)
    meta.write_text(json.dumps({"Name": name, "Endpoints": {"docker": docker}}))
    if certs:
        folder = home / ".docker" / "contexts" / "tls" / digest / "docker"
        folder.mkdir(parents=True)
        for file in ("ca.pem", "cert.pem", "key.pem"):
            (folder / file).write_text("")


def _found(home: Path, context: str | None = None, **environ: str) -> Endpoint:
    return find_endpoint(context, {"HOME": str(home), **environ})


def test_without_any_word_it_is_the_default_socket(home: Path) -> None:
    assert _found(home).url == DEFAULT_URL


def test_the_option_beats_docker_host_beats_docker_context_beats_config_json(home: Path) -> None:
    (home / ".docker" / "config.json").write_text('{"currentContext": "colima"}')
    assert _found(home).url == "unix:///colima.sock"
    assert _found(home, DOCKER_CONTEXT="far").url == "tcp://far.example:2376"
    assert _found(home, DOCKER_CONTEXT="far", DOCKER_HOST="unix:///x").url == "unix:///x"
    assert _found(home, "colima", DOCKER_CONTEXT="far", DOCKER_HOST="unix:///x").url == "unix:///colima.sock"
    assert _found(home, "default", DOCKER_HOST="unix:///x").url == DEFAULT_URL


def test_a_contexts_certificates_are_used(home: Path) -> None:
    far = _found(home, "far")
    assert far.tls
    assert far.verify
    assert far.cert is not None
    assert far.cert.endswith("cert.pem")
    assert far.address == ("far.example", 2376)


def test_docker_host_with_tls_takes_its_certificates_from_docker_cert_path(home: Path, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("")
    found = _found(home, DOCKER_HOST="tcp://h", DOCKER_TLS_VERIFY="1", DOCKER_CERT_PATH=str(tmp_path))
    assert (found.tls, found.verify, found.ca, found.cert) == (True, True, str(tmp_path / "ca.pem"), None)


@pytest.mark.parametrize(
    ("said", "url"),
    [("/run/d.sock", "unix:///run/d.sock"), ("h:2375", "tcp://h:2375"), (":2375", "tcp://localhost:2375"), ("http://h:1", "tcp://h:1")],
)
def test_short_forms_of_docker_host(home: Path, said: str, url: str) -> None:
    assert _found(home, DOCKER_HOST=said).url == url


def test_an_unknown_context_is_told_with_who_named_it(home: Path) -> None:
    with pytest.raises(SpecError, match=r"'nope' \(DOCKER_CONTEXT\)"):
        _found(home, DOCKER_CONTEXT="nope")


def test_a_windows_pipe_is_refused_by_name(home: Path) -> None:
    with pytest.raises(EngineUnavailable, match=r"npipe:////./pipe/docker .* only unix://, tcp:// and ssh://"):
        _found(home, DOCKER_HOST="npipe:////./pipe/docker")


def test_ssh_is_taken_from_docker_host_and_from_a_context(home: Path) -> None:
    _context(home, "box", {"Host": "ssh://me@box:2222"})
    assert _found(home, DOCKER_HOST="ssh://box").is_ssh
    assert _found(home, "box").url == "ssh://me@box:2222"


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ssh://", "names no host"),
        ("ssh://me@", "names no host"),
        ("ssh://-oProxyCommand=x", "names no host"),
        ("ssh://me:secret@box", "password"),
        ("ssh://box/run/d.sock?x=1", "nothing may follow"),
        ("ssh://box:99999", "[Pp]ort"),
    ],
)
def test_an_address_by_ssh_that_is_none_is_told_with_who_named_it(home: Path, url: str, why: str) -> None:
    with pytest.raises(SpecError, match=rf"DOCKER_HOST is .*{why}"):
        _found(home, DOCKER_HOST=url)


def test_an_endpoint_comes_back_from_json(home: Path) -> None:
    far = _found(home, "far")
    assert Endpoint.from_json(json.loads(json.dumps(far.to_json()))) == far

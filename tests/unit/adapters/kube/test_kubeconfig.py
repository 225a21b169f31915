"""Kubeconfig files as kubectl reads them; faults are told with the file or context that holds them."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from bridge.adapters.kube import kubeconfig
from bridge.errors import ClusterError

Json = dict[str, Any]


def config(name: str = "one", server: str = "https://one.example:6443", user: Json | None = None, **context: str) -> Json:
    return {
        "current-context": name,
        "clusters": [{"name": name, "cluster": {"server": server}}],
        "users": [{"name": name, "user": user or {"token": f"token of {name}"}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name, **context}}],
    }


def written(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def loaded(tmp_path: Path, value: object, context: str | None = None) -> kubeconfig.Access:
    return kubeconfig.load(str(written(tmp_path / "config", value)), context, {}, tmp_path)


def test_server_namespace_and_token_are_those_of_the_current_context(tmp_path: Path) -> None:
    access = loaded(tmp_path, config(namespace="shop"))
    assert (access.server, access.namespace, access.token) == ("https://one.example:6443", "shop", "token of one")


def test_without_a_namespace_it_is_default(tmp_path: Path) -> None:
    assert loaded(tmp_path, config()).namespace == "default"


def test_a_named_context_beats_the_current_one(tmp_path: Path) -> None:
    both = config("one")
    other = config("two", "https://two.example")
    for kind in ("clusters", "users", "contexts"):
        both[kind] += other[kind]
    assert loaded(tmp_path, both, "two").server == "https://two.example"


def test_of_several_files_the_first_to_name_a_thing_wins_and_missing_ones_are_skipped(tmp_path: Path) -> None:
    first = written(tmp_path / "a", config("one", "https://first.example"))
    second = written(tmp_path / "b", config("one", "https://second.example") | {"current-context": "two"})
    environ = {"KUBECONFIG": f"{tmp_path / 'missing'}:{first}:{second}"}
    assert kubeconfig.load(None, None, environ, tmp_path).server == "https://first.example"


def test_the_home_folders_file_is_the_default(tmp_path: Path) -> None:
    written(tmp_path / ".kube" / "config", config())
    assert kubeconfig.load(None, None, {}, tmp_path).context == "one"


def test_files_are_relative_to_the_kubeconfig_that_names_them(tmp_path: Path) -> None:
    written(tmp_path / "pki" / "user.crt", "certificate")
    written(tmp_path / "pki" / "user.key", "key")
    access = loaded(tmp_path, config(user={"client-certificate": "pki/user.crt", "client-key": "pki/user.key"}))
    assert (access.certificate, access.key) == (b"certificate", b"key")


def test_inline_data_beats_a_file(tmp_path: Path) -> None:
    data = base64.b64encode(b"inline").decode()
    access = loaded(tmp_path, config(user={"client-certificate": "nowhere", "client-certificate-data": data}))
    assert access.certificate == b"inline"


def test_an_exec_plugin_by_path_is_relative_to_its_file_and_by_name_is_looked_up(tmp_path: Path) -> None:
    by_path = loaded(tmp_path, config(user={"exec": {"command": "./bin/login", "args": ["-x"]}})).plugin
    by_name = loaded(tmp_path, config(user={"exec": {"command": "aws", "env": [{"name": "A", "value": "b"}]}})).plugin
    assert by_path is not None
    assert by_name is not None
    assert Path(by_path.command) == tmp_path / "bin/login"
    assert (by_name.command, by_name.env) == ("aws", (("A", "b"),))


def test_impersonation_becomes_headers(tmp_path: Path) -> None:
    access = loaded(tmp_path, config(user={"token": "t", "as": "ana", "as-groups": ["dev", "ops"]}))
    assert access.impersonate == (("Impersonate-User", "ana"), ("Impersonate-Group", "dev"), ("Impersonate-Group", "ops"))


def test_secrets_are_not_in_its_repr(tmp_path: Path) -> None:
    assert "token of one" not in repr(loaded(tmp_path, config()))


@pytest.mark.parametrize(
    ("value", "context", "message", "hint"),
    [
        (config("prod-eu"), "prod-ue", "context 'prod-ue' does not exist in", "did you mean 'prod-eu'"),
        (config() | {"current-context": ""}, None, "no current-context in", "--context one"),
        (config() | {"clusters": []}, None, "names the cluster 'one', which does not exist", None),
        (config(server="one.example"), None, "has no server", None),
        ("a: [1", None, "config:1: no valid YAML", None),
        ("- 1", None, "holds no mapping", None),
        (config(user={"client-key": "nowhere"}), None, "unable to read client-key", None),
        (config(user={"client-key-data": "a"}), None, "client-key-data is no base64", None),
    ],
)
def test_a_fault_is_told_with_what_is_at_fault(tmp_path: Path, value: object, context: str | None, message: str, hint: str | None) -> None:
    with pytest.raises(ClusterError) as caught:
        loaded(tmp_path, value, context)
    assert message in caught.value.message
    assert hint is None or caught.value.hint == hint


def test_no_kubeconfig_at_all_names_the_files_that_were_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"no kubeconfig: .*\.kube/config does not exist"):
        kubeconfig.load(None, None, {}, tmp_path)


def test_a_named_file_that_is_missing_is_an_error_even_where_there_is_a_default(tmp_path: Path) -> None:
    written(tmp_path / ".kube" / "config", config())
    with pytest.raises(ClusterError, match="no such file"):
        kubeconfig.load(str(tmp_path / "nowhere"), None, {}, tmp_path)

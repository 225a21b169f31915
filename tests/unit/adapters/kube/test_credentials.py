"""Credentials of a kubeconfig: plugins of the test's own, run as kubectl runs them."""

from __future__ import annotations

import asyncio
import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from bridge.adapters.kube.credentials import Credentials, run_plugin
from bridge.adapters.kube.kubeconfig import Access, ExecPlugin
from bridge.errors import ClusterError

V1 = "client.authentication.k8s.io/v1"


def plugin(folder: Path, script: str, **more: Any) -> ExecPlugin:
    """A program that does what `script` says."""
    file = folder / "login"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return ExecPlugin(str(file), ("-x",), (("MINE", "1"),), V1, **more)


def access(made: ExecPlugin | None = None, **more: Any) -> Access:
    return Access("https://api.shop.test", "dev", "shop", "ana", "config", plugin=made, **more)


def printing(**status: str) -> str:
    return f"cat <<'END'\n{json.dumps({'apiVersion': V1, 'kind': 'ExecCredential', 'status': status})}\nEND"


def ran(made: ExecPlugin, **more: Any) -> dict[str, Any]:
    return asyncio.run(run_plugin(made, access(made, **more)))


def headers(credentials: Credentials, times: int = 1) -> list[list[tuple[str, str]]]:
    async def ask() -> list[list[tuple[str, str]]]:
        return [await credentials.headers() for _ in range(times)]

    return asyncio.run(ask())


def test_a_plugin_gets_its_arguments_its_environment_and_what_it_is_asked_for(tmp_path: Path) -> None:
    made = plugin(tmp_path, f'echo "$1 $MINE" >{tmp_path}/seen; echo "$KUBERNETES_EXEC_INFO" >{tmp_path}/info; {printing(token="t")}',
                  interactive="Never")  # fmt: skip
    assert ran(made) == {"token": "t"}
    assert (tmp_path / "seen").read_text() == "-x 1\n"
    assert json.loads((tmp_path / "info").read_text()) == {"kind": "ExecCredential", "apiVersion": V1, "spec": {"interactive": False}}


def test_a_plugin_that_asks_for_it_is_told_about_the_cluster(tmp_path: Path) -> None:
    made = plugin(tmp_path, f'echo "$KUBERNETES_EXEC_INFO" >{tmp_path}/info; {printing(token="t")}', cluster_info=True, interactive="Never")
    ran(made, ca=b"CA", proxy_url="http://proxy.test:3128", tls_server_name="api")
    assert json.loads((tmp_path / "info").read_text())["spec"]["cluster"] == {
        "server": "https://api.shop.test", "tls-server-name": "api", "certificate-authority-data": "Q0E=",
        "proxy-url": "http://proxy.test:3128"}  # fmt: skip


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo one >&2; echo 'no session: log in first' >&2; exit 3", "credential plugin 'login' failed with 3: no session: log in first"),
        ("exit 1", "credential plugin 'login' failed with 1: it said nothing"),
        ("echo hello", "credential plugin 'login' printed no ExecCredential"),
        ("echo '{\"status\": 1}'", "credential plugin 'login' printed no ExecCredential"),
    ],
)
def test_a_plugin_that_fails_is_told_with_its_last_words(tmp_path: Path, script: str, message: str) -> None:
    with pytest.raises(ClusterError) as caught:
        ran(plugin(tmp_path, script))
    assert caught.value.message == message


def test_a_plugin_that_is_not_installed_is_told_with_its_own_hint() -> None:
    missing = ExecPlugin("no-such-login", (), (), V1, install_hint="\nget it from the shop's wiki\nor ask ana")
    with pytest.raises(ClusterError, match="credential plugin 'no-such-login' of user 'ana' is not installed") as caught:
        ran(missing)
    assert caught.value.hint == "get it from the shop's wiki"


def test_a_plugin_runs_once_until_its_token_is_about_to_expire_or_is_refused(tmp_path: Path) -> None:
    def counted(lives_s: float) -> Credentials:
        (tmp_path / "count").unlink(missing_ok=True)
        until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=lives_s)
        status = printing(token="t", expirationTimestamp=f"{until:%Y-%m-%dT%H:%M:%SZ}")
        return Credentials(access(plugin(tmp_path, f"echo x >>{tmp_path}/count; {status}")))

    def runs() -> int:
        return (tmp_path / "count").read_text().count("x")

    long = counted(3600)
    assert headers(long, 3) == [[("Authorization", "Bearer t")]] * 3
    assert runs() == 1
    long.forget()
    headers(long)
    assert runs() == 2
    headers(counted(5), 3)
    assert runs() == 3, "less than ten seconds are left each time"


def test_impersonation_goes_with_basic_credentials() -> None:
    asked = headers(Credentials(access(basic=("ana", "geheim"), impersonate=(("Impersonate-User", "bob"),))))
    assert asked == [[("Impersonate-User", "bob"), ("Authorization", "Basic YW5hOmdlaGVpbQ==")]]


def test_a_token_file_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=f"unable to read the token file {tmp_path}/token: No such file"):
        headers(Credentials(access(token_file=tmp_path / "token")))


def test_what_is_no_certificate_is_told_with_its_context_or_user() -> None:
    with pytest.raises(ClusterError, match="the certificate authority of context 'dev' is no PEM certificate"):
        Credentials(access(ca=b"nonsense")).tls()
    with pytest.raises(ClusterError, match="certificate and key of user 'ana' are not a pair"):
        Credentials(access(certificate=b"nonsense", key=b"nonsense")).tls()

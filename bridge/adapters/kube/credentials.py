"""Credentials of an Access: the TLS context and the headers of each request, renewed when they run out.

Theory of operation: a token file is read again each minute (bound service-account tokens rotate); an exec plugin runs when
first needed, again shortly before `expirationTimestamp`, and once more after a 401. Its client certificate makes a new TLS
context. Nothing of it is logged.

    client.authentication.k8s.io: KUBERNETES_EXEC_INFO in the plugin's environment, an ExecCredential as JSON on its stdout
"""

from __future__ import annotations

import asyncio
import base64
import datetime
import json
import os
import shutil
import ssl
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bridge.adapters.kube.kubeconfig import Access, ExecPlugin
from bridge.errors import ClusterError

_PLUGIN_LIMIT_S = 60.0  # a browser log-in may be part of it
_TOKEN_FILE_AGE_S = 60.0
_EARLY_S = 10.0


class Credentials:
    """What proves to the API server who asks. `tls()` and `headers()` are cheap while nothing has expired."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._token = access.token
        self._certificate, self._key = access.certificate, access.key
        self._expires: float | None = None
        self._fresh = False
        self._tls: ssl.SSLContext | None = None
        self._lock = asyncio.Lock()

    def tls(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = _context(self._access, self._certificate, self._key)
        return self._tls

    async def headers(self) -> list[tuple[str, str]]:
        """Authorization and impersonation. Raises ClusterError when a plugin or a file fails."""
        async with self._lock:
            now = time.time()
            if not self._fresh or (self._expires is not None and now >= self._expires):
                await self._renew(now)
                self._fresh = True
        headers = list(self._access.impersonate)
        if self._token:
            headers.append(("Authorization", f"Bearer {self._token}"))
        elif self._access.basic:
            pair = base64.b64encode(":".join(self._access.basic).encode()).decode()
            headers.append(("Authorization", f"Basic {pair}"))
        return headers

    def renewable(self) -> bool:
        """Would forgetting help after a 401? Plain tokens and certificates stay what they are."""
        return self._access.plugin is not None or self._access.token_file is not None or self._access.auth_provider is not None

    def forget(self) -> None:
        self._fresh = False

    async def _renew(self, now: float) -> None:
        access = self._access
        self._expires = None
        if access.token_file is not None:
            try:
                self._token = access.token_file.read_text().strip()
            except OSError as error:
                raise ClusterError(f"unable to read the token file {access.token_file}: {error.strerror}") from error
            self._expires = now + _TOKEN_FILE_AGE_S
        elif access.plugin is not None:
            self._take(await run_plugin(access.plugin, access))
        elif access.auth_provider is not None and not access.token:
            self._token = await asyncio.to_thread(_official_token, access)
            self._expires = now + _TOKEN_FILE_AGE_S

    def _take(self, status: dict[str, Any]) -> None:
        self._token = status.get("token") or self._access.token
        certificate, key = status.get("clientCertificateData"), status.get("clientKeyData")
        if certificate and key:
            self._certificate, self._key = certificate.encode(), key.encode()
            self._tls = None
        if expiry := status.get("expirationTimestamp"):
            self._expires = datetime.datetime.fromisoformat(expiry.replace("Z", "+00:00")).timestamp() - _EARLY_S


def _context(access: Access, certificate: bytes | None, key: bytes | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cadata=access.ca.decode() if access.ca else None)
    except (ssl.SSLError, UnicodeDecodeError, ValueError) as error:
        raise ClusterError(f"kubeconfig: the certificate authority of context '{access.context}' is no PEM certificate") from error
    if access.insecure:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if certificate and key:
        with tempfile.TemporaryDirectory() as folder:  # 0700; ssl takes a client certificate from files alone
            path = Path(folder, "pem")
            path.write_bytes(certificate.rstrip() + b"\n" + key)
            try:
                context.load_cert_chain(path)
            except (ssl.SSLError, OSError) as error:
                raise ClusterError(f"kubeconfig: certificate and key of user '{access.user}' are not a pair: {error}") from error
    return context


def certificate_expiry(certificate: bytes | None) -> datetime.datetime | None:
    """When the client certificate ends; None if there is none or it cannot be read."""
    if not certificate:
        return None
    from cryptography import x509  # asyncssh brings it; only looked at once something was refused

    try:
        return x509.load_pem_x509_certificate(certificate).not_valid_after_utc
    except ValueError:
        return None


async def run_plugin(plugin: ExecPlugin, access: Access) -> dict[str, Any]:
    """Run it; return the `status` of what it printed. Raises ClusterError with its last words."""
    name = Path(plugin.command).name
    if not shutil.which(plugin.command):
        hint = plugin.install_hint.strip().splitlines()[0] if plugin.install_hint else f"install {name}"
        raise ClusterError(f"credential plugin '{name}' of user '{access.user}' is not installed", hint=hint)
    spec: dict[str, Any] = {"interactive": sys.stdin.isatty() and plugin.interactive != "Never"}
    if plugin.cluster_info:
        told = {"server": access.server, "tls-server-name": access.tls_server_name, "insecure-skip-tls-verify": access.insecure,
                "certificate-authority-data": base64.b64encode(access.ca or b"").decode(), "proxy-url": access.proxy_url}  # fmt: skip
        spec["cluster"] = {name: value for name, value in told.items() if value}
    info = {"kind": "ExecCredential", "apiVersion": plugin.api_version, "spec": spec}
    environ = os.environ | dict(plugin.env) | {"KUBERNETES_EXEC_INFO": json.dumps(info)}
    process = await asyncio.create_subprocess_exec(
        plugin.command, *plugin.args, env=environ, stdin=None if spec["interactive"] else asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)  # fmt: skip
    try:
        out, err = await asyncio.wait_for(process.communicate(), _PLUGIN_LIMIT_S)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise ClusterError(f"credential plugin '{name}' gave no answer in {_PLUGIN_LIMIT_S:.0f} s") from None
    if process.returncode:
        last = (err.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        raise ClusterError(f"credential plugin '{name}' failed with {process.returncode}: {last}", hint=" ".join([name, *plugin.args]))
    try:
        status = json.loads(out)["status"]
        if not isinstance(status, dict):
            raise TypeError
    except (ValueError, KeyError, TypeError) as error:
        raise ClusterError(f"credential plugin '{name}' printed no ExecCredential") from error
    return status


def _official_token(access: Access) -> str | None:
    """The token of an `auth-provider` user, as the official client gets (and refreshes) it."""
    from kubernetes import config  # heavy, and only for this kind of user
    from kubernetes.config.config_exception import ConfigException

    try:
        load: Any = config.new_client_from_config  # the client has no types
        client = load(config_file=access.source.split(", ")[0], context=access.context)
    except ConfigException as error:
        raise ClusterError(f"user '{access.user}': {error}") from error
    value: str = client.configuration.api_key.get("authorization", "")
    return value.removeprefix("Bearer ") or None

"""The API server, through one aiohttp session: JSON in and out, streams, WebSockets, errors in the user's words.

Theory of operation: a refusal by RBAC is `Forbidden` with the very verb and resource that the server names; any other 403, 409
or 422 is `Refused` with the server's own sentence (admission, quota, Pod Security); a 404 is `Missing`; whatever keeps the
server from answering is `Unreachable`, which names server and cause as kubectl does and comes within 5 s; a 429 or 5xx is the kind
of it that came from someone (`Unavailable`). A 401 renews credentials once, if they can be renewed.

Limits: a WebSocket's refusal has no body, so its reason is asked for by the same request without the upgrade.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import re
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from bridge.adapters.kube.credentials import Credentials, certificate_expiry
from bridge.adapters.kube.kubeconfig import Access
from bridge.adapters.kube.proxies import proxy_of
from bridge.errors import ClusterError, Forbidden

CONNECT_LIMIT_S = 4.0
ANSWER_LIMIT_S = 5.0
STRATEGIC = "application/strategic-merge-patch+json"
_WEBSOCKET = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3
Query = Sequence[tuple[str, str]]

# 'pods "x" is forbidden: User "ana" cannot patch resource "pods/ephemeralcontainers" in API group "" in the namespace "shop"'
_RBAC = re.compile(r'cannot (?P<verb>\w+) resource "(?P<resource>[^"]+)"(?:.*? in the namespace "(?P<namespace>[^"]*)")?')


class Unreachable(ClusterError):
    """No answer, or none that counts: try again later."""


class Unavailable(Unreachable):
    """The API server, or who stands before it, answered that it cannot (429, 5xx): what was asked for another way may be had."""


class Missing(ClusterError):
    """The object does not exist (any more)."""


class Refused(ClusterError):
    """The API server understood and said no, in `said`: admission, quota, Pod Security, a conflict, a bad value."""

    def __init__(self, said: str, status: int, *, hint: str | None = None) -> None:
        super().__init__(said, hint=hint)
        self.said, self.status = said, status


class Api:
    """One API server as one user. Use as `async with`; `count` is the number of requests made so far."""

    def __init__(self, access: Access) -> None:
        self.access = access
        self.count = 0
        self._credentials = Credentials(access)
        self._session: aiohttp.ClientSession | None = None
        self._proxy = proxy_of(access, os.environ)
        self._proxy_url = self._proxy.url if self._proxy else None

    async def __aenter__(self) -> Api:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def get(self, path: str, query: Query = ()) -> dict[str, Any]:
        return await self.request("GET", path, query)

    async def request(
        self, method: str, path: str, query: Query = (), body: object = None, kind: str = "application/json"
    ) -> dict[str, Any]:
        """One request and its JSON answer. Raises Forbidden, Missing, Refused, Unreachable, ClusterError."""
        async with asyncio.timeout(60):  # a credential plugin may ask its user
            async with self._answer(method, path, query, body, kind, ANSWER_LIMIT_S) as answer:
                value = json.loads(await answer.read())
        if not isinstance(value, dict):
            raise ClusterError(f"{self.access.server} is no API server: {path} gave {type(value).__name__}")
        return value

    async def lines(self, path: str, query: Query = ()) -> AsyncGenerator[bytes, None]:
        """A watch or a followed log, line by line, until the server ends it. Raises as `request` does."""
        async with self._answer("GET", path, query, None, "application/json", None) as answer:
            held = b""
            try:
                async for piece in answer.content.iter_any():
                    *whole, held = (held + piece).split(b"\n")
                    for line in whole:
                        yield line
            except (aiohttp.ClientError, OSError) as error:
                raise self._unreachable(error) from error
            if held:
                yield held

    async def websocket(self, path: str, query: Query, protocols: Sequence[str]) -> aiohttp.ClientWebSocketResponse:
        """An upgraded request. Raises Forbidden (a WebSocket is a GET; newer servers ask for create), Missing, Refused, Unreachable."""
        for last in (False, True):
            try:
                self.count += 1
                return await asyncio.wait_for(self._open().ws_connect(
                    self._url(path, query), protocols=protocols, headers=await self._headers(), ssl=self._tls(), proxy=self._proxy_url,
                    server_hostname=self.access.tls_server_name, max_msg_size=0, compress=0, heartbeat=30), ANSWER_LIMIT_S + 1)  # fmt: skip
            except aiohttp.WSServerHandshakeError as error:
                if error.status == 401 and not last and self._credentials.renewable():
                    self._credentials.forget()
                    continue
                async with self._answer("GET", path, query, None, "application/json", ANSWER_LIMIT_S):
                    pass  # raises with the reason; where it does not, the upgrade alone was refused
                raise Refused(f"{self.access.server} refused the WebSocket: {error.status} {error.message}", error.status) from error
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                raise self._unreachable(error) from error
        raise AssertionError("unreachable")

    async def upgrade(self, path: str, query: Query, protocols: Sequence[str]) -> aiohttp.ClientResponse:
        """As `websocket`, but the bare connection after the handshake: `response.connection` is the caller's to read and write."""
        for last in (False, True):
            key = base64.b64encode(os.urandom(16)).decode()
            headers = [*await self._headers(), ("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13"),
                       ("Sec-WebSocket-Key", key), ("Sec-WebSocket-Protocol", ", ".join(protocols))]  # fmt: skip
            self.count += 1
            timeout = aiohttp.ClientTimeout(total=ANSWER_LIMIT_S + 1, connect=CONNECT_LIMIT_S)
            try:
                answer = await self._open().request(
                    "GET", self._url(path, query), headers=headers, ssl=self._tls(), proxy=self._proxy_url, timeout=timeout,
                    server_hostname=self.access.tls_server_name, allow_redirects=False, read_until_eof=False)  # fmt: skip
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                raise self._unreachable(error) from error
            accept = base64.b64encode(hashlib.sha1(key.encode() + _WEBSOCKET).digest()).decode()
            if answer.status == 101 and answer.headers.get("Sec-WebSocket-Accept") == accept:
                return answer
            try:
                if answer.status == 401 and not last and self._credentials.renewable():
                    self._credentials.forget()
                    continue
                body = await answer.read() if answer.status != 101 else b""
                raise self._refusal(answer.status if answer.status >= 300 else 400, "the WebSocket was refused", body)
            finally:
                answer.close()
        raise AssertionError("unreachable")

    @asynccontextmanager
    async def _answer(
        self, method: str, path: str, query: Query, body: object, kind: str, limit_s: float | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        data = None if body is None else json.dumps(body).encode()
        for last in (False, True):
            headers = [*await self._headers(), ("Accept", "application/json"), *([("Content-Type", kind)] if data else [])]
            self.count += 1
            timeout = aiohttp.ClientTimeout(total=limit_s, connect=CONNECT_LIMIT_S)
            try:
                answer = await self._open().request(
                    method, self._url(path, query), data=data, headers=headers, ssl=self._tls(), proxy=self._proxy_url, timeout=timeout,
                    server_hostname=self.access.tls_server_name, allow_redirects=False)  # fmt: skip
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                raise self._unreachable(error) from error
            try:
                if answer.status == 401 and not last and self._credentials.renewable():
                    self._credentials.forget()
                    continue
                if answer.status >= 300:
                    raise self._refusal(answer.status, answer.reason or "", await answer.read())
                yield answer
                return
            except TimeoutError as error:
                raise self._unreachable(error) from error
            finally:
                answer.release() if limit_s is not None else answer.close()

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
            self._session = aiohttp.ClientSession(connector=connector, headers={"User-Agent": "mbridge"}, auto_decompress=True)
        return self._session

    async def _headers(self) -> list[tuple[str, str]]:
        return await self._credentials.headers()

    def _tls(self) -> ssl.SSLContext | bool:
        return self._credentials.tls() if self.access.server.startswith("https:") else False

    def _url(self, path: str, query: Query) -> Any:
        from yarl import URL

        return URL(self.access.server + path).with_query(list(query)) if query else URL(self.access.server + path)

    def _refusal(self, status: int, reason: str, body: bytes) -> ClusterError:
        try:
            said = json.loads(body).get("message") or reason
        except (ValueError, AttributeError):
            said = body[:200].decode(errors="replace").strip() or reason
        if status == 401:
            return self._unauthorised()
        if status == 403 and (match := _RBAC.search(said)):
            return Forbidden(match["verb"], match["resource"], match["namespace"])
        if status == 404:
            return Missing(said)
        if status == 429 or status >= 500:
            return Unavailable(f"the API server {self.access.server} cannot answer: {said}")
        return Refused(said, status)

    def _unauthorised(self) -> ClusterError:
        access = self.access
        expiry = certificate_expiry(access.certificate)
        if expiry and expiry.timestamp() < time.time():
            return ClusterError(f"the client certificate of user '{access.user}' has expired on {expiry:%Y-%m-%d %H:%M} UTC",
                                hint=f"renew it in {access.source}")  # fmt: skip
        said = f"you must be logged in to {access.server} (Unauthorized): it does not accept the credentials of user '{access.user}'"
        return ClusterError(said, hint=f"kubectl --context {access.context} auth whoami")

    def _unreachable(self, error: BaseException) -> Unreachable:
        server, cause = self.access.server, _cause(error)
        if self._proxy is None:
            return Unreachable(f"unable to connect to the server {server}: {cause}",
                               hint=f"kubectl --context {self.access.context} cluster-info")  # fmt: skip
        hint = f"the proxy is {self._proxy.source}"
        if isinstance(error, aiohttp.ClientProxyConnectionError):
            said = f"unable to connect to the proxy {self._proxy}, on the way to the server {server}: {cause}"
        elif isinstance(error, aiohttp.ClientHttpProxyError):
            said = f"the proxy {self._proxy} does not connect to the server {server}: {error.status} {error.message}"
        else:
            said = f"unable to connect to the server {server} through the proxy {self._proxy}: {cause}"
        return Unreachable(said, hint=hint)


def _cause(error: BaseException) -> str:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        error = error.certificate_error
    if isinstance(error, aiohttp.ClientConnectorError) and error.os_error is not None:
        error = error.os_error
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"tls: {error.verify_message}"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror and not isinstance(error, ssl.SSLError):
        text = error.strerror if not error.strerror.startswith("Connect call failed") else os.strerror(error.errno or 0)
        return text[:1].lower() + text[1:]
    return str(error) or type(error).__name__

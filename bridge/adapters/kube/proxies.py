"""Through which proxy the API server is asked, decided as kubectl decides it.

Theory of operation: the kubeconfig's `proxy-url`, which no exception touches; else HTTPS_PROXY (HTTP_PROXY for a server by
http), unless NO_PROXY names the server or the server is this machine. The rules of NO_PROXY are Go's (golang.org/x/net/http/httpproxy):

    *                     everything         10.0.0.0/8         addresses of that network
    shop.test             it and all below   .shop.test         what is below it, not itself; *.shop.test is the same
    10.0.3.7  [fd00::7]   that address       any of them:6443   at that port alone

Limits: HTTP and HTTPS proxies; SOCKS is refused by name.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from bridge.adapters.kube.kubeconfig import Access
from bridge.errors import ClusterError

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Proxy:
    """`source` tells where it was named. Its string is the URL without user and password, fit for a message."""

    url: str
    source: str

    def __str__(self) -> str:
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def proxy_of(access: Access, environ: Mapping[str, str]) -> Proxy | None:
    """Raises ClusterError for a kind that is not known here."""
    server = urlsplit(access.server)
    proxy, source = access.proxy_url, f"proxy-url of context '{access.context}' in {access.source}"
    if not proxy:
        name = f"{server.scheme}_proxy".upper()
        proxy, source = environ.get(name) or environ.get(name.lower()) or "", f"the environment's {name}"
        excepted = environ.get("NO_PROXY") or environ.get("no_proxy") or ""
        if not proxy or bypassed(server.hostname or "", server.port or _PORTS[server.scheme], excepted):
            return None
    made = Proxy(proxy if "://" in proxy else f"http://{proxy}", source)
    if not made.url.startswith(("http://", "https://")):
        raise ClusterError(f"proxy {made}: only http and https proxies are known", hint=f"it is {source}")
    return made


def bypassed(host: str, port: int, excepted: str) -> bool:
    """Is `host` this machine, or one of NO_PROXY's (`excepted`)?"""
    host = host.lower().rstrip(".")
    address = _address(host)
    if host == "localhost" or (address is not None and address.is_loopback):
        return True
    return any(_matches(entry.strip().lower(), host, port, address) for entry in excepted.split(",") if entry.strip())


def _matches(entry: str, host: str, port: int, address: ipaddress.IPv4Address | ipaddress.IPv6Address | None) -> bool:
    if entry == "*":
        return True
    if "/" in entry:
        try:
            return address is not None and address in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
    if _address(entry) is None:
        name, _, wanted = entry.rpartition(":")
        if name:
            if wanted != str(port):
                return False
            entry = name
    if (one := _address(entry.strip("[]"))) is not None:
        return one == address
    name = entry.removeprefix("*").rstrip(".")
    return host.endswith(name) if name.startswith(".") else host == name or host.endswith(f".{name}")


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None

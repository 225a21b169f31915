"""Through which proxy the API server is asked: kubectl's choice in each case."""

from __future__ import annotations

import pytest

from bridge.adapters.kube.kubeconfig import Access
from bridge.adapters.kube.proxies import Proxy, bypassed, proxy_of
from bridge.errors import ClusterError

PROXY = "http://proxy.test:3128"


def access(server: str = "https://api.shop.test:6443", proxy_url: str | None = None) -> Access:
    return Access(server, "dev", "default", "ana", "config", proxy_url=proxy_url)


@pytest.mark.parametrize(
    ("found", "environ", "proxy"),
    [
        (access(), {}, None),
        (access(), {"HTTPS_PROXY": PROXY}, PROXY),
        (access(), {"https_proxy": PROXY}, PROXY),
        (access(), {"HTTPS_PROXY": "proxy.test:3128"}, PROXY),
        (access(), {"HTTP_PROXY": PROXY}, None),
        (access("http://api.shop.test"), {"HTTP_PROXY": PROXY, "HTTPS_PROXY": "http://other"}, PROXY),
        (access(), {"HTTPS_PROXY": PROXY, "NO_PROXY": "shop.test"}, None),
        (access(), {"HTTPS_PROXY": PROXY, "no_proxy": "shop.test"}, None),
        (access(proxy_url=PROXY), {"HTTPS_PROXY": "http://other", "NO_PROXY": "*"}, PROXY),
        (access("https://localhost:6443"), {"HTTPS_PROXY": PROXY}, None),
        (access("https://localhost:6443", PROXY), {}, PROXY),
    ],
)
def test_the_kubeconfigs_proxy_beats_the_environments_and_its_exceptions(found: Access, environ: dict[str, str], proxy: str | None) -> None:
    chosen = proxy_of(found, environ)
    assert (chosen and chosen.url) == proxy


@pytest.mark.parametrize(
    ("host", "excepted", "past"),
    [
        ("10.0.3.7", "10.0.0.0/8", True),
        ("10.0.3.7", "192.168.0.0/16, 10.0.3.7", True),
        ("10.0.3.7", "10.0.3.7:6443", True),
        ("10.0.3.7", "10.0.3.7:443", False),
        ("10.0.3.7", "10.0.3", False),
        ("fd00::7", "fd00::/8", True),
        ("fd00::7", "[fd00::7]:6443", True),
        ("fd00::7", "fd00::7", True),
        ("fd00::7", "10.0.0.0/8", False),
        ("api.shop.test", "shop.test", True),
        ("shop.test", "shop.test", True),
        ("api.shop.test", ".shop.test", True),
        ("shop.test", ".shop.test", False),
        ("api.shop.test", "*.shop.test", True),
        ("workshop.test", "shop.test", False),
        ("API.Shop.Test.", "SHOP.TEST", True),
        ("api.shop.test", "shop.test:6443", True),
        ("api.shop.test", "shop.test:443", False),
        ("api.shop.test", "no/network, ,api.shop.test", True),
        ("api.shop.test", "*", True),
        ("127.0.0.1", "", True),
        ("::1", "", True),
        ("api.shop.test", "", False),
    ],
)
def test_no_proxy_means_what_it_means_to_kubectl(host: str, excepted: str, past: bool) -> None:
    assert bypassed(host, 6443, excepted) is past


def test_a_proxy_of_another_kind_is_refused_with_where_it_was_named() -> None:
    with pytest.raises(ClusterError, match=r"^proxy socks5://proxy.test:1080: only http and https") as caught:
        proxy_of(access(proxy_url="socks5://ana:geheim@proxy.test:1080"), {})
    assert caught.value.hint == "it is proxy-url of context 'dev' in config"


def test_a_message_never_holds_a_proxys_password() -> None:
    assert str(Proxy("http://ana:geheim@proxy.test:3128/", "")) == PROXY

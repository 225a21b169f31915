from __future__ import annotations

import asyncio
import errno
from typing import Any

import pytest
from pyroute2.netlink.exceptions import NetlinkError

from bridge.adapters import netlink
from bridge.adapters.netlink import SessionRoutes
from bridge.errors import KernelLacks


@pytest.mark.parametrize("failure", [NetlinkError(errno.ENOBUFS), OSError(errno.ENOBUFS, "")], ids=["the kernel's", "the socket's"])
def test_a_listing_that_fails_is_told_as_the_kernels_fault_whatever_failed(monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    class Socket:
        def __getattr__(self, name: str) -> Any:
            def ask(*_: object, **__: object) -> None:
                if name != "close":
                    raise failure

            return ask

    monkeypatch.setattr(netlink, "IPRoute", Socket)

    async def scenario() -> None:
        async with SessionRoutes() as routes:
            for asking in (routes.reached("mb-x"), routes.standing(), routes.take_away_stale()):
                with pytest.raises(KernelLacks, match=r"does not answer about routes: No buffer space available"):
                    await asking

    asyncio.run(scenario())

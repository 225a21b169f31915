"""Networks that the session joins later: `docker network connect NETWORK PAUSE` gives its namespace a device more.

Theory of operation: the kernel tells of each address and route that comes or goes (rtnetlink(7)). What it says is not read, for
what is there then is what counts; so a message that is lost (ENOBUFS) is a reason to look like any other.

The engine writes its own into the session's resolv.conf and hosts as well, before it makes a device and after it has taken one away;
so there is a second look a moment later.

What a failure means: a look that failed half way has judged no device (that comes last), so nothing leaves by a network that is new;
one that was left stays DIRECT, to that network alone, never by a default route (adapters/netlink.py). So all is tried again and nothing
ends: to end the bridge would reset every flow, and leave the same rules.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable

from bridge.errors import BridgeError

log = logging.getLogger(__name__)

_GROUPS = 0x10 | 0x100 | 0x40 | 0x400  # RTMGRP_IPV4_IFADDR, IPV6_IFADDR, IPV4_ROUTE, IPV6_ROUTE: linux/rtnetlink.h
_READ_BYTES = 64 << 10
SETTLED_S = 1.0


async def follow(look: Callable[[], Awaitable[None]]) -> None:
    """Call `look` after each change of this namespace's addresses and routes, twice, and at the start; until cancelled."""
    while True:
        try:
            with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE) as sock:
                sock.bind((0, _GROUPS))
                await _follow(sock, look)
        except OSError as exc:  # no descriptor left; what changed unseen is found by the look at the start
            log.warning("! listening for changes of the app's networks: %s; again in %.0f s", exc, SETTLED_S)
        await asyncio.sleep(SETTLED_S)


async def _follow(sock: socket.socket, look: Callable[[], Awaitable[None]]) -> None:
    loop = asyncio.get_running_loop()
    changed = asyncio.Event()
    changed.set()

    def on_message() -> None:
        changed.set()
        try:
            while sock.recv(_READ_BYTES):
                pass
        except BlockingIOError:
            pass
        except OSError:  # the kernel's queue was full; uvloop watches no more what had an error (libuv, uv__poll_io)
            loop.call_soon(watch)

    def watch() -> None:
        if sock.fileno() >= 0:
            loop.remove_reader(sock.fileno())
            loop.add_reader(sock.fileno(), on_message)

    loop.add_reader(sock.fileno(), on_message)
    try:
        while True:
            await changed.wait()
            changed.clear()
            await _looked(look)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SETTLED_S):
                    await changed.wait()
            if not changed.is_set() and not await _looked(look):
                changed.set()
    finally:
        loop.remove_reader(sock.fileno())


async def _looked(look: Callable[[], Awaitable[None]]) -> bool:
    """Whether it was possible: there may be no descriptor left just now. What was not looked at stays closed."""
    try:
        await look()
    except (OSError, BridgeError) as exc:
        log.warning("! looking at the app's networks: %s; again in %.0f s", exc, SETTLED_S)
        return False
    return True

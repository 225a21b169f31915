"""Networks that the session joins later: `docker network connect NETWORK PAUSE` gives its namespace a device more.

Theory of operation: the kernel tells of each address that comes or goes (rtnetlink(7)). What it says is not read, for the
addresses as they are then are what counts; so a message that is lost (ENOBUFS) is a reason to look like any other.

Limits: until the look the new network's gateway is routed to the tun. An engine that makes it the default route in that moment
asks the kernel for the way to it, gets the tun, and fails ("failed to set gateway: network is unreachable").
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

_RTMGRP_IPV4_IFADDR, _RTMGRP_IPV6_IFADDR = 0x10, 0x100  # linux/rtnetlink.h
_READ_BYTES = 64 << 10


async def follow(look: Callable[[], Awaitable[None]]) -> None:
    """Call `look` after each change of this namespace's addresses, until cancelled; and once at the start, for those before."""
    loop = asyncio.get_running_loop()
    changed = asyncio.Event()
    changed.set()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE) as sock:
        sock.bind((0, _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR))

        def on_message() -> None:
            changed.set()
            try:
                while sock.recv(_READ_BYTES):
                    pass
            except OSError:  # nothing left, or the kernel's queue was full
                pass

        loop.add_reader(sock.fileno(), on_message)
        try:
            while True:
                await changed.wait()
                changed.clear()
                await look()
        finally:
            loop.remove_reader(sock.fileno())

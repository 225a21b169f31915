"""What this kernel and these rights allow a bridge: tried for real, in the netns of a throwaway container.

`python -m bridge.sidecar probe` prints one JSON object; `mbridge doctor` turns it into words. Nothing is left: the tun is
taken away again and the tables go with the container's netns.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path

from bridge.adapters import nft, tun
from bridge.adapters.nfqueue import MARK_HOST_UNREACHABLE, MARK_NET_UNREACHABLE, MARK_REFUSE, SynQueue
from bridge.errors import BridgeError
from bridge.model.kernel import unmet

_TUNSETPERSIST = 0x400454CB
_NAME, _QUEUE = "mb-probe", 0x6D62


def probe() -> dict[str, object]:
    """{tun, nft, nfqueue, ipv6, ping, settings}: True, or the reason as text; nfqueue is "nft", "iptables" or null."""
    return {
        "tun": _reason(_tun),
        "nft": _reason(_nft),
        "nfqueue": asyncio.run(_nfqueue()),
        "ipv6": Path("/proc/net/if_inet6").exists(),
        "ping": _reason(_ping),
        "settings": "; ".join(unmet(read_setting)) or True,
    }


def read_setting(path: str) -> str | None:
    try:
        return Path(path).read_text()
    except OSError:
        return None


def main() -> int:
    print(json.dumps(probe()))
    return 0


def _reason(attempt: Callable[[], None]) -> bool | str:
    try:
        attempt()
    except BridgeError as exc:
        return exc.message
    except OSError as exc:
        return str(exc)
    return True


def _tun() -> None:
    fd = tun.open_tun(_NAME)
    try:
        fcntl.ioctl(fd, _TUNSETPERSIST, 0)
    finally:
        os.close(fd)


def _nft() -> None:
    marks = MARK_REFUSE, MARK_HOST_UNREACHABLE, MARK_NET_UNREACHABLE
    nft.apply(nft.Redirects(_NAME, 15001, (("127.0.0.11", 15053),), (), 0x10, 0x11, marks, (1,)))
    nft.judge([1])


async def _nfqueue() -> str | None:
    queue = SynQueue(_QUEUE, lambda syn: None)
    try:
        how = nft.hold_syns(_NAME, _QUEUE)
        queue.open()
    except BridgeError:
        return None
    queue.close()
    return how


def _ping() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as sock:
        sock.settimeout(1)
        sock.sendto(struct.pack("!BBHHH", 8, 0, 0xF7FF, 0, 0), ("127.0.0.1", 0))

"""What the target looks like from inside: its name, addresses, resolver and hosts (model.facts.Facts).

Container engines give a container that shares another's netns the same /etc/hostname, /etc/hosts and /etc/resolv.conf, so the
agent's own files are the target's. Addresses come from the kernel (rtnetlink(7), RTM_GETADDR): no library for one question.

Limits: 64 KiB of each file; no IPv6 address while the kernel still looks for duplicates of it.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys
from pathlib import Path

from bridge.agent import echoes
from bridge.model.facts import Facts

_MOST_FILE = 64 << 10
_RTM_GETADDR, _RTM_NEWADDR, _NLMSG_DONE, _NLMSG_ERROR = 22, 20, 3, 2
_NLM_F_REQUEST, _NLM_F_DUMP = 1, 0x300
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_IFA_F_TENTATIVE, _IFA_F_DADFAILED = 0x40, 0x08
_HEADER = struct.Struct("=IHHII")
_IFADDRMSG = struct.Struct("=BBBBI")
_ATTRIBUTE = struct.Struct("=HH")


def look(etc: Path = Path("/etc")) -> Facts:
    """The facts now."""
    warnings = []
    found = addresses()
    if not any(":" in address for address in found):
        warnings.append("the target has no IPv6 address")
    if not found:
        warnings.append("the target has no network address but loopback")
    return Facts(
        hostname=_text(etc / "hostname").strip() or socket.gethostname(),
        addresses=tuple(found),
        resolv_conf=_text(etc / "resolv.conf"),
        hosts=_text(etc / "hosts"),
        ping=echoes.why_not() or True,
        warnings=tuple(warnings),
    )


def addresses() -> list[str]:
    """CIDR of the interfaces, IPv4 first; loopback and link-local left out."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as sock:
        sock.settimeout(2)
        sock.send(_HEADER.pack(_HEADER.size + _IFADDRMSG.size, _RTM_GETADDR, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0) + bytes(_IFADDRMSG.size))
        found: list[str] = []
        while not _take(sock.recv(1 << 16), found):
            pass
    return sorted(found, key=lambda address: ":" in address)


def _take(data: bytes, found: list[str]) -> bool:
    """Read one batch of netlink messages; True at the end of the dump."""
    position = 0
    while position + _HEADER.size <= len(data):
        size, kind, _, _, _ = _HEADER.unpack_from(data, position)
        if kind in (_NLMSG_DONE, _NLMSG_ERROR) or size < _HEADER.size:
            return True
        if kind == _RTM_NEWADDR:
            address = _address(data[position + _HEADER.size : position + size])
            if address is not None:
                found.append(address)
        position += (size + 3) & ~3
    return False


def _address(body: bytes) -> str | None:
    _, prefix, flags, _, _ = _IFADDRMSG.unpack_from(body)
    attributes: dict[int, bytes] = {}
    position = _IFADDRMSG.size
    while position + _ATTRIBUTE.size <= len(body):
        size, kind = _ATTRIBUTE.unpack_from(body, position)
        if size < _ATTRIBUTE.size:
            break
        attributes[kind] = body[position + _ATTRIBUTE.size : position + size]
        position += (size + 3) & ~3
    if _IFA_FLAGS in attributes:
        flags = int.from_bytes(attributes[_IFA_FLAGS], sys.byteorder)
    raw = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)  # point to point: ADDRESS is the peer's
    if raw is None or flags & (_IFA_F_TENTATIVE | _IFA_F_DADFAILED):
        return None
    address = ipaddress.ip_address(raw)
    if address.is_loopback or address.is_link_local:
        return None
    return f"{address}/{prefix}"


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MOST_FILE).decode("utf-8", "replace")
    except OSError:
        return ""

"""The target's addresses out of the kernel's messages (rtnetlink(7)), as no test machine has them all."""

from __future__ import annotations

import socket
import struct

import pytest

from bridge.agent import inside

LOCAL, ADDRESS, FLAGS = 2, 1, 8
TENTATIVE, DADFAILED = 0x40, 0x08


def told(prefix: int, *attributes: tuple[int, bytes], flags: int = 0, kind: int = 20) -> bytes:
    """One RTM_NEWADDR."""
    body = struct.pack("=BBBBI", 2, prefix, flags, 0, 1)
    for number, value in attributes:
        body += struct.pack("=HH", 4 + len(value), number) + value + bytes(-len(value) % 4)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 1, 0) + body


def four(text: str) -> bytes:
    return socket.inet_aton(text)


def six(text: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6, text)


@pytest.mark.parametrize(
    ("message", "found"),
    [
        (told(24, (ADDRESS, four("10.0.3.7")), (LOCAL, four("10.0.3.7"))), ["10.0.3.7/24"]),
        (told(32, (ADDRESS, four("10.9.9.9")), (LOCAL, four("10.0.3.7"))), ["10.0.3.7/32"]),  # point to point: ADDRESS is the peer's
        (told(64, (ADDRESS, six("fd00::7"))), ["fd00::7/64"]),
        (told(64, (ADDRESS, six("fd00::7")), flags=TENTATIVE), []),
        (told(64, (ADDRESS, six("fd00::7")), (FLAGS, struct.pack("=I", DADFAILED))), []),
        (told(64, (ADDRESS, six("fd00::7")), (FLAGS, struct.pack("=I", 0x80)), flags=TENTATIVE), ["fd00::7/64"]),  # the wide flags count
        (told(8, (LOCAL, four("127.0.0.1"))), []),
        (told(64, (ADDRESS, six("fe80::1"))), []),
        (told(24), []),
        (told(24, (LOCAL, four("10.0.3.7")), kind=21), []),  # RTM_DELADDR
    ],
)
def test_an_address_that_can_be_used_is_found(message: bytes, found: list[str]) -> None:
    taken: list[str] = []
    assert inside._take(message + told(24, (LOCAL, four("10.0.3.8"))), taken) is False
    assert taken == [*found, "10.0.3.8/24"]


@pytest.mark.parametrize("kind", [2, 3])
def test_the_dump_ends_with_done_or_an_error(kind: int) -> None:
    taken: list[str] = []
    assert inside._take(told(24, (LOCAL, four("10.0.3.7"))) + struct.pack("=IHHII", 20, kind, 0, 1, 0) + bytes(4), taken) is True
    assert taken == ["10.0.3.7/24"]

"""The agent's first 16 bytes, and what the user is told when something else answers."""

from __future__ import annotations

import pytest

from bridge.errors import LinkError, LocalProtocolError, VersionMismatch
from bridge.protocol import preamble

AGENT = "00112233445566aa"


def test_the_agent_is_recognised() -> None:
    data = preamble.encode(AGENT)
    assert len(data) == preamble.SIZE
    preamble.check(data, AGENT)
    preamble.check(data, AGENT.upper())


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (preamble.encode("ff" * 8), "reached agent ffffffffffffffff instead of 00112233445566aa"),
        (b"SSH-2.0-OpenSSH_9", "reached an ssh server"),
        (b"HTTP/1.1 400 Bad ", "reached an http server"),
        (b"", "closed the connection before the agent's first bytes"),
        (b"MB", "only 2 of the agent's first 16 bytes came"),
        (b"MBR1\x00", "only 5 of the agent's first 16 bytes came"),
        (b"\x1b[31mbad bytes..", "no agent: its first bytes are 1b 5b"),
    ],
)
def test_a_stranger_is_named(data: bytes, words: str) -> None:
    with pytest.raises(LinkError, match=words):
        preamble.check(data, AGENT)


def test_another_version_is_told_with_both_versions() -> None:
    with pytest.raises(VersionMismatch, match="stream protocol 2, this mbridge 1"):
        preamble.check(b"MBR2" + bytes(12), AGENT)


@pytest.mark.parametrize("agent_id", ["", "xy", "0011", AGENT + "00"])
def test_an_agent_id_is_16_hex_digits(agent_id: str) -> None:
    with pytest.raises(LocalProtocolError):
        preamble.encode(agent_id)

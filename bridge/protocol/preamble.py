"""The 16 bytes with which an agent begins every carrier: whoever dialled sees whom it reached before it hands the carrier on.

    "MBR1"   agent id, 8 bytes   reserved, 4 zero bytes

The preamble proves nothing (SSH's host key does): it tells an address that was taken over by a stranger, an old agent and
a newer protocol apart, so that the error can name them. The digit of the magic is the stream protocol's version.
"""

from __future__ import annotations

from bridge.errors import LinkError, LocalProtocolError, VersionMismatch

MAGIC = b"MBR1"
SIZE = 16

_STRANGERS = ((b"SSH-", "an ssh server"), (b"HTTP/", "an http server"), (b"\x15\x03", "a TLS server"), (b"220 ", "a mail or ftp server"))


def encode(agent_id: str) -> bytes:
    """`agent_id` is 16 hex digits."""
    try:
        raw = bytes.fromhex(agent_id)
    except ValueError:
        raw = b""
    if len(raw) != 8:
        raise LocalProtocolError(f"{agent_id!r} is no agent id")
    return MAGIC + raw + bytes(4)


def check(data: bytes, agent_id: str) -> None:
    """Raise LinkError, naming what was reached, unless `data` is the preamble of the agent `agent_id`."""
    if data[:4] == MAGIC and len(data) == SIZE:
        reached = data[4:12].hex()
        if reached != agent_id.lower():
            raise LinkError(f"reached agent {reached} instead of {agent_id}", hint="the agent was replaced: mbridge up makes the link anew")
        return
    if data[:3] == MAGIC[:3] and data[3:4].isdigit() and data[:4] != MAGIC:
        raise VersionMismatch(
            f"the agent speaks stream protocol {data[3:4].decode()}, this mbridge {MAGIC[3:].decode()}",
            hint="use the same version of mbridge on both sides",
        )
    if not data:
        raise LinkError("the far end closed the connection before the agent's first bytes")
    if MAGIC.startswith(data[:4]) or data[:4] == MAGIC:
        raise LinkError(f"only {len(data)} of the agent's first {SIZE} bytes came")
    for beginning, name in _STRANGERS:
        if data.startswith(beginning):
            raise LinkError(f"reached {name} instead of the agent")
    raise LinkError(f"reached something that is no agent: its first bytes are {data[:SIZE].hex(' ')}")

"""A carrier straight to the agent's address, where this machine has a way there: a local engine's networks, a cluster's that is routed.

Limits: the agent must listen beyond its loopback, which its place decides. One address is tried.
"""

from __future__ import annotations

import asyncio
import os
import socket

from bridge.errors import LinkLost
from bridge.model.facts import AgentIdentity
from bridge.protocol import preamble

GREETING_S = 5.0


async def dial(agent: AgentIdentity, connect_s: float) -> socket.socket:
    """Past the agent's first bytes. Raises LinkLost where nobody answers, LinkError where it is somebody else."""
    if agent.host is None:
        raise LinkLost("this machine has no way to the agent's address")
    loop = asyncio.get_running_loop()
    sock = socket.socket(socket.AF_INET6 if ":" in agent.host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        async with asyncio.timeout(connect_s):
            await loop.sock_connect(sock, (agent.host, agent.port))
        first = b""
        async with asyncio.timeout(GREETING_S):
            while len(first) < preamble.SIZE and (piece := await loop.sock_recv(sock, preamble.SIZE - len(first))):
                first += piece
        preamble.check(first, agent.agent_id)
    except OSError as exc:  # a TimeoutError is one, without a number
        sock.close()
        reason = os.strerror(exc.errno).lower() if exc.errno else "no answer"
        raise LinkLost(f"{agent.host}:{agent.port}: {reason}") from exc
    except BaseException:
        sock.close()
        raise
    return sock

"""`mbridge forward`: listeners on this machine whose connections an agent dials from inside the target.

Theory of operation: the same link as a bridge's, but its near end is this process: no container, no netns, no rules. A
connection is accepted, the agent dials, and the relay joins the two; a refused dial resets the connection.

Limits: TCP. The listener's user sees an open connection before the target's answer, as with every port forward.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from bridge.cli.cmd_forward import Forward
from bridge.engine.accepting import Accepting
from bridge.engine.needs import FlowRefused, Link
from bridge.engine.relay import join
from bridge.errors import BridgeError, HostError, LinkError, first_of

log = logging.getLogger(__name__)

_BACKLOG = 256


@dataclass
class Listener:
    """One forward and its listening sockets; `forward` has the port that was really taken."""

    forward: Forward
    socks: list[socket.socket]


def listen(forward: Forward) -> Listener:
    """Raises HostError where the address cannot be had."""
    try:
        infos = socket.getaddrinfo(forward.listen_host, forward.listen_port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = infos[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise HostError(
            f"cannot listen on {forward.listen_host!r}: {(error.strerror or '').lower()}", hint="--address 127.0.0.1"
        ) from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        hint = "0 takes any free port: mbridge forward TARGET 0:HOST:PORT"
        raise HostError(
            f"cannot listen on {forward.listen_host}:{forward.listen_port}: {(error.strerror or '').lower()}", hint=hint
        ) from error
    return Listener(replace(forward, listen_port=sock.getsockname()[1]), [sock])


async def serve(listeners: Sequence[Listener], link: Link) -> None:
    """Accept and join until cancelled."""
    async with asyncio.TaskGroup() as group:
        accepting = [_accepting(sock, listener.forward, link, group) for listener in listeners for sock in listener.socks]
        for one in accepting:
            one.start()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            for one in accepting:
                one.stop()


def _accepting(listening: socket.socket, forward: Forward, link: Link, group: asyncio.TaskGroup) -> Accepting:
    return Accepting(listening, lambda sock, address: group.create_task(_flow(sock, address[:2], forward, link), name=f"flow-{address[1]}"))


async def _flow(sock: socket.socket, app: tuple[str, int], forward: Forward, link: Link) -> None:
    try:
        channel = await link.open_flow(forward.host, forward.port, app)
    except (FlowRefused, LinkError) as error:
        log.debug("x flow %s:%d => %s: %s", *app, forward, error)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a RST, not an orderly end
        sock.close()
        return
    except BaseException:
        sock.close()
        raise

    def ended(sent: int, received: int, how: str) -> None:
        log.debug("x flow %s:%d => %s: %d bytes out, %d in, %s", *app, forward, sent, received, how)

    join(asyncio.get_running_loop(), sock, channel, ended)


async def until_ended(link: Awaitable[None], work: Callable[[], Awaitable[None]]) -> None:
    """`work` beside the `link` that it needs: the end of either is the end of both. Raises its BridgeError."""

    async def whole(awaitable: Awaitable[None]) -> None:
        await awaitable
        raise _EndedError

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(whole(link), name="link")
            group.create_task(whole(work()), name="work")
    except* _EndedError:
        pass
    except* BridgeError as several:
        raise first_of(several) from None


class _EndedError(Exception):
    pass

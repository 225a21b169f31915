"""Carriers through the API server: port-forward and exec, each a WebSocket that is pumped to one end of a socket pair (pump.py).

Theory of operation: the caller gets the other end, a plain connected stream socket that may be passed to another process. What a
WebSocket of port-forward holds is SPDY where the API server unpacks it (1.31 on), else channels as in exec (protocol/spdy.py,
protocol/channels.py): both are offered and the server chooses, so it costs no request.

What the far side said last on an error channel tells "connection refused inside the pod" (the agent is gone) from "the API server
went away", so it is in the error.

Limits: TLS to the API server is asyncio's; measured, the cluster's own path costs more than ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Sequence
from typing import NamedTuple

import aiohttp

from bridge.adapters.kube.api import Api
from bridge.adapters.kube.pump import Pump
from bridge.adapters.kube.targets import path_of
from bridge.errors import ClusterError, LinkLost
from bridge.protocol import channels, spdy

OFFERED = (spdy.PROTOCOL, channels.PORT_FORWARD)  # for port-forward, best first
_BUFFER = 1 << 20
_MOST_OUTPUT, _MOST_WORDS = 8 << 20, 64 << 10  # an environment is 2 MiB at most here (execve(2)'s limit with an 8 MiB stack)


class Opened(NamedTuple):
    """A carrier. `sock` is the caller's, `head` the first bytes that came; `pump` joins it to the pod, until either end is closed."""

    sock: socket.socket
    head: bytes
    pump: Pump


class Carriers:
    """Opens carriers to pods of one namespace; `close` ends those that are still open."""

    def __init__(self, api: Api, namespace: str) -> None:
        self._api, self._namespace = api, namespace
        self._running: set[Pump] = set()

    async def port_forward(self, pod: str, port: int, greeting: int) -> Opened:
        """A socket whose far end is `port` on the pod's loopback, and the first `greeting` bytes from there.

        Raises LinkLost when nothing answers there (its text holds the kubelet's own words), Forbidden, Unreachable, Unavailable.
        """
        path = path_of("pod", self._namespace, pod, "portforward")
        answer = await self._api.upgrade(path, [("ports", str(port))], OFFERED)
        chosen = answer.headers.get("Sec-WebSocket-Protocol")
        wire = spdy.PortForward(port) if chosen == spdy.PROTOCOL else channels.Channels(0, frozenset({1}), skip=2)
        return await self._greeted(answer, "port-forward", greeting, wire)

    async def exec(self, pod: str, container: str, command: Sequence[str], greeting: int) -> Opened:
        """A socket whose far end is a command's stdin and stdout. Raises as `port_forward` does."""
        answer = await self._api.upgrade(*self._exec(pod, container, command, stdin=True), channels.EXEC)
        return await self._greeted(answer, "exec", greeting, channels.Channels(1, frozenset({2, 3})))

    async def _greeted(self, answer: aiohttp.ClientResponse, name: str, greeting: int, wire: channels.Wire) -> Opened:
        near, far = socket.socketpair()
        for end in (near, far):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        pump = Pump(answer, far, wire)
        self._running.add(pump)
        pump.ended.add_done_callback(lambda _: self._running.discard(pump))
        try:
            async with asyncio.timeout(5):
                head = b""
                while len(head) < greeting:
                    piece = await asyncio.get_running_loop().sock_recv(near, greeting - len(head))
                    if not piece:
                        await pump.ended
                        raise LinkLost(f"{name}: {_words(pump.why) or 'closed by the far side'}")
                    head += piece
        except TimeoutError:
            near.close()
            raise LinkLost(f"{name}: no greeting from the agent in 5 s") from None
        except BaseException:
            near.close()
            raise
        return Opened(near, head, pump)

    async def output(self, pod: str, container: str, command: Sequence[str], limit_s: float = 10) -> bytes:
        """What a command prints; it goes through no log. Raises ClusterError with the command's own words when it fails."""
        ws = await self._api.websocket(*self._exec(pod, container, command, stdin=False), channels.EXEC)
        out, err, status = bytearray(), bytearray(), bytearray()
        kept = {1: (out, _MOST_OUTPUT), 2: (err, _MOST_WORDS), 3: (status, _MOST_WORDS)}
        try:
            async with asyncio.timeout(limit_s):
                async for message in ws:
                    if message.type is aiohttp.WSMsgType.BINARY and message.data and message.data[0] in kept:
                        held, most = kept[message.data[0]]
                        held += message.data[1:]
                        if len(held) > most:
                            raise ClusterError(f"{command[0]} in container '{container}' of pod {pod} prints more than {most >> 10} KiB")
        except TimeoutError:
            raise ClusterError(f"{command[0]} in container '{container}' of pod {pod} gave no answer in {limit_s:.0f} s") from None
        finally:
            await ws.close()
        try:
            verdict = json.loads(bytes(status) or b"{}")
        except ValueError:
            verdict = {}
        if not isinstance(verdict, dict) or verdict.get("status") != "Success":
            said = bytes(err).decode(errors="replace").strip() or _words(bytes(status).decode(errors="replace")) or "the stream broke off"
            raise ClusterError(f"{command[0]} in container '{container}' of pod {pod}: {said}")
        return bytes(out)

    async def close(self) -> None:
        for pump in list(self._running):
            pump.stop()

    def _exec(self, pod: str, container: str, command: Sequence[str], *, stdin: bool) -> tuple[str, list[tuple[str, str]]]:
        query = [("container", container), ("stdout", "true"), ("stderr", "true"), *([("stdin", "true")] if stdin else [])]
        query += [("command", word) for word in command]
        return path_of("pod", self._namespace, pod, "exec"), query


def _words(text: str) -> str:
    """The message of a Status object, or the text itself, on one line."""
    with contextlib.suppress(ValueError, AttributeError):
        text = json.loads(text).get("message") or text
    return " ".join(text.split())

"""Carriers through the API server: port-forward and exec, each a WebSocket that is pumped to one end of a socket pair.

Theory of operation: the caller gets the other end, a plain connected stream socket that may be passed to another process.

    port-forward   v4.channel.k8s.io  channel 0 data, 1 error; the first message on each is the port, 2 bytes, little-endian
    exec           v5 (else v4)       channel 0 stdin, 1 stdout, 2 stderr, 3 a Status object as JSON; v5: 255 closes one

The far side's end ends both; the caller's end lingers, since neither protocol knows a half-close: what the caller sent is still on
its way, and a WebSocket closed over it would be reset in the pod. What the far side said last is kept in `Pump.why`, since it tells
"connection refused inside the pod" (the agent is gone) from "the API server went away".

Limits: one copy each way between WebSocket and socket pair; measured, the cluster's own path costs more than that.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field

import aiohttp

from bridge.adapters.kube.api import Api
from bridge.adapters.kube.targets import path_of
from bridge.errors import ClusterError, LinkLost

_log = logging.getLogger(__name__)
_PIECE = 256 * 1024
_LINGER_S = 5.0
_EXEC = ("v5.channel.k8s.io", "v4.channel.k8s.io")


@dataclass(slots=True)
class Pump:
    """One WebSocket joined to one socket. `data_in` and `data_out` are its channels for data, `skip` what precedes the data."""

    ws: aiohttp.ClientWebSocketResponse
    sock: socket.socket
    data_in: int
    data_out: int
    errors: frozenset[int]
    skip: int = 0
    why: str = ""
    _skipped: dict[int, int] = field(default_factory=dict)

    async def run(self) -> None:
        """Until either side ends; then both are closed."""
        up = asyncio.ensure_future(self._up())
        down = asyncio.ensure_future(self._down())
        try:
            await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
            if not down.done():
                await asyncio.wait((down,), timeout=_LINGER_S)
        finally:
            for task in (up, down):
                task.cancel()
            await asyncio.gather(up, down, return_exceptions=True)
            self.sock.close()
            with contextlib.suppress(Exception):  # a broken connection cannot be closed in order, and need not be
                await asyncio.wait_for(self.ws.close(), 1)

    async def _up(self) -> None:
        loop = asyncio.get_running_loop()
        buffer = bytearray(_PIECE + 1)
        buffer[0] = self.data_in
        view = memoryview(buffer)
        with contextlib.suppress(OSError, aiohttp.ClientError):
            while count := await loop.sock_recv_into(self.sock, view[1:]):
                await self.ws.send_bytes(bytes(view[: count + 1]))

    async def _down(self) -> None:
        loop = asyncio.get_running_loop()
        heard = True  # whether the caller still reads; if not, the far side must be read all the same to reach its end
        async for message in self.ws:
            if message.type is not aiohttp.WSMsgType.BINARY or not message.data:
                continue
            channel, body = message.data[0], memoryview(message.data)[1:]
            if (missing := self.skip - self._skipped.get(channel, 0)) > 0:
                taken = min(missing, len(body))
                self._skipped[channel] = self._skipped.get(channel, 0) + taken
                body = body[taken:]
            if channel == self.data_out and body and heard:
                try:
                    await loop.sock_sendall(self.sock, body)
                except OSError:
                    heard = False
            elif channel in self.errors and body:
                self.why = (self.why + bytes(body).decode(errors="replace"))[-2000:]
        if error := self.ws.exception():
            self.why = self.why or str(error)


class Carriers:
    """Opens carriers to pods of one namespace; `close` ends those that are still open."""

    def __init__(self, api: Api, namespace: str) -> None:
        self._api, self._namespace = api, namespace
        self._running: dict[asyncio.Future[None], Pump] = {}

    async def port_forward(self, pod: str, port: int, greeting: int) -> tuple[socket.socket, bytes]:
        """A socket whose far end is `port` on the pod's loopback, and the first `greeting` bytes from there.

        Raises LinkLost when nothing answers there (its text holds the kubelet's own words), Forbidden, Unreachable.
        """
        path = path_of("pod", self._namespace, pod, "portforward")
        ws = await self._api.websocket(path, [("ports", str(port))], ("v4.channel.k8s.io",))
        return await self._greeted(ws, "port-forward", greeting, data_out=0, errors=frozenset({1}), skip=2)

    async def exec(self, pod: str, container: str, command: Sequence[str], greeting: int) -> tuple[socket.socket, bytes]:
        """A socket whose far end is a command's stdin and stdout. Raises as `port_forward` does."""
        ws = await self._exec(pod, container, command, stdin=True)
        return await self._greeted(ws, "exec", greeting, data_out=1, errors=frozenset({2, 3}), skip=0)

    async def _greeted(
        self, ws: aiohttp.ClientWebSocketResponse, name: str, greeting: int, *, data_out: int, errors: frozenset[int], skip: int
    ) -> tuple[socket.socket, bytes]:
        near, far = socket.socketpair()
        for end in (near, far):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * _PIECE)
        pump = Pump(ws, far, 0, data_out, errors, skip)
        running = asyncio.ensure_future(pump.run())
        self._running[running] = pump
        running.add_done_callback(lambda done: self._running.pop(done, None))
        try:
            async with asyncio.timeout(5):
                head = b""
                while len(head) < greeting:
                    piece = await asyncio.get_running_loop().sock_recv(near, greeting - len(head))
                    if not piece:
                        await running
                        raise LinkLost(f"{name}: {_words(pump.why) or 'closed by the far side'}")
                    head += piece
        except TimeoutError:
            near.close()
            raise LinkLost(f"{name}: no greeting from the agent in 5 s") from None
        except BaseException:
            near.close()
            raise
        return near, head

    async def output(self, pod: str, container: str, command: Sequence[str], limit_s: float = 10) -> bytes:
        """What a command prints; it goes through no log. Raises ClusterError with the command's own words when it fails."""
        ws = await self._exec(pod, container, command, stdin=False)
        out, err, status = bytearray(), bytearray(), bytearray()
        kept = {1: out, 2: err, 3: status}
        try:
            async with asyncio.timeout(limit_s):
                async for message in ws:
                    if message.type is aiohttp.WSMsgType.BINARY and message.data and message.data[0] in kept:
                        kept[message.data[0]] += message.data[1:]
        except TimeoutError:
            raise ClusterError(f"{command[0]} in container '{container}' of pod {pod} gave no answer in {limit_s:.0f} s") from None
        finally:
            await ws.close()
        try:
            verdict = json.loads(bytes(status) or b"{}")
        except ValueError:
            verdict = {}
        if verdict.get("status") != "Success":
            said = bytes(err).decode(errors="replace").strip() or _words(bytes(status).decode(errors="replace")) or "the stream broke off"
            raise ClusterError(f"{command[0]} in container '{container}' of pod {pod}: {said}")
        return bytes(out)

    async def close(self) -> None:
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _exec(self, pod: str, container: str, command: Sequence[str], *, stdin: bool) -> aiohttp.ClientWebSocketResponse:
        query = [("container", container), ("stdout", "true"), ("stderr", "true"), *([("stdin", "true")] if stdin else [])]
        query += [("command", word) for word in command]
        return await self._api.websocket(path_of("pod", self._namespace, pod, "exec"), query, _EXEC)


def _words(text: str) -> str:
    """The message of a Status object, or the text itself, on one line."""
    with contextlib.suppress(ValueError, AttributeError):
        text = json.loads(text).get("message") or text
    return " ".join(text.split())

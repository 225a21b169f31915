"""A small API server with one pod, web-1: it takes agents, runs commands and carries, each as its test wants it.

`commands` are what exec can run, by their first words; the agent's door answers with its preamble. `refusals` are said instead of
an answer, by the end of the path: (status, message). An agent's log ends with its first line; where the pod shares its process
namespace it goes on until `write` or `cut`. `asked` is what was asked for, as "GET exec".
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from aiohttp import web

from bridge.cli.place_kube import KubePlace
from bridge.model.target import parse_target
from bridge.model.wish import AppWish, SessionWish
from bridge.protocol import preamble

AGENT_ID = "0123456789abcdef"
_FIRST_LINE = f"mbridge-agent 1 {AGENT_ID} 4000 ssh-ed25519 KEY\n".encode()
Json = dict[str, Any]


class FakeCluster:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pod: Json = {
            "metadata": {"name": "web-1", "uid": "1"},
            "spec": {"containers": [{"name": "app", "env": [{"name": "FROM_SPEC", "value": "1"}]}]},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}],
                       "containerStatuses": [{"name": "app", "containerID": "containerd://1", "state": {"running": {}}}]},
        }  # fmt: skip
        self.commands: dict[str, bytes] = {"cat /proc/1/environ": b"FROM_PROCESS=1\0"}
        self.refusals: dict[str, tuple[int, str]] = {}
        self.away = False  # connections are closed, unanswered
        self.hold: asyncio.Event | None = None  # commands wait for it
        self.at_port = AGENT_ID  # the agent that port-forward reaches
        self.asked: list[str] = []
        self._followed: list[asyncio.Queue[bytes | None]] = []
        self._port = 0

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self._port = runner.addresses[0][1]
            yield
        finally:
            await runner.cleanup()

    @contextlib.asynccontextmanager
    async def place(self, session: str = "abcdef", **wish: Any) -> AsyncIterator[KubePlace]:
        """One user's, as a session has it."""
        config = {"clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{self._port}"}}],
                  "contexts": [{"name": "c", "context": {"cluster": "c"}}], "current-context": "c"}  # fmt: skip
        (self.folder / "config").write_text(json.dumps(config))
        asked = SessionWish(parse_target("pod/web-1"), AppWish("none"), kubeconfig=str(self.folder / "config"), **wish)
        place = KubePlace(asked, session, "tests", self.folder, "agent:1")
        try:
            yield place
        finally:
            await place.close()

    def count(self, asked: str) -> int:
        return self.asked.count(asked)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        last = request.path.rpartition("/")[2]
        self.asked.append(f"{request.method} {last}")
        if self.away and request.transport is not None:
            request.transport.close()
        if (refusal := self.refusals.get(last, self.refusals.get(""))) is not None:
            return web.json_response({"message": refusal[1]}, status=refusal[0])
        match request.method, last:
            case "GET", "web-1":
                return web.json_response(self.pod)
            case "PATCH", "ephemeralcontainers":
                return web.json_response(self._with((await request.json())["spec"]["ephemeralContainers"][0]))
            case "GET", "pods":  # a watch of this one
                return web.Response(body=json.dumps({"type": "ADDED", "object": self.pod}).encode() + b"\n")
            case "GET", "log":
                return await self._log(request)
            case "GET", "portforward":
                return await self._port_forward(request)
            case "GET", "exec":
                return await self._exec(request)
        return web.json_response({"message": f"{request.method} {request.path} is not known here"}, status=404)

    def _with(self, container: Json) -> Json:
        self.pod["spec"].setdefault("ephemeralContainers", []).append(container)
        state = {"name": container["name"], "containerID": f"containerd://{container['name']}", "state": {"running": {}}}
        self.pod["status"].setdefault("ephemeralContainerStatuses", []).append(state)
        return self.pod

    def write(self) -> None:
        """A second introduction, into the log that is followed."""
        for log in self._followed:
            log.put_nowait(_FIRST_LINE)

    def cut(self) -> None:
        """Break off what is followed."""
        for log in self._followed:
            log.put_nowait(None)

    async def until_asked(self, asked: str, count: int) -> None:
        while self.count(asked) < count:  # noqa: ASYNC110  what is waited for is another's request
            await asyncio.sleep(0.005)

    async def _log(self, request: web.Request) -> web.StreamResponse:
        if not self.pod["spec"].get("shareProcessNamespace"):
            return web.Response(body=_FIRST_LINE)
        response = web.StreamResponse()
        written: asyncio.Queue[bytes | None] = asyncio.Queue()
        written.put_nowait(_FIRST_LINE)
        self._followed.append(written)
        with contextlib.suppress(ConnectionError):  # who read the first line alone has gone
            await response.prepare(request)
            while (line := await written.get()) is not None:
                await response.write(line)
        if request.transport is not None:
            request.transport.close()
        return response

    async def _port_forward(self, request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse(protocols=("v4.channel.k8s.io",))
        await ws.prepare(request)
        port = int(request.query["ports"]).to_bytes(2, "little")
        for channel, data in ((b"\0", port), (b"\1", port), (b"\0", preamble.encode(self.at_port))):
            await ws.send_bytes(channel + data)
        async for _ in ws:
            pass
        return ws

    async def _exec(self, request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse(protocols=("v5.channel.k8s.io",))
        await ws.prepare(request)
        command = " ".join(request.query.getall("command"))
        if command.endswith("-m bridge.agent door"):
            await ws.send_bytes(b"\1" + preamble.encode(AGENT_ID))
            async for _ in ws:
                pass
            return ws
        if self.hold is not None:
            await self.hold.wait()
        if (output := self.commands.get(command)) is not None:
            await ws.send_bytes(b"\1" + output)
            await ws.send_bytes(b"\3" + b'{"status": "Success"}')
        else:
            await ws.send_bytes(b"\3" + json.dumps({"status": "Failure", "message": f"{command}: not found"}).encode())
        await ws.close()
        return ws

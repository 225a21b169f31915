"""A Docker engine for unit tests: real HTTP on a Unix socket, containers that are entries of a dict.

What it promises is the contract of tests/unit/contracts/engine.py, which the real engine is held to as well. A program is a
function of the container; containers whose image has none run until they are killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import re
import struct
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from bridge.adapters.docker.endpoint import Endpoint

Json = dict[str, Any]


@dataclass
class Container:
    id: str
    name: str
    body: Json
    state: str = "created"
    exit_code: int = 0
    killed: asyncio.Event = field(default_factory=asyncio.Event)
    signals: list[str] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    files: dict[str, bytes] = field(default_factory=dict)
    output: list[tuple[int, bytes]] = field(default_factory=list)
    starts: int = 0

    async def killed_by(self) -> str:
        await self.killed.wait()
        return self.signals[-1]


Program = Callable[[Container], Awaitable[int]]


async def forever(container: Container) -> int:
    """Ends by any signal, as a program without handlers that is no PID 1."""
    return 128 + {"TERM": 15, "INT": 2, "HUP": 1, "QUIT": 3}.get(await container.killed_by(), 9)


class FakeEngine:
    """`async with FakeEngine(folder) as engine`: `engine.endpoint` is where it listens."""

    def __init__(self, folder: Path) -> None:
        self.endpoint = Endpoint(f"unix://{folder}/engine.sock", "a test")
        self.containers: dict[str, Container] = {}
        self.volumes: dict[str, Json] = {}
        self.images: dict[str, Json] = {"app:1": {"Id": "sha256:1", "Config": {"Cmd": ["serve"], "Entrypoint": None}}}
        self.programs: dict[str, Program] = {}  # by image
        self.refuse: dict[str, str] = {}  # "POST /containers/create" → message
        self.calls: list[str] = []
        self.lacks: list[str] = []  # sysctls that its kernel does not have
        self.hold: dict[str, asyncio.Event] = {}  # a call waits for it, its effect done
        self.listened = asyncio.Event()  # somebody follows the events
        self._numbers = iter(range(1, 1 << 20))
        self._events: list[asyncio.Queue[Json]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> FakeEngine:
        self._server = await asyncio.start_unix_server(self._serve, self.endpoint.path)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def named(self, name: str) -> Container | None:
        return next((one for one in self.containers.values() if name in (one.name, one.id)), None)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            method, target, _ = head.split("\r\n")[0].split(" ")
            length = re.search(r"content-length: (\d+)", head, re.I)
            body = await reader.readexactly(int(length[1])) if length else b""
            url = urlsplit(target)
            path = re.sub(r"^/v\d+\.\d+", "", unquote(url.path))
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            self.calls.append(f"{method} {path}")
            try:
                await self._answer(method, path, query, body, writer)
            except _Refused as exc:
                _send(writer, exc.status, {"message": exc.message})
            await writer.drain()
        writer.close()

    async def _answer(self, method: str, path: str, query: dict[str, str], body: bytes, writer: asyncio.StreamWriter) -> None:
        for prefix, message in self.refuse.items():
            if f"{method} {path}".startswith(prefix):
                raise _Refused(400, message)
        match [method, *path.strip("/").split("/", 2)]:
            case ["GET", "version"]:
                _send(writer, 200, {"ApiVersion": "1.41", "MinAPIVersion": "1.12", "Os": "linux", "Version": "fake"})
            case ["GET", "containers", "json"]:
                labels = json.loads(query.get("filters", "{}")).get("label", [])
                found = [one for one in self.containers.values() if all(_bears(one.body.get("Labels"), label) for label in labels)]
                _send(writer, 200, [self._listed(one) for one in found])
            case ["POST", "containers", "create"]:
                await self._create(query, json.loads(body), writer)
            case [_, "containers", name, *rest]:
                await self._container(method, name, rest[0] if rest else "", query, body, writer)
            case ["POST", "volumes", "create"]:
                wanted = json.loads(body)
                self.volumes[wanted["Name"]] = wanted
                _send(writer, 201, wanted)
            case ["GET", "volumes"]:
                (label,) = json.loads(query["filters"])["label"]
                _send(writer, 200, {"Volumes": [one for one in self.volumes.values() if _bears(one["Labels"], label)]})
            case ["DELETE", "volumes", name]:
                if self.volumes.pop(name, None) is None:
                    raise _Refused(404, f"get {name}: no such volume")
                _send(writer, 204)
            case ["GET", "images", name, "json"] if name in self.images:
                _send(writer, 200, self.images[name])
            case ["GET", "events"]:
                await self._follow(writer)
            case _:
                raise _Refused(404, f"no such thing: {path}")

    async def _create(self, query: dict[str, str], body: Json, writer: asyncio.StreamWriter) -> None:
        number = next(self._numbers)
        name = query.get("name") or f"unnamed_{number}"
        if self.named(name):
            raise _Refused(409, f'Conflict. The container name "/{name}" is already in use')
        if body["Image"] not in self.images:
            raise _Refused(404, f"No such image: {body['Image']}")
        container = Container(f"{number:064x}", name, body)
        self.containers[container.id] = container
        if hold := self.hold.get(f"create {name.rpartition('-')[2]}"):
            await hold.wait()
        _send(writer, 201, {"Id": container.id, "Warnings": []})

    async def _container(self, method: str, name: str, what: str, query: dict[str, str], body: bytes, writer: asyncio.StreamWriter) -> None:
        one = self.named(name)
        if one is None:
            raise _Refused(404, f"No such container: {name}")
        match method, what:
            case "GET", "json":
                _send(writer, 200, self._inspected(one))
            case "POST", "start":
                if one.state == "running":
                    _send(writer, 304)
                    return
                for name in (one.body.get("HostConfig") or {}).get("Sysctls") or {}:
                    if name in self.lacks:
                        path = name.replace(".", "/")
                        raise _Refused(400, f"error during container init: open /proc/sys/{path}: no such file or directory")
                self._start(one)
                _send(writer, 204)
            case "POST", "kill" | "stop":
                if one.state != "running":
                    if what == "stop":
                        _send(writer, 304)
                        return
                    raise _Refused(409, f"Container {one.id} is not running")
                one.signals.append(query.get("signal", "TERM"))
                one.killed.set()
                if what == "stop":
                    await one.ended.wait()
                _send(writer, 204)
            case "POST", "wait":
                _chunk_head(writer)
                if query.get("condition") != "not-running" or one.state == "running":
                    await one.ended.wait()
                _chunk(writer, {"StatusCode": one.exit_code})
                writer.write(b"0\r\n\r\n")
            case "POST", "attach":
                writer.write(b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
                await self._pour(one, writer, follow=True)
            case "GET", "logs":
                await self._pour(one, writer, follow=query["follow"] == "true", chunked=True)
            case "POST", "resize":
                _send(writer, 200)
            case "PUT", "archive":
                with tarfile.open(fileobj=io.BytesIO(body)) as tar:
                    for member in tar.getmembers():
                        file = tar.extractfile(member)
                        assert file is not None
                        one.files[f"{query['path']}/{member.name}"] = file.read()
                _send(writer, 200)
            case "DELETE", "":
                one.killed.set()
                one.signals.append("KILL")
                one.ended.set()
                self.containers.pop(one.id, None)
                _send(writer, 204)
            case _:
                raise _Refused(404, f"no such call: {method} {what}")

    def _start(self, one: Container) -> None:
        one.state, one.starts = "running", one.starts + 1
        one.killed.clear()
        one.ended.clear()

        async def run() -> None:
            one.exit_code = await self.programs.get(one.body["Image"], forever)(one)
            one.state = "exited"
            one.ended.set()
            self.tell("die", one, exitCode=str(one.exit_code))

        task = asyncio.get_running_loop().create_task(run(), name=f"container-{one.name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.tell("start", one)

    def tell(self, action: str, one: Container, **attributes: str) -> None:
        for queue in self._events:
            queue.put_nowait(
                {"Type": "container", "Action": action, "Actor": {"ID": one.id, "Attributes": {"name": one.name, **attributes}}}
            )

    async def _follow(self, writer: asyncio.StreamWriter) -> None:
        queue: asyncio.Queue[Json] = asyncio.Queue()
        self._events.append(queue)
        self.listened.set()
        _chunk_head(writer)
        while True:
            _chunk(writer, await queue.get())
            await writer.drain()

    async def _pour(self, one: Container, writer: asyncio.StreamWriter, *, follow: bool, chunked: bool = False) -> None:
        if chunked:
            _chunk_head(writer)
        async for kind, data in self._output(one, follow):
            frame = struct.pack(">BxxxI", kind, len(data)) + data
            writer.write(b"%x\r\n%s\r\n" % (len(frame), frame) if chunked else frame)
        if chunked:
            writer.write(b"0\r\n\r\n")

    async def _output(self, one: Container, follow: bool) -> AsyncIterator[tuple[int, bytes]]:
        sent = 0
        while True:
            over = one.ended.is_set()
            for piece in one.output[sent:]:
                yield piece
            sent = len(one.output)
            if over or not follow:
                return
            await asyncio.sleep(0.001)

    def _listed(self, one: Container) -> Json:
        return {
            "Id": one.id,
            "Names": [f"/{one.name}"],
            "State": one.state,
            "Labels": one.body.get("Labels") or {},
            "Image": one.body["Image"],
        }

    def _inspected(self, one: Container) -> Json:
        running = one.state == "running"
        host = one.body.get("HostConfig") or {}
        return {
            "Id": one.id,
            "Name": f"/{one.name}",
            "State": {"Running": running, "Status": one.state, "ExitCode": one.exit_code, "Pid": 0, "StartedAt": f"start {one.starts}"},
            "Config": {**one.body, "Labels": one.body.get("Labels") or {}, "Tty": one.body.get("Tty", False)},
            "HostConfig": {"NetworkMode": "default", **host},
            "Mounts": [{"Type": mount["Type"], "Destination": mount["Target"]} for mount in host.get("Mounts") or ()],
            "NetworkSettings": {"Networks": {"bridge": {"IPAddress": ""}}},
        }


class _Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


def _bears(labels: Json | None, label: str) -> bool:
    name, equals, value = label.partition("=")
    return name in (labels or {}) and (not equals or (labels or {})[name] == value)


def _send(writer: asyncio.StreamWriter, status: int, value: object = None) -> None:
    data = b"" if value is None else json.dumps(value).encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    writer.write(head.encode() + data)


def _chunk_head(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")


def _chunk(writer: asyncio.StreamWriter, value: object) -> None:
    data = json.dumps(value).encode() + b"\n"
    writer.write(b"%x\r\n%s\r\n" % (len(data), data))

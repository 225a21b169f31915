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
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
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
    stdin: asyncio.StreamReader = field(default_factory=asyncio.StreamReader)
    networks: dict[str, Json] = field(default_factory=dict)
    starts: int = 0

    @property
    def host(self) -> Json:
        return self.body.get("HostConfig") or {}

    @property
    def labels(self) -> Json:
        return self.body.get("Labels") or {}

    @property
    def tty(self) -> bool:
        return bool(self.body.get("Tty"))

    async def killed_by(self) -> str:
        await self.killed.wait()
        return self.signals[-1]


Program = Callable[[Container], Awaitable[int]]
Say = Callable[[int, bytes], None]
Command = Callable[[list[str], asyncio.StreamReader, Say], Awaitable[None]]
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")


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
        self.commands: dict[str, Command] = {}  # by image: what an exec runs
        self.networks: dict[str, Json] = {name: {"Name": name} for name in ("bridge", "none", "host")}
        self.refuse: dict[str, str] = {}  # "POST /containers/create" → message
        self.calls: list[str] = []
        self.lacks: list[str] = []  # sysctls that its kernel does not have
        self.hold: dict[str, asyncio.Event] = {}  # a call waits for it, its effect done
        self.listened = asyncio.Event()  # somebody follows the events
        self._numbers = iter(range(1, 1 << 20))
        self._events: list[tuple[dict[str, list[str]], asyncio.Queue[Json]]] = []
        self._execs: dict[str, tuple[Container, list[str]]] = {}
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
                for prefix, message in self.refuse.items():
                    if f"{method} {path}".startswith(prefix):
                        raise _Refused(400, message)
                match path.split("/"):
                    case [_, "containers", name, "attach"]:
                        await self._attach(name, query, reader, writer)
                    case [_, "exec", identity, "start"]:
                        await self._exec(*self._execs.pop(identity), reader, writer)
                    case _:
                        await self._answer(method, path, query, body, writer)
            except _Refused as exc:
                _send(writer, exc.status, {"message": exc.message})
            await writer.drain()
        writer.close()

    async def _answer(self, method: str, path: str, query: dict[str, str], body: bytes, writer: asyncio.StreamWriter) -> None:
        match [method, *path.strip("/").split("/", 2)]:
            case ["GET", "version"]:
                _send(writer, 200, {"ApiVersion": "1.41", "MinAPIVersion": "1.12", "Os": "linux", "Version": "fake"})
            case ["GET", "containers", "json"]:
                filters = json.loads(query.get("filters", "{}"))
                _send(writer, 200, [_listed(one) for one in self.containers.values() if _passes(one, filters)])
            case ["POST", "containers", "create"]:
                await self._create(query, json.loads(body), writer)
            case [_, "containers", name, *rest]:
                await self._container(method, name, rest[0] if rest else "", query, body, writer)
            case [_, "volumes", *rest]:
                self._volume(method, rest, query, body, writer)
            case [_, "networks", *rest]:
                self._network(method, rest, body, writer)
            case ["GET", "images", name, "json"] if name in self.images:
                _send(writer, 200, self.images[name])
            case ["GET", "events"]:
                await self._follow(json.loads(query.get("filters", "{}")), writer)
            case _:
                raise _Refused(404, f"no such thing: {path}")

    async def _create(self, query: dict[str, str], body: Json, writer: asyncio.StreamWriter) -> None:
        number = next(self._numbers)
        name = query.get("name") or f"unnamed_{number}"
        if not _NAME.fullmatch(name):
            raise _Refused(400, f"Invalid container name ({name})")
        if self.named(name):
            raise _Refused(409, f'Conflict. The container name "/{name}" is already in use')
        if body["Image"] not in self.images:
            raise _Refused(404, f"No such image: {body['Image']}")
        container = Container(f"{number:064x}", name, body)
        mode = container.host.get("NetworkMode", "default")
        if not mode.startswith("container:"):
            own = ((body.get("NetworkingConfig") or {}).get("EndpointsConfig") or {}).get(mode) or {}
            container.networks["bridge" if mode == "default" else mode] = own
        self.containers[container.id] = container
        if hold := self.hold.get(f"create {name.rpartition('-')[2]}"):
            await hold.wait()
        _send(writer, 201, {"Id": container.id, "Warnings": []})

    def _found(self, name: str) -> Container:
        one = self.named(name)
        if one is None:
            raise _Refused(404, f"No such container: {name}")
        return one

    async def _container(self, method: str, name: str, what: str, query: dict[str, str], body: bytes, writer: asyncio.StreamWriter) -> None:
        one = self._found(name)
        match method, what:
            case "GET", "json":
                _send(writer, 200, _inspected(one))
            case "POST", "start":
                self._may_start(one)
                _send(writer, 304 if one.state == "running" else 204)
                if one.state != "running":
                    self._start(one)
            case "POST", "kill" | "stop":
                await self._end(one, what, query, writer)
            case "POST", "wait":
                _chunk_head(writer)
                if query.get("condition") != "not-running" or one.state == "running":
                    await one.ended.wait()
                _chunk(writer, {"StatusCode": one.exit_code})
                writer.write(b"0\r\n\r\n")
            case "POST", "exec":
                if one.state != "running":
                    raise _Refused(409, f"Container {one.id} is not running")
                identity = f"{next(self._numbers):064x}"
                self._execs[identity] = one, json.loads(body)["Cmd"]
                _send(writer, 201, {"Id": identity})
            case "GET", "logs":
                await self._pour(one, writer, follow=query["follow"] == "true", tail=query["tail"], chunked=True)
            case "POST", "resize":
                if one.state != "running":
                    raise _Refused(409, f"Container {one.id} is not running")
                _send(writer, 200)
            case "PUT" | "GET", "archive":
                self._archive(one, method, query["path"], body, writer)
            case "DELETE", "":
                one.signals.append("KILL")
                one.killed.set()
                one.exit_code = 137 if one.state == "running" else one.exit_code
                one.ended.set()
                self.containers.pop(one.id, None)
                _send(writer, 204)
            case _:
                raise _Refused(404, f"no such call: {method} {what}")

    def _may_start(self, one: Container) -> None:
        for network in one.networks:
            if network not in self.networks:
                raise _Refused(404, f"network {network} not found")
        for name in one.host.get("Sysctls") or {}:
            if name in self.lacks:
                path = name.replace(".", "/")
                raise _Refused(400, f"error during container init: open /proc/sys/{path}: no such file or directory")

    async def _end(self, one: Container, what: str, query: dict[str, str], writer: asyncio.StreamWriter) -> None:
        if one.state != "running":
            if what == "stop":
                _send(writer, 304)
                return
            raise _Refused(409, f"Container {one.id} is not running")
        one.signals.append(query.get("signal", "TERM"))
        one.killed.set()
        if what == "stop":
            try:
                async with asyncio.timeout(int(query["t"])):
                    await one.ended.wait()
            except TimeoutError:
                one.signals.append("KILL")
                one.killed.set()
                await one.ended.wait()
        _send(writer, 204)

    async def _attach(self, name: str, query: dict[str, str], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        one = self._found(name)
        _hijacked(writer)
        feeding = self._spawn(_feed(one.stdin, reader), "stdin") if query["stdin"] == "true" else None
        await self._pour(one, writer, follow=True)
        if feeding is not None:
            feeding.cancel()

    async def _exec(self, one: Container, command: list[str], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _hijacked(writer)
        await self.commands[one.body["Image"]](command, reader, lambda kind, data: writer.write(_frame(kind, data)))

    def _archive(self, one: Container, method: str, path: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        if method == "PUT":
            if path == "/none":
                raise _Refused(404, f"Could not find the file {path} in container {one.name}")
            with tarfile.open(fileobj=io.BytesIO(body)) as tar:
                for member in tar.getmembers():
                    file = tar.extractfile(member)
                    assert file is not None
                    one.files[f"{path.rstrip('/')}/{member.name}"] = file.read()
            _send(writer, 200)
            return
        if path not in one.files:
            raise _Refused(404, f"Could not find the file {path} in container {one.name}")
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            member = tarfile.TarInfo(path.rpartition("/")[2])
            member.size = len(one.files[path])
            tar.addfile(member, io.BytesIO(one.files[path]))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-tar\r\nConnection: close\r\n\r\n" + packed.getvalue())

    def _volume(self, method: str, rest: list[str], query: dict[str, str], body: bytes, writer: asyncio.StreamWriter) -> None:
        match method, rest:
            case "POST", ["create"]:
                wanted = json.loads(body)
                _send(writer, 201, self.volumes.setdefault(wanted["Name"], wanted))
            case "GET", []:
                (label,) = json.loads(query["filters"])["label"]
                _send(writer, 200, {"Volumes": [one for one in self.volumes.values() if _bears(one["Labels"], label)]})
            case "DELETE", [name]:
                if name not in self.volumes:
                    raise _Refused(404, f"get {name}: no such volume")
                if users := [one.id for one in self.containers.values() if name in _volumes(one)]:
                    raise _Refused(409, f"remove {name}: volume is in use - {users}")
                del self.volumes[name]
                _send(writer, 204)
            case _:
                raise _Refused(404, f"no such call: {method} volumes")

    def _network(self, method: str, rest: list[str], body: bytes, writer: asyncio.StreamWriter) -> None:
        match method, rest:
            case "POST", ["create"]:
                self.networks[json.loads(body)["Name"]] = json.loads(body)
                _send(writer, 201, {})
            case "GET", [name] if name in self.networks:
                _send(writer, 200, self.networks[name])
            case "DELETE", [name] if name in self.networks:
                del self.networks[name]
                _send(writer, 204)
            case "POST", [name, "connect"] if name in self.networks:
                wanted = json.loads(body)
                one = self._found(wanted["Container"])
                if name in one.networks:
                    raise _Refused(403, f"endpoint with name {one.name} already exists in network {name}")
                self.join(name, one, **wanted["EndpointConfig"])
                _send(writer, 200)
            case _:
                raise _Refused(404, f"network {rest[0] if rest else ''} not found")

    def join(self, network: str, one: Container, **config: Any) -> None:
        """As `docker network connect`."""
        one.networks[network] = config
        self._tell("network", "connect", network, {"name": network, "container": one.id, "type": "bridge"})

    def _start(self, one: Container) -> None:
        one.state, one.starts = "running", one.starts + 1
        one.killed.clear()
        one.ended.clear()

        async def run() -> None:
            one.exit_code = await self.programs.get(one.body["Image"], forever)(one)
            one.state = "exited"
            one.ended.set()
            self.tell("die", one, exitCode=str(one.exit_code))

        self._spawn(run(), f"container-{one.name}")
        self.tell("start", one)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def tell(self, action: str, one: Container, **attributes: str) -> None:
        self._tell("container", action, one.id, {"name": one.name, **one.labels, **attributes})

    def _tell(self, kind: str, action: str, identity: str, attributes: Json) -> None:
        event = {"Type": kind, "Action": action, "Actor": {"ID": identity, "Attributes": attributes}}
        for filters, queue in self._events:
            if _tells(filters, event):
                queue.put_nowait(event)

    async def _follow(self, filters: dict[str, list[str]], writer: asyncio.StreamWriter) -> None:
        queue: asyncio.Queue[Json] = asyncio.Queue()
        self._events.append((filters, queue))
        self.listened.set()
        _chunk_head(writer)
        while True:
            _chunk(writer, await queue.get())
            await writer.drain()

    async def _pour(self, one: Container, writer: asyncio.StreamWriter, *, follow: bool, tail: str = "all", chunked: bool = False) -> None:
        if chunked:
            _chunk_head(writer)
        async for kind, data in self._output(one, follow, tail):
            piece = data.replace(b"\n", b"\r\n") if one.tty else _frame(kind, data)
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
        if chunked:
            writer.write(b"0\r\n\r\n")

    async def _output(self, one: Container, follow: bool, tail: str) -> AsyncIterator[tuple[int, bytes]]:
        sent = 0 if tail == "all" else max(0, len(one.output) - int(tail))
        while True:
            over = one.ended.is_set()
            for piece in one.output[sent:]:
                yield piece
            sent = len(one.output)
            if over or not follow:
                return
            await asyncio.sleep(0.001)


def _listed(one: Container) -> Json:
    return {"Id": one.id, "Names": [f"/{one.name}"], "State": one.state, "Labels": one.labels, "Image": one.body["Image"]}


def _inspected(one: Container) -> Json:
    running = one.state == "running"
    joined = {name: {"IPAddress": "172.18.0.2" if running else "", "Aliases": None, **config} for name, config in one.networks.items()}
    return {
        "Id": one.id,
        "Name": f"/{one.name}",
        "State": {"Running": running, "Status": one.state, "ExitCode": one.exit_code, "Pid": 0, "StartedAt": f"start {one.starts}"},
        "Config": {"Env": [], **one.body, "Labels": one.labels, "Tty": one.tty},
        "HostConfig": {"NetworkMode": "default", **one.host},
        "Mounts": [{"Type": mount["Type"], "Destination": mount["Target"]} for mount in one.host.get("Mounts") or ()],
        "NetworkSettings": {"Networks": joined},
    }


def _volumes(one: Container) -> set[str]:
    mounted = {mount["Source"] for mount in one.host.get("Mounts") or () if mount["Type"] == "volume"}
    return mounted | {bind.split(":")[0] for bind in one.host.get("Binds") or ()}


def _passes(one: Container, filters: dict[str, list[str]]) -> bool:
    return (
        all(_bears(one.labels, label) for label in filters.get("label", ()))
        and one.state in filters.get("status", [one.state])
        and ("network" not in filters or not one.networks.keys().isdisjoint(filters["network"]))
    )


def _tells(filters: dict[str, list[str]], event: Json) -> bool:
    attributes = event["Actor"]["Attributes"]
    by_name = {"container": [attributes["name"], event["Actor"]["ID"]], "network": [attributes["name"]]}.get(event["Type"], [])
    return (
        event["Type"] in filters.get("type", [event["Type"]])
        and event["Action"] in filters.get("event", [event["Action"]])
        and all(_bears(attributes, label) for label in filters.get("label", ()))
        and all(
            any(name.startswith(beginning) for beginning in filters[kind] for name in by_name)
            for kind in ("container", "network")
            if kind in filters
        )
    )


async def _feed(stdin: asyncio.StreamReader, reader: asyncio.StreamReader) -> None:
    while data := await reader.read(65536):
        stdin.feed_data(data)
    stdin.feed_eof()


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


def _frame(kind: int, data: bytes) -> bytes:
    return struct.pack(">BxxxI", kind, len(data)) + data


def _hijacked(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")


def _chunk_head(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")


def _chunk(writer: asyncio.StreamWriter, value: object) -> None:
    data = json.dumps(value).encode() + b"\n"
    writer.write(b"%x\r\n%s\r\n" % (len(data), data))

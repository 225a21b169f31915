"""One session in the host process, against a fake engine, a fake bridge behind its real door, and a fake place."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

from bridge.cli import hosting, sessions
from bridge.cli.hosting import Manner
from bridge.engine.needs import TargetChange
from bridge.errors import BridgeError
from bridge.model.environ import Environ, EnvWish
from bridge.model.facts import AgentIdentity, Facts, TargetFound
from bridge.model.target import DockerTarget
from bridge.model.wish import AppWish, SessionWish
from bridge.protocol import door as wire
from tests.unit.fake_engine import Container, FakeEngine, forever

FACTS = Facts("orders-1", ("10.1.0.3/24",), "nameserver 10.1.0.1\n", "")
WISH = SessionWish(DockerTarget("orders"), AppWish("app:1", env=("B=mine",)), env=EnvWish(exclude=("SECRET",)))


class FakePlace:
    """A target that is found; each agent has a number."""

    def __init__(self) -> None:
        self.agents = 0
        self.present = False
        self.distrusted = False
        self.broken: BridgeError | None = None
        self.dials: list[BridgeError] = []  # what the next dials fail with
        self.changes: asyncio.Queue[TargetChange] = asyncio.Queue()
        self.hold: asyncio.Event | None = None
        self.warnings: tuple[str, ...] = ()
        self.spec: str | None = None  # why the environment is the spec's
        self.on_warnings: Callable[[], None] = lambda: None

    async def find(self) -> TargetFound:
        return TargetFound("docker/orders", "container orders", "1", hostname="orders-1")

    async def start_agent(self, public_key: str, progress: Callable[[str], None]) -> AgentIdentity:
        if self.broken is not None:
            raise self.broken
        self.present = True
        if self.hold is not None:
            await self.hold.wait()
        self.agents += 1
        return AgentIdentity(f"{self.agents:016x}", f"ssh-ed25519 KEY{self.agents}", 1, "mbridge-x-agent")

    async def dial(self, agent: AgentIdentity, avoid: Sequence[str]) -> tuple[str, socket.socket]:
        if self.dials:
            raise self.dials.pop(0)
        ours, theirs = socket.socketpair()
        theirs.sendall(f"agent {agent.agent_id}".encode())
        theirs.close()
        return "direct", ours

    async def environ(self) -> Environ:
        return Environ(b"A=target's\0B=target's\0SECRET=no\0PATH=/target\0ODD=\xff\0", self.spec)

    async def watch(self) -> AsyncIterator[TargetChange]:
        while True:
            yield await self.changes.get()

    def distrust_agent(self) -> None:
        self.distrusted = True

    async def close(self) -> None: ...

    async def remove_agent(self) -> None:
        self.present = False


class Bridge:
    """Programs of the bridge's image: pause, and a bridge that answers at its door."""

    def __init__(self) -> None:
        self.configs: list[wire.Configure] = []
        self.heard: asyncio.Queue[wire.Message | None] = asyncio.Queue()
        self.carriers: asyncio.Queue[bytes] = asyncio.Queue()
        self.may_be_ready = asyncio.Event()
        self.may_be_ready.set()
        self.fails: wire.Failed | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def program(self, container: Container) -> int:
        if not container.name.endswith("-bridge"):
            return await forever(container)
        path = Path(container.body["HostConfig"]["Mounts"][0]["Source"]) / "bridge.sock"
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.setblocking(False)
            listener.listen()
            async with asyncio.TaskGroup() as group:
                accepting = group.create_task(self._accept(listener, group), name="door")
                code = await forever(container)
                accepting.cancel()
                if self._writer is not None:
                    self._writer.close()
            return code

    async def _accept(self, listener: socket.socket, group: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(listener)
            sock.setblocking(True)
            line, fds, _, _ = await asyncio.to_thread(socket.recv_fds, sock, 4096, 2)
            if json.loads(line.splitlines()[0])["type"] == "carrier":
                with socket.socket(fileno=fds[0]) as carrier:
                    carrier.setblocking(True)
                    self.carriers.put_nowait(carrier.recv(100))
                sock.close()
                continue
            sock.setblocking(False)
            reader, self._writer = await asyncio.open_unix_connection(sock=sock)
            group.create_task(self._control(reader, self._writer, line.partition(b"\n")[2]), name="control")

    async def _control(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rest: bytes) -> None:
        lines = wire.LineReader()
        pending = lines.feed(rest) if rest else []
        while True:
            for message in map(wire.decode, pending):
                if isinstance(message, wire.Configure):
                    self.configs.append(message)
                    await self.may_be_ready.wait()
                    writer.write(wire.encode(self.fails or wire.Ready(FACTS, "nameserver 127.0.0.11\n")))
                self.heard.put_nowait(message)
            data = await reader.read(65536)
            if not data:
                return
            pending = lines.feed(data)

    def say(self, message: wire.Message) -> None:
        assert self._writer is not None
        self._writer.write(wire.encode(message))

    async def hears(self, kind: type[wire.Message]) -> Any:
        while not isinstance(message := await self.heard.get(), kind):
            pass
        return message


class Quiet:
    """A teller that keeps what it is told."""

    raw = False

    def __init__(self) -> None:
        self.told: list[str] = []
        self.under_way: list[str] = []

    @contextlib.contextmanager
    def step(self, what: str) -> Iterator[Quiet]:
        yield self

    def now(self, text: str) -> None:
        self.under_way.append(text)

    def done(self, text: str) -> None:
        self.told.append(text)

    def warn(self, message: str) -> None:
        self.told.append(message)

    note = warn


class World:
    """All that a test meets."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine, self.place, self.bridge, self.ui = engine, FakePlace(), Bridge(), Quiet()
        self.output = b""
        self.app_signals: asyncio.Queue[str] = asyncio.Queue()
        self.started = asyncio.Event()
        engine.images["bridge:1"] = {"Id": "2", "Config": {}}
        engine.programs["bridge:1"] = self.bridge.program
        engine.programs["app:1"] = self.app

    async def app(self, container: Container) -> int:
        self.started.set()
        container.output.append((1, b"hello\n"))
        return await forever(container)

    async def host(self, wish: SessionWish = WISH, **manner: Any) -> int:
        async def write(fd: int, data: bytes) -> bool:
            self.output += data
            return True

        return await hosting.host(wish, self.ui, Manner(write=write, **manner))

    def container(self, role: str) -> Container:
        return next(one for one in self.engine.containers.values() if one.body["Labels"]["mbridge.role"] == role)

    def status(self) -> Any:
        (folder,) = sessions.all_sessions()
        return folder.status()

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not true():  # noqa: ASYNC110  what is waited for is a status file, or a list that many append to
                await asyncio.sleep(0.002)

    def assert_nothing_is_left(self) -> None:
        assert not self.engine.containers
        assert not self.engine.volumes
        assert not self.place.present
        assert not sessions.all_sessions()


Play = Callable[[Callable[[World], Coroutine[Any, Any, None]]], None]  # the fixture `play` of conftest.py

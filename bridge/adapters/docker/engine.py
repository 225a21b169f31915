"""One method per call that mbridge makes to an engine.

What is not there is None or False, never an exception: undo and look-ups treat absence as an answer. All else that the engine
refuses is EngineRefused with its own words. API 1.41 (20.10) is the oldest that is spoken; newer engines are asked in the
version that both know.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import tarfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Self

from bridge.adapters.docker.by_ssh import LOGIN_S
from bridge.adapters.docker.endpoint import Endpoint
from bridge.adapters.docker.wire import EngineRefused, Hijacked, Wire
from bridge.errors import BridgeError, EngineUnavailable, HostError

_OLDEST, _NEWEST = (1, 41), (1, 47)
Json = dict[str, Any]


class Engine:
    """One engine. Opens nothing until it is asked."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.wire = Wire(endpoint)
        self.info: Json = {}

    async def connect(self) -> Self:
        """Agree on a version, once. Raises EngineUnavailable (not running, no rights, too old)."""
        if self.wire.version is not None:
            return self
        try:
            self.info = await self._ask("GET", "/version", timeout_s=LOGIN_S if self.endpoint.is_ssh else 15)
            newest = _version(self.info["ApiVersion"])
            oldest = _version(self.info.get("MinAPIVersion", "1.12"))
        except (EngineRefused, KeyError, ValueError, TypeError) as exc:
            raise EngineUnavailable(f"what answers at {self.endpoint.url} is no Docker engine: {exc}", hint="docker version") from exc
        if newest < _OLDEST or oldest > _NEWEST:
            speaks = self.info["ApiVersion"]
            raise EngineUnavailable(f"the engine at {self.endpoint.url} speaks API {speaks}, not 1.41 (Docker 20.10) to 1.47")
        if self.info.get("Os", "linux") != "linux":
            raise EngineUnavailable(f"the engine at {self.endpoint.url} runs {self.info['Os']} containers; mbridge needs Linux ones")
        self.wire.version = ".".join(map(str, min(newest, _NEWEST)))
        return self

    # containers

    async def containers(self, **filters: Sequence[str]) -> list[Json]:
        """All containers, running or not, that match: label=["mbridge.session=abc"], name=[…], status=[…]."""
        answer: list[Json] = await self._ask("GET", "/containers/json", query={"all": True, "filters": json.dumps(filters)})
        return answer

    async def inspect(self, container: str) -> Json | None:
        return await self._maybe("GET", f"/containers/{container}/json")

    async def create(self, name: str | None, body: Json, platform: str | None = None) -> str:
        """Its id."""
        answer: Json = await self._ask("POST", "/containers/create", query={"name": name, "platform": platform}, body=body)
        return str(answer["Id"])

    async def start(self, container: str) -> None:
        await self._ask("POST", f"/containers/{container}/start")

    async def stop(self, container: str, grace_s: int) -> None:
        """Its stop signal, and SIGKILL after `grace_s`; returns when it has ended. One that does not run is fine."""
        await self._tolerant("POST", f"/containers/{container}/stop", query={"t": grace_s}, timeout_s=grace_s + 30)

    async def kill(self, container: str, signal: str = "KILL") -> bool:
        """False: it does not run (any more)."""
        return await self._tolerant("POST", f"/containers/{container}/kill", query={"signal": signal})

    async def remove(self, container: str) -> bool:
        """Stop it at once and take it away, with its anonymous volumes. Waits for a removal that is under way."""
        for _ in range(50):
            try:
                await self._ask("DELETE", f"/containers/{container}", query={"force": True, "v": True})
                return True
            except EngineRefused as exc:
                if exc.status == 404:
                    return False
                if exc.status != 409:  # "removal of container … is already in progress"
                    raise
            await asyncio.sleep(0.1)
        raise HostError(f"container {container} cannot be removed: its removal does not end", hint=f"docker rm -f {container}")

    async def wait(self, container: str, started: asyncio.Event, condition: str = "next-exit") -> int:
        """The exit code of its next end. `started` is set once the engine has taken note, so that no end is missed."""
        async with self.wire.stream("POST", f"/containers/{container}/wait", query={"condition": condition}) as chunks:
            started.set()
            data = b"".join([chunk async for chunk in chunks])
        if not data:
            raise EngineUnavailable("the engine went away", hint="docker version")
        answer = json.loads(data)
        if (answer.get("Error") or {}).get("Message"):
            raise HostError(f"the engine lost the container: {answer['Error']['Message']}")
        return int(answer["StatusCode"])

    async def resize(self, container: str, rows: int, columns: int) -> bool:
        return await self._tolerant("POST", f"/containers/{container}/resize", query={"h": rows, "w": columns})

    async def attach(self, container: str, *, stdin: bool, tty: bool) -> Hijacked:
        query = {"stream": True, "stdin": stdin, "stdout": True, "stderr": True}
        return await self.wire.hijack(f"/containers/{container}/attach", query=query, raw=tty)

    @contextlib.asynccontextmanager
    async def logs(self, container: str, *, follow: bool, tail: int | None = None, since: float | None = None) -> AsyncIterator[Hijacked]:
        """Its output so far, of it the last `tail` lines or what is younger than `since`, and what follows; as an attach without tty."""
        query = {"stdout": True, "stderr": True, "follow": follow, "tail": "all" if tail is None else tail}
        query |= {} if since is None else {"since": f"{since:.6f}"}
        found = await self.inspect(container)
        raw = bool(found and found["Config"].get("Tty"))
        async with self.wire.stream("GET", f"/containers/{container}/logs", query=query) as chunks:
            reader = asyncio.StreamReader(limit=1 << 20)
            feeder = asyncio.get_running_loop().create_task(_feed(reader, chunks), name=f"logs-{container}")
            try:
                yield Hijacked(reader, _NoWriter(), raw)  # type: ignore[arg-type]  # a log takes no input; only close() is called
            finally:
                feeder.cancel()
                await asyncio.wait([feeder])

    async def last_lines(self, container: str, count: int) -> list[str]:
        text = b""
        with contextlib.suppress(EngineRefused):
            async with self.logs(container, follow=False, tail=count) as stream:
                async for _, data in stream.chunks():
                    text += data
        return text.decode(errors="replace").splitlines()[-count:]

    async def put_files(self, container: str, folder: str, files: Mapping[str, bytes], mode: int = 0o444) -> None:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size, member.mode, member.mtime = len(data), mode, int(time.time())
                tar.addfile(member, io.BytesIO(data))
        await self._ask("PUT", f"/containers/{container}/archive", query={"path": folder}, body=packed.getvalue())

    async def read_file(self, container: str, path: str) -> bytes:
        """One file of a container, as `docker cp` sees it. Raises EngineRefused where there is none."""
        packed: bytes = await self._ask("GET", f"/containers/{container}/archive", query={"path": path})
        with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
            file = tar.extractfile(tar.getmembers()[0])
            return file.read() if file is not None else b""

    async def exec(self, container: str, command: Sequence[str], *, stdin: bool = True) -> Hijacked:
        """Run `command` in it, joined to a stream; its output is multiplexed."""
        body = {"Cmd": list(command), "AttachStdin": stdin, "AttachStdout": True, "AttachStderr": True, "Tty": False}
        answer: Json = await self._ask("POST", f"/containers/{container}/exec", body=body)
        return await self.wire.hijack(f"/exec/{answer['Id']}/start", body={"Detach": False, "Tty": False})

    # networks, volumes, images

    async def network(self, name: str) -> Json | None:
        return await self._maybe("GET", f"/networks/{name}")

    async def join_network(self, network: str, container: str, config: Json) -> None:
        await self._ask("POST", f"/networks/{network}/connect", body={"Container": container, "EndpointConfig": config})

    async def create_volume(self, name: str, labels: Mapping[str, str]) -> None:
        await self._ask("POST", "/volumes/create", body={"Name": name, "Labels": dict(labels)})

    async def remove_volume(self, name: str) -> bool:
        return await self._tolerant("DELETE", f"/volumes/{name}", conflict=False)

    async def volumes(self, label: str) -> list[str]:
        answer: Json = await self._ask("GET", "/volumes", query={"filters": json.dumps({"label": [label]})})
        return [str(volume["Name"]) for volume in answer.get("Volumes") or ()]

    async def image(self, name: str) -> Json | None:
        return await self._maybe("GET", f"/images/{name}/json")

    async def pull(self, image: str, platform: str | None, progress: Callable[[str], None]) -> None:
        """Raises HostError in the engine's own words ("manifest unknown", "no basic auth credentials")."""
        name, tag = split_image(image)
        headers = {}
        auth = await asyncio.to_thread(_registry_auth, image)
        if auth:
            headers["X-Registry-Auth"] = auth
        layers: dict[str, tuple[int, int]] = {}
        query = {"fromImage": name, "tag": tag, "platform": platform}
        try:
            async with self.wire.stream("POST", "/images/create", query=query, headers=headers) as chunks:
                async for event in _json_lines(chunks):
                    if "error" in event:
                        raise HostError(f"image {image} cannot be pulled: {event['error']}", hint=_pull_hint(image))
                    detail = event.get("progressDetail") or {}
                    if event.get("id") and detail.get("total"):
                        layers[event["id"]] = (detail.get("current", 0), detail["total"])
                        done, total = (sum(column) for column in zip(*layers.values(), strict=True))
                        progress(f"pulling {image}: {done * 100 // total} % of {total / 1e6:.0f} MB")
        except EngineRefused as exc:
            raise HostError(f"image {image} cannot be pulled: {exc.message}", hint=_pull_hint(image)) from exc

    @contextlib.asynccontextmanager
    async def events(self, since: float | None = None, **filters: Sequence[str]) -> AsyncIterator[AsyncIterator[Json]]:
        """The engine's events from `since` on (its own clock's seconds), until left. Ends when the engine goes away."""
        query = {"filters": json.dumps(filters), "since": None if since is None else f"{since:.9f}"}
        async with self.wire.stream("GET", "/events", query=query) as chunks:
            yield _json_lines(chunks)

    # how a call ends

    async def _ask(self, method: str, path: str, *, query: Any = None, body: Any = None, timeout_s: float = 120) -> Any:
        try:
            return await self.wire.request(method, path, query=query, body=body, timeout_s=timeout_s)
        except TimeoutError as exc:
            said = f"the engine at {self.endpoint.url} did not answer within {timeout_s:.0f} s"
            raise EngineUnavailable(said, hint="docker version") from exc

    async def _maybe(self, method: str, path: str) -> Json | None:
        try:
            answer: Json = await self._ask(method, path)
        except EngineRefused as exc:
            if exc.status in (400, 404):  # 400: a name that can be none ("invalid reference format")
                return None
            raise
        return answer

    async def _tolerant(self, method: str, path: str, *, query: Any = None, timeout_s: float = 120, conflict: bool = True) -> bool:
        """False where the thing is not there, or (with `conflict`) not in the state for it."""
        try:
            await self._ask(method, path, query=query, timeout_s=timeout_s)
        except EngineRefused as exc:
            if exc.status in (304, 404) or (conflict and exc.status == 409):
                return False
            raise
        return True


class _NoWriter:
    def close(self) -> None:
        pass


async def _feed(reader: asyncio.StreamReader, chunks: AsyncIterator[bytes]) -> None:
    try:
        async for chunk in chunks:
            reader.feed_data(chunk)
    except BridgeError as exc:
        reader.set_exception(exc)
    else:
        reader.feed_eof()


async def _json_lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[Json]:
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.strip():
                yield json.loads(line)
    if rest.strip():
        yield json.loads(rest)


def split_image(image: str) -> tuple[str, str | None]:
    """("registry:5000/app", "1.2"); a digest is a tag to the API; "latest" where none is named."""
    if "@" in image:
        name, _, digest = image.partition("@")
        return name, digest
    head, colon, tag = image.rpartition(":")
    if not colon or "/" in tag:
        return image, "latest"
    return head, tag


def _registry_auth(image: str) -> str | None:
    """X-Registry-Auth from the user's config.json and its credential helpers; None where there is nothing for this registry."""
    from docker import auth, errors  # the one who knows every credential helper; a tenth of a second, on pulls alone

    try:
        registry, _ = auth.resolve_repository_name(split_image(image)[0])
        found = auth.resolve_authconfig(auth.load_config(), registry)
    except errors.DockerException as exc:
        raise HostError(f"the credentials for pulling {image} cannot be read: {exc}", hint="docker login") from exc
    return base64.urlsafe_b64encode(json.dumps(found).encode()).decode() if found else None


def _pull_hint(image: str) -> str:
    return f"docker pull {image}"


def _version(text: str) -> tuple[int, int]:
    major, minor = text.split(".")
    return int(major), int(minor)

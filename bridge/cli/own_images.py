"""Our own images, there or built: the engine is asked for the name first, and only a missing one brings in the builder."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal

from bridge.adapters.docker.endpoint import Endpoint
from bridge.adapters.docker.engine import Engine

if TYPE_CHECKING:
    from docker import DockerClient


async def ensure(engine: Engine, which: Literal["bridge", "agent"], progress: Callable[[str], None]) -> str:
    """The image's name. Building one takes the better part of a minute, once per version."""
    name = await asyncio.to_thread(_tag, which)
    if await engine.image(name) is None:
        loop = asyncio.get_running_loop()

        def say(line: str) -> None:
            with contextlib.suppress(RuntimeError):  # as below
                loop.call_soon_threadsafe(progress, line)

        await _in_daemon(lambda: _build(engine.endpoint, which, say))
    return name


async def _in_daemon(work: Callable[[], None]) -> None:
    """In a thread that the end of the process does not wait for: Ctrl-C ends a build, because its connection ends."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle(error: BaseException | None) -> None:
        if not done.done():
            done.set_exception(error) if error is not None else done.set_result(None)

    def run() -> None:
        error: BaseException | None = None
        try:
            work()
        except BaseException as exc:  # told to the task that waits
            error = exc
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, error)

    threading.Thread(target=run, name="image-build", daemon=True).start()
    await done


def _tag(which: Literal["bridge", "agent"]) -> str:
    from bridge.adapters import images

    return images.tag(which)


def _build(endpoint: Endpoint, which: Literal["bridge", "agent"], progress: Callable[[str], None]) -> None:
    from bridge.adapters import images

    with docker_py(endpoint) as client:
        images.build(client, which, progress)


@contextlib.contextmanager
def docker_py(endpoint: Endpoint) -> Iterator[DockerClient]:
    """The library, for what it knows better than adapters/docker: builds, tar files, registries. Raises EngineUnavailable."""
    from bridge.adapters import image_store
    from bridge.adapters.docker import by_ssh

    with by_ssh.local_socket(endpoint.url) if endpoint.is_ssh else contextlib.nullcontext(endpoint.url) as url:
        client = image_store.connected(url, ca=endpoint.ca, cert=endpoint.cert, key=endpoint.key, verify=endpoint.verify, tls=endpoint.tls)
        with contextlib.closing(client):
            yield client

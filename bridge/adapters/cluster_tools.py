"""Other people's programs that bring an image into a cluster: kind, k3d, minikube, and whatever command the user names.

Theory of operation: each local cluster's own tool takes an image from the engine by its name and knows all nodes, runtimes and
versions of its clusters. A command of the user's is run by a shell and gets the image on its stdin, as `docker save` writes it:

    ssh node1 sudo ctr -n k8s.io images import -       sudo k3s ctr images import -       microk8s ctr images import -

What they say is progress; their last words are the error where they fail. They end with the wait for them.

Limits: whether the image has arrived is the program's word: its exit code.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from bridge.errors import HostError

Tool = Literal["kind", "k3d", "minikube"]
TOOLS: tuple[Tool, ...] = ("kind", "k3d", "minikube")
_LAST_WORDS = 5


def path_of(tool: Tool, environ: Mapping[str, str]) -> str | None:
    return shutil.which(tool, path=environ.get("PATH"))


def import_command(tool: Tool, program: str, image: str, cluster: str) -> list[str]:
    match tool:
        case "kind":
            return [program, "load", "docker-image", image, "--name", cluster]
        case "k3d":
            return [program, "image", "import", image, "-c", cluster]
        case "minikube":
            return [program, "image", "load", image, "-p", cluster]


async def run(
    command: Sequence[str] | str, environ: Mapping[str, str], progress: Callable[[str], None], data: AsyncIterator[bytes] | None = None
) -> None:
    """Run a program, or as one string a shell's command, until its end. Raises HostError with its last words."""
    words = ["sh", "-c", command] if isinstance(command, str) else list(command)
    pipe, none, same = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL, asyncio.subprocess.STDOUT
    stdin = none if data is None else pipe
    try:
        process = await asyncio.create_subprocess_exec(*words, stdin=stdin, stdout=pipe, stderr=same, env=dict(environ))
    except OSError as error:
        raise HostError(f"{words[0]} cannot be run: {(error.strerror or str(error)).lower()}") from error
    said: deque[str] = deque(maxlen=_LAST_WORDS)
    feeding = asyncio.ensure_future(_feed(process, data)) if data is not None else None
    try:
        await _listen(process, said, progress)
        code = await process.wait()
        if feeding is not None and feeding.done():
            feeding.result()  # what kept the image from coming is the reason for all that follows
    finally:
        if feeding is not None:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if code:
        shown = command if isinstance(command, str) else " ".join([Path(words[0]).name, *words[1:]])
        raise HostError(f"`{shown}` ended with {code}" + (f": {said[-1]}" if said else ""), hint="\n".join([*said][:-1]) or None)


async def _listen(process: asyncio.subprocess.Process, said: deque[str], progress: Callable[[str], None]) -> None:
    assert process.stdout is not None, "it is a pipe"
    while piece := await process.stdout.read(1 << 16):
        for line in piece.decode(errors="replace").replace("\r", "\n").splitlines():
            if line := line.strip():
                said.append(line)
                progress(line)


async def _feed(process: asyncio.subprocess.Process, data: AsyncIterator[bytes]) -> None:
    assert process.stdin is not None, "it is a pipe"
    try:
        async for chunk in data:
            process.stdin.write(chunk)
            await process.stdin.drain()
    except ConnectionError:
        pass  # a program that wants no more has its reasons: its exit code tells
    finally:
        process.stdin.close()

"""The bridge's door: the Unix socket through which the host CLI configures it and brings carriers.

Theory of operation: the first line of a connection says what it is (docs/design/001-spine.md, "The door"). A control
connection goes on with JSON lines; a carrier hands over its descriptors by SCM_RIGHTS in the same message as that line.
Where the host cannot reach the socket, `python -m bridge.sidecar door …` runs under exec in this container and joins its
own stdio to it: `control` copies bytes both ways, `carrier N` passes one end of a socket pair and moves bytes for the other.

Limits: a first line of 4 KiB, one line of 1 MiB, 10 s for the first line.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import logging
import os
import select
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bridge.adapters.splicing import pump
from bridge.adapters.unix_listener import listen_at
from bridge.engine.accepting import Accepting
from bridge.errors import RemoteProtocolError
from bridge.model.fields import read_object

log = logging.getLogger(__name__)

PATH = Path("/run/mbridge/bridge.sock")
_FIRST_LINE_BYTES = 4096
_FIRST_LINE_S = 10
_MAX_FDS = 2


@dataclass(frozen=True, slots=True)
class Carrier:
    """Descriptors of a carrier: one socket, or a read end and a write end."""

    dial_id: int
    via: str
    fds: tuple[int, ...]


class Door:
    """Accepts connections; `on_control` gets a connected socket, `on_carrier` a Carrier whose descriptors it now owns."""

    def __init__(self, on_control: Callable[[socket.socket], None], on_carrier: Callable[[Carrier], None], path: Path = PATH) -> None:
        self._on_control = on_control
        self._on_carrier = on_carrier
        self._path = path

    async def serve(self) -> None:
        """Listen until cancelled; each newcomer is told apart in a task of its own."""
        # The folder is the boundary: a tmpfs of root's, or the user's own 0700 folder on the host, where root here is someone else
        with listen_at(self._path, 0o666) as listener:
            async with asyncio.TaskGroup() as group:
                accepting = Accepting(listener, lambda sock, _: group.create_task(self._greet(sock), name="door-greeting"))
                accepting.start()
                try:
                    await asyncio.get_running_loop().create_future()
                finally:
                    accepting.stop()

    async def _greet(self, sock: socket.socket) -> None:
        try:
            async with asyncio.timeout(_FIRST_LINE_S):
                line, fds = await _first_line(sock)
            kind = line.get("type")
            if kind == "control":
                _close_all(fds)
                self._on_control(sock)
                return
            dial_id, via = line.get("id"), line.get("via")
            if kind != "carrier" or not isinstance(dial_id, int) or not isinstance(via, str) or not fds:
                _close_all(fds)
                raise RemoteProtocolError(f"the door does not know {str(line)[:80]!r}")
            self._on_carrier(Carrier(dial_id, via[:32], tuple(fds)))
        except (RemoteProtocolError, TimeoutError, OSError) as exc:
            log.warning("! door: %s", exc)
        sock.close()


async def _first_line(sock: socket.socket) -> tuple[dict[str, object], list[int]]:
    """The JSON object of the first line, and the descriptors that came with it. Nothing past the line is read."""
    await _readable(sock)
    data, ancillary, _, _ = sock.recvmsg(_FIRST_LINE_BYTES, socket.CMSG_LEN(_MAX_FDS * 4), socket.MSG_PEEK)
    for level, kind, raw in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            _close_all(_unpack(raw))  # a peeked message has duplicates of its own
    line, newline, _ = data.partition(b"\n")
    if not newline:
        raise RemoteProtocolError("the door's first line is not whole")
    data, ancillary, _, _ = sock.recvmsg(len(line) + 1, socket.CMSG_LEN(_MAX_FDS * 4))
    fds: list[int] = []
    for level, kind, raw in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds += _unpack(raw)
    try:
        return read_object(line, "the door's first line"), fds
    except RemoteProtocolError:
        _close_all(fds)
        raise


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(sock.fileno(), wake)
    try:
        await ready
    finally:
        loop.remove_reader(sock.fileno())


def _unpack(raw: bytes) -> list[int]:
    fds = array.array("i")
    fds.frombytes(raw[: len(raw) - len(raw) % fds.itemsize])
    return list(fds)


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def join_stdio(words: list[str], path: Path = PATH) -> int:
    """`door control` and `door carrier N VIA` under exec: no asyncio, so that it starts in the time of a Python process."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(str(path))
        if words[0] == "carrier":
            line = json.dumps({"type": "carrier", "id": int(words[1]), "via": words[2] if len(words) > 2 else "exec"}).encode() + b"\n"
            ours, theirs = socket.socketpair()
            with theirs:
                socket.send_fds(sock, [line], [theirs.fileno()])
            return _carry(ours)
        sock.sendall(b'{"type": "control"}\n')
        return _copy(sock)


def _carry(carrier: socket.socket) -> int:
    """This process stays between: an engine closes the stdio of an exec soon after its process has ended, whoever else holds it.

    So it must live as long as the carrier, and only as one end of a socket pair does it learn that the bridge has dropped that.
    """

    def inwards() -> None:
        pump(0, carrier.fileno())
        with contextlib.suppress(OSError):
            carrier.shutdown(socket.SHUT_WR)

    threading.Thread(target=inwards, name="stdin", daemon=True).start()
    pump(carrier.fileno(), 1)
    return 0


def _copy(sock: socket.socket) -> int:
    poller = select.poll()
    poller.register(0, select.POLLIN)
    poller.register(sock, select.POLLIN)
    while True:
        for fd, _ in poller.poll():
            if fd == 0:
                data = os.read(0, 65536)
                if not data:
                    return 0
                sock.sendall(data)
            else:
                data = sock.recv(65536)
                if not data:
                    return 0
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()

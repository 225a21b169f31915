"""A network namespace for each test: that of a thread, so it is gone with the thread and its sockets."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest

_T = TypeVar("_T")
_CLONE_NEWNET = 0x40000000
_WAIT_S = 20


class Netns:
    """`run` calls a function, and `call` a command, in a namespace of its own with loopback up."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self.tid = self._thread.submit(self._leave).result(_WAIT_S)
        self.call("ip", "link", "set", "lo", "up")

    @staticmethod
    def _leave() -> int:
        if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        return threading.get_native_id()

    def run(self, function: Callable[..., _T], *args: Any) -> _T:
        return self._thread.submit(function, *args).result(_WAIT_S)

    def call(self, *command: str, text: str | None = None) -> str:
        done = self.run(lambda: subprocess.run(command, input=text, capture_output=True, text=True, timeout=_WAIT_S, check=False))
        if done.returncode:
            raise OSError(f"{' '.join(command)}: {done.stderr}")
        return done.stdout

    def ip(self, batch: str) -> None:
        self.call("ip", "-batch", "-", text=batch)

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> socket.socket:
        sock = self.run(socket.socket, family, kind, protocol)
        sock.settimeout(_WAIT_S)
        return sock

    def listen(self, address: str, port: int) -> socket.socket:
        sock = self.socket()
        sock.bind((address, port))
        sock.listen()
        return sock

    def close(self) -> None:
        self._thread.shutdown()


@pytest.fixture
def make_netns() -> Iterator[Callable[[], Netns]]:
    if os.geteuid() != 0:
        pytest.skip("assumptions: needs root (network namespaces, NET_ADMIN)")
    for tool in ("ip", "nft", "iptables-restore"):
        if shutil.which(tool) is None:
            pytest.skip(f"assumptions: this machine lacks {tool}")
    made: list[Netns] = []

    def make() -> Netns:
        made.append(Netns())
        return made[-1]

    yield make
    for netns in made:
        netns.close()


@pytest.fixture
def netns(make_netns: Callable[[], Netns]) -> Netns:
    return make_netns()

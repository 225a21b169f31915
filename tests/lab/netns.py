"""Network namespaces with threads of this process inside, and what listens at the edge of one.

Theory of operation: setns(2) moves a thread, and a socket stays where it was made. So a test makes its sockets in a thread
that has entered the namespace, and uses them wherever it likes.

Limits: needs root and ip(8); a namespace has a name under /run/netns, which a test that was killed leaves behind.
"""

from __future__ import annotations

import ctypes
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from ipaddress import ip_address, ip_network
from typing import Any, TypeVar

WAIT_S = 20
_T = TypeVar("_T")
_CLONE_NEWNET = 0x40000000


def enter(path: str) -> None:
    """The calling thread goes there; sockets that it makes stay there (setns(2))."""
    with open(path) as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")


class Netns:
    """A named network namespace with threads inside; `run` and `submit` call a function there."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = f"/run/netns/{name}"
        subprocess.run(["ip", "netns", "add", name], check=True, timeout=WAIT_S)
        self.threads = ThreadPoolExecutor(1500, thread_name_prefix=name, initializer=enter, initargs=(self.path,))

    def submit(self, function: Callable[..., _T], *args: Any) -> Future[_T]:
        return self.threads.submit(function, *args)

    def run(self, function: Callable[..., _T], *args: Any, timeout_s: float = 30) -> _T:
        return self.threads.submit(function, *args).result(timeout_s)

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> socket.socket:
        sock = self.run(socket.socket, family, kind, protocol)
        if not kind & socket.SOCK_NONBLOCK:
            sock.settimeout(WAIT_S)
        return sock

    def listen(self, address: str, port: int) -> socket.socket:
        sock = self.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address, port))
        sock.listen(4096)
        return sock

    def connect(self, address: str, port: int) -> socket.socket:
        sock = self.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        try:
            sock.connect((address, port))
        except BaseException:
            sock.close()
            raise
        return sock

    def udp(self, address: str) -> socket.socket:
        return self.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)

    def ip(self, batch: str) -> None:
        subprocess.run(["ip", "-n", self.name, "-batch", "-"], input=batch, text=True, check=True, timeout=WAIT_S)

    def call(self, *command: str) -> str:
        done = subprocess.run(["ip", "netns", "exec", self.name, *command], capture_output=True, text=True, timeout=WAIT_S, check=True)
        return done.stdout

    def close(self) -> None:
        self.threads.shutdown(wait=False, cancel_futures=True)
        subprocess.run(["ip", "netns", "del", self.name], timeout=WAIT_S, check=False)


class Sentinel:
    """Hears every packet that comes in by a device; `own` are the networks that it may be for, the device's IPv4 one first."""

    def __init__(self, netns: Netns, own: Sequence[str], device: str = "eth0") -> None:
        self._own = [ip_network(text) for text in own]
        self._sock = netns.run(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self._sock.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
        self._sock.bind((device, 0))
        self._sock.setblocking(False)

    def settle(self) -> None:
        """Wait for what is under way: a packet crosses a veth at once, repetitions of a SYN and neighbour look-ups take 1 s."""
        threading.Event().wait(1.1)

    def strays(self) -> list[str]:
        """Packets since the last call that were for none of the own networks."""
        found = []
        while True:
            try:
                frame, (_, ethertype, pkttype, *_) = self._sock.recvfrom(2048)
            except BlockingIOError:
                return found
            if pkttype == socket.PACKET_OUTGOING:
                continue
            if ethertype == 0x0800:
                source, destination, protocol = ip_address(frame[26:30]), ip_address(frame[30:34]), frame[23]
            elif ethertype == 0x86DD:
                source, destination, protocol = ip_address(frame[22:38]), ip_address(frame[38:54]), frame[20]
            elif ethertype == 0x0806 and frame[20:22] == b"\0\1" and ip_address(frame[38:42]) not in self._own[0]:
                found.append(f"arp who-has {ip_address(frame[38:42])}")
                continue
            else:
                continue
            if not any(destination in network for network in self._own if network.version == destination.version):
                found.append(f"{source} -> {destination} protocol {protocol}")

    def close(self) -> None:
        self._sock.close()

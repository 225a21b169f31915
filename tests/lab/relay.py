"""What may stand between mbridge and a server: a relay that counts and that ends idle connections, and an HTTP proxy.

Each is a listener on loopback with a thread for every connection; `with` ends it. Limits: plain TCP, IPv4.
"""

from __future__ import annotations

import contextlib
import re
import selectors
import socket
import threading
from dataclasses import dataclass, field
from typing import Self

_REQUEST = re.compile(rb"(?:GET|POST|PUT|PATCH|DELETE) \S+ HTTP/1\.1\r\n")


@dataclass
class Relay:
    """Passes all on to `server`. `connections` ever made, `idle_ended` by us after `idle_s` without a byte, `through` bytes passed,
    `requests` the HTTP request lines that were seen (where it is not TLS); those whose path contains `refused` get a 400 of ours."""

    server: tuple[str, int]
    idle_s: float | None = None
    refused: str = "\0"
    connections: int = 0
    idle_ended: int = 0
    through: int = 0
    requests: list[str] = field(default_factory=list)
    _listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0), backlog=256))

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # closed: the test is over
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._one, args=(client,), daemon=True).start()

    def _one(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection(self.server, 5) as server:
            self._join(client, server)

    def _join(self, client: socket.socket, server: socket.socket) -> None:
        for sock in (client, server):
            sock.settimeout(None)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        other = {client: server, server: client}
        with selectors.DefaultSelector() as ready:
            for sock in other:
                ready.register(sock, selectors.EVENT_READ)
            while events := ready.select(self.idle_s):
                for key, _ in events:
                    assert isinstance(key.fileobj, socket.socket)
                    data = key.fileobj.recv(65536)
                    if not data:
                        return
                    self.through += len(data)
                    if key.fileobj is client:
                        paths = [line.decode().split()[1] for line in _REQUEST.findall(data)]
                        self.requests += paths
                        if any(self.refused in path for path in paths):
                            client.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                            return
                    other[key.fileobj].sendall(data)
        self.idle_ended += 1


@dataclass
class HttpProxy(Relay):
    """Knows CONNECT. `names` are hosts that it alone can resolve; `answer` what it says to each; `asked` the heads of what it was asked."""

    server: tuple[str, int] = ("", 0)
    names: dict[str, str] = field(default_factory=dict)
    answer: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n"
    asked: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def _one(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                if not (piece := client.recv(4096)):
                    return
                head += piece
            self.asked.append(head.decode())
            host, _, port = head.split()[1].decode().rpartition(":")
            client.sendall(self.answer)
            if self.answer.split()[1] == b"200":
                with socket.create_connection((self.names.get(host, host), int(port)), 5) as server:
                    self._join(client, server)

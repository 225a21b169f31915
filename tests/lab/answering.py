"""Servers in a network namespace that say which place answered; each returns what ends it.

    TCP   "PLACE PEER" and a newline as a connection opens, then an echo
    UDP   "PLACE PEER" to a datagram `who`, an echo to any other
    DNS   an A record of the names given, over UDP and TCP; NXDOMAIN for all else

Limits: one DNS question over TCP at a time.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

from tests.lab.netns import Netns

_DNS_PORT = 53


def tcp(netns: Netns, address: str, port: int, place: str) -> Callable[[], None]:
    def talk(sock: socket.socket, peer: tuple[Any, ...]) -> None:
        with sock, contextlib.suppress(OSError):
            sock.settimeout(60)
            sock.sendall(f"{place} {peer[0]}\n".encode())
            while data := sock.recv(65536):
                sock.sendall(data)

    return _accepting(netns, address, port, lambda *one: threading.Thread(target=talk, args=one, daemon=True).start())


def udp(netns: Netns, address: str, port: int, place: str) -> Callable[[], None]:
    def answer(data: bytes, peer: tuple[Any, ...]) -> bytes:
        return f"{place} {peer[0]}".encode() if data == b"who" else data

    return _receiving(netns, address, port, answer)


def dns(netns: Netns, address: str, names: dict[str, str]) -> Callable[[], None]:
    def talk(sock: socket.socket, peer: tuple[Any, ...]) -> None:
        with sock, contextlib.suppress(OSError):
            sock.settimeout(5)
            size = int.from_bytes(sock.recv(2, socket.MSG_WAITALL), "big")
            answer = _record(sock.recv(size, socket.MSG_WAITALL), names)
            sock.sendall(len(answer).to_bytes(2, "big") + answer)

    over_tcp = _accepting(netns, address, _DNS_PORT, talk)
    over_udp = _receiving(netns, address, _DNS_PORT, lambda query, peer: _record(query, names))

    def end() -> None:
        over_udp()
        over_tcp()

    return end


def _accepting(netns: Netns, address: str, port: int, talk: Callable[[socket.socket, tuple[Any, ...]], None]) -> Callable[[], None]:
    listener = netns.listen(address, port)
    listener.settimeout(None)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                talk(*listener.accept())

    return _in_background(serve, listener)


def _receiving(netns: Netns, address: str, port: int, answer: Callable[[bytes, tuple[Any, ...]], bytes]) -> Callable[[], None]:
    sock = netns.udp(address)
    sock.settimeout(None)
    sock.bind((address, port))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                data, peer = sock.recvfrom(65535)
                if peer is None:  # shut down
                    return
                sock.sendto(answer(data, peer), peer)

    return _in_background(serve, sock)


def _in_background(serve: Callable[[], None], sock: socket.socket) -> Callable[[], None]:
    threading.Thread(target=serve, daemon=True).start()

    def end() -> None:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)  # wakes the thread
        sock.close()

    return end


def _record(query: bytes, names: dict[str, str]) -> bytes:
    """One A record, or NXDOMAIN; no record for other types (RFC 1035 4.1)."""
    at, labels = 12, []
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode())
        at += 1 + query[at]
    question, kind = query[12 : at + 5], query[at + 1 : at + 3]
    address = names.get(".".join(labels).lower())
    if address is None:
        return query[:2] + struct.pack("!HHHHH", 0x8583, 1, 0, 0, 0) + question
    records = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 30, 4) + socket.inet_aton(address) if kind == b"\0\1" else b""
    return query[:2] + struct.pack("!HHHHH", 0x8580, 1, 1 if records else 0, 0, 0) + question + records

"""The lab's server: one process that answers in every way a test needs, and remembers how each connection ended.

    python3 server.py [--dns ADDRESS] [--only PORT…]

It runs in the target's neighbour (`server`), and once more in the target itself, where it also serves loopback. Ports:

    7001 tcp+udp  echo                       7006 tcp  sink: keeps count, notes EOF or RST under the first line's key
    7002 tcp+udp  who: JSON of both ends     7007 tcp  both: "KEY N\\n", then N bytes each way at once, then a SHA-256
    7003 tcp      digest after the app's end 7008 tcp  nobody answers (packets are dropped by the container's filter)
    7004 tcp      server ends first          7010 tcp  HTTP: who, as JSON
    7005 tcp      resets after one byte      7011 tcp  slow: one byte each 10 ms
    7000 tcp      HTTP: /events is what has been noted so far, /dns?name= how often a name was asked for
    7012 udp      answers 7 datagrams to one   53      DNS of the zone lab.test (zone.py)

Limits: for tests; one event loop, nothing is bounded.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import socket
import struct
from typing import Any

import zone

EVENTS: list[dict[str, Any]] = []
BLOCK = bytes(range(256)) * 256


def note(**event: Any) -> None:
    EVENTS.append(event)


def stream(length: int) -> Any:
    """Blocks of the pattern that both sides know; a lost or repeated block changes the digest."""
    number = 0
    while length > 0:
        block = struct.pack("!Q", number) + BLOCK
        yield block[:length]
        length -= len(block[:length])
        number += 1


def ends_of(writer: asyncio.StreamWriter) -> dict[str, Any]:
    peer, own = writer.get_extra_info("peername"), writer.get_extra_info("sockname")
    return {"peer": peer[0], "peer_port": peer[1], "own": own[0], "host": socket.gethostname()}


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


async def who(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(json.dumps(ends_of(writer)).encode() + b"\n")
    await writer.drain()


async def digest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    seen, length = hashlib.sha256(), 0
    while data := await reader.read(65536):
        seen.update(data)
        length += len(data)
    writer.write(f"{length} {seen.hexdigest()}\n".encode())
    await writer.drain()


async def ends_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"all I have to say\n")
    writer.write_eof()
    said = await reader.read(-1)
    note(port=7004, said=said.decode(errors="replace"))


async def resets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def sink(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    key = (await reader.readline()).decode().strip()
    writer.write(b"ready\n")
    length = 0
    try:
        while data := await reader.read(65536):
            length += len(data)
    except ConnectionResetError:
        note(port=7006, key=key, end="reset", length=length)
    else:
        note(port=7006, key=key, end="eof", length=length)


async def both(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    key, length = (await reader.readline()).decode().split()

    async def send() -> None:
        for block in stream(int(length)):
            writer.write(block)
            await writer.drain()

    sending = asyncio.ensure_future(send())
    seen, left = hashlib.sha256(), int(length)
    while left:
        data = await reader.read(min(left, 1 << 20))
        if not data:
            note(port=7007, key=key, end="early", left=left)
            return
        seen.update(data)
        left -= len(data)
    await sending
    writer.write(seen.hexdigest().encode() + b"\n")
    await writer.drain()


async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    request = (await reader.readuntil(b"\r\n\r\n")).decode(errors="replace")
    path = request.split(" ")[1]
    body: Any = {"path": path, **ends_of(writer)}
    if path == "/events":
        body = EVENTS
    elif path.startswith("/dns"):
        body = zone.ASKED.get(path.partition("name=")[2], 0)
    data = json.dumps(body).encode() + b"\n"
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
    await writer.drain()


async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    for _ in range(200):
        writer.write(b".")
        await writer.drain()
        await asyncio.sleep(0.01)


TCP = {7000: http, 7001: echo, 7002: who, 7003: digest, 7004: ends_first, 7005: resets, 7006: sink, 7007: both,
       7008: echo, 7010: http, 7011: slow}  # fmt: skip


class Datagrams(asyncio.DatagramProtocol):
    def __init__(self, port: int) -> None:
        self._port = port

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        peer = addr[0]
        match self._port:
            case 7001:
                self._transport.sendto(data, addr)
            case 7002:
                answer = {"peer": peer, "peer_port": addr[1], "host": socket.gethostname(), "length": len(data)}
                self._transport.sendto(json.dumps(answer).encode(), addr)
            case 7012:
                for number in range(7):
                    self._transport.sendto(b"%d" % number, addr)


def served(handler: Any) -> Any:
    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await handler(reader, writer)
        finally:
            with contextlib.suppress(Exception):
                writer.close()

    return run


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dns", help="serve DNS, and say that this is the zone's address")
    parser.add_argument("--dns6", default="")
    parser.add_argument("--loopback", action="store_true", help="one echo more, on 127.0.0.1:7020 alone")
    options = parser.parse_args()
    loop = asyncio.get_running_loop()
    for port, handler in TCP.items():
        await asyncio.start_server(served(handler), ["0.0.0.0", "::"], port, backlog=4096)
    for port in (7001, 7002, 7012):
        for address in ("0.0.0.0", "::"):
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            sock = socket.socket(family, socket.SOCK_DGRAM)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setblocking(False)
            sock.bind((address, port))
            await loop.create_datagram_endpoint(lambda port=port: Datagrams(port), sock=sock)
    if options.loopback:
        await asyncio.start_server(served(who), "127.0.0.1", 7020)
        await asyncio.start_server(served(echo), "127.0.0.1", 7021)
    if options.dns:
        await zone.serve(options.dns, options.dns6)
    print("ready", os.getpid(), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())

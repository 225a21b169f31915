"""A long way between the host and the agent, made in user space: a TCP relay that holds every byte for half a round trip.

    python3 slow_relay.py PORT ROUND_TRIP_MS MARK

Theory of operation: a nat rule of the host redirects connections here; SO_ORIGINAL_DST tells where they were going, and MARK on
the relay's own connections keeps them from coming back. What is read at t is written at t + half the round trip, and at most
WINDOW bytes may be unacknowledged: bytes count until a whole round trip after they were read, just as a TCP window does over
such a way. So one connection carries WINDOW per round trip (300 MB/s at 20 ms, 75 MB/s at 80 ms), raw TCP and mbridge alike.

Limits: the sockets' own buffers are kept small, because a real way has none beside its window; no loss, no jitter.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections import deque

WINDOW = 6 << 20  # Linux' default bound of a receive window, tcp_rmem (tcp(7))
_READ = 256 << 10
_SO_ORIGINAL_DST, _SO_MARK = 80, 36
_SMALL = 256 << 10


class Way:
    """One direction of one connection."""

    def __init__(self, loop, source, sink, delay_s):
        self.loop, self.source, self.sink, self.delay_s = loop, source, sink, delay_s
        self.queue, self.under_way = deque(), deque()  # (due, bytes), (acknowledged at, size)
        self.flying = 0
        self.room, self.something = asyncio.Event(), asyncio.Event()

    async def read(self):
        while True:
            while self.flying >= WINDOW:
                self.room.clear()
                await self.room.wait()
            try:
                data = await self.loop.sock_recv(self.source, _READ)
            except OSError:
                data = b""
            now = self.loop.time()
            self.queue.append((now + self.delay_s, data))
            self.something.set()
            if not data:
                return
            self.flying += len(data)
            self.under_way.append((now + 2 * self.delay_s, len(data)))
            if len(self.under_way) == 1:
                self.loop.call_at(self.under_way[0][0], self.acknowledge)

    def acknowledge(self):
        now = self.loop.time() + 0.0005
        while self.under_way and self.under_way[0][0] <= now:
            self.flying -= self.under_way.popleft()[1]
        if self.under_way:
            self.loop.call_at(self.under_way[0][0], self.acknowledge)
        self.room.set()

    async def write(self):
        while True:
            while not self.queue:
                self.something.clear()
                await self.something.wait()
            due, data = self.queue.popleft()
            wait_s = due - self.loop.time()
            if wait_s > 0.0005:
                await asyncio.sleep(wait_s)
            if not data:
                self.sink.shutdown(socket.SHUT_WR)
                return
            await self.loop.sock_sendall(self.sink, data)


async def serve(port, delay_s, mark):
    loop = asyncio.get_running_loop()
    listener = socket.create_server(("0.0.0.0", port), backlog=64)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL)
    listener.setblocking(False)
    print("ready", flush=True)
    async with asyncio.TaskGroup() as group:
        while True:
            source, _ = await loop.sock_accept(listener)
            group.create_task(relay(loop, source, delay_s, mark), name="connection")


async def relay(loop, source, delay_s, mark):
    raw = source.getsockopt(socket.SOL_IP, _SO_ORIGINAL_DST, 16)
    with source, socket.socket() as sink:
        sink.setsockopt(socket.SOL_SOCKET, _SO_MARK, mark)
        for sock in (source, sink):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SMALL)
        sink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL)
        try:
            await loop.sock_connect(sink, (socket.inet_ntoa(raw[4:8]), int.from_bytes(raw[2:4], "big")))
            ways = (Way(loop, source, sink, delay_s), Way(loop, sink, source, delay_s))
            await asyncio.gather(*(one for way in ways for one in (way.read(), way.write())))
        except OSError:
            pass


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), float(sys.argv[2]) / 2000, int(sys.argv[3])))

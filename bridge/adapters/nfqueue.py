"""The queue in which the kernel holds the first SYN of a flow: a netlink socket and its verdicts.

Theory of operation: the socket binds to a queue of the session's netns; each held SYN is handed to `on_syn`, and every one
gets exactly one verdict later. A refusal is a mark on the packet: a filter chain behind the queue turns the mark into a TCP
reset or an ICMP error, which `connect()` reports as its errno. With no reader the kernel drops SYNs: it fails closed.

Source: facts in docs/design/001-spine.md; linux/netfilter/nfnetlink_queue.h.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Callable

from bridge.errors import KernelLacks
from bridge.protocol import nfqueue as wire

log = logging.getLogger(__name__)

MARK_REFUSE, MARK_HOST_UNREACHABLE, MARK_NET_UNREACHABLE = 0x6D620001, 0x6D620002, 0x6D620003

_NETLINK_NETFILTER = 12
_RECEIVE_BUFFER_BYTES = 8 << 20
_SO_RCVBUFFORCE = 33  # socket(7): past rmem_max, with CAP_NET_ADMIN
_MAX_HELD = 16384  # SYNs held at once; the kernel drops further ones, and the app's kernel sends them again

_MARKS = {
    "ECONNREFUSED": MARK_REFUSE,
    "EHOSTUNREACH": MARK_HOST_UNREACHABLE,
    "ENETUNREACH": MARK_NET_UNREACHABLE,
    "EACCES": MARK_HOST_UNREACHABLE,
    "EPERM": MARK_HOST_UNREACHABLE,
}


class SynQueue:
    """Holds SYNs, from `open()` on. From `start()` on `on_syn` gets each of them; `accept`, `refuse` or `drop` ends the hold."""

    def __init__(self, queue: int, on_syn: Callable[[wire.HeldSyn], None]) -> None:
        self.queue = queue
        self._on_syn = on_syn
        self._socket: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def open(self) -> None:
        """Bind to the queue: the kernel holds what comes, and nobody is told yet. KernelLacks where there is none."""
        try:
            sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        except OSError as exc:
            raise KernelLacks("the kernel has no nfnetlink", hint="module nfnetlink_queue") from exc
        try:
            sock.bind((0, 0))
            sock.send(wire.bind_request(self.queue, _MAX_HELD))
            sock.settimeout(1)
            for _ in range(3):
                for message in wire.parse(sock.recv(65536)):
                    if isinstance(message, wire.QueueError):
                        raise KernelLacks(f"the kernel has no packet queue: {os.strerror(message.errno)}", hint="module nfnetlink_queue")
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER_BYTES)
        except OSError as exc:
            sock.close()
            raise KernelLacks(f"the kernel's packet queue does not answer: {exc}", hint="module nfnetlink_queue") from exc
        except KernelLacks:
            sock.close()
            raise
        sock.setblocking(False)
        self._socket = sock
        self._loop = asyncio.get_running_loop()

    def start(self) -> None:
        assert self._socket is not None, "after open()"
        assert self._loop is not None
        self._loop.add_reader(self._socket.fileno(), self._read)

    def close(self) -> None:
        if self._socket is not None and self._loop is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def accept(self, packet_id: int) -> None:
        """The SYN goes on to the listener."""
        self._send(wire.verdict(self.queue, packet_id, wire.NF_ACCEPT))

    def refuse(self, packet_id: int, errno_name: str) -> None:
        """`connect()` fails with this errno; one without an ICMP error of its own is dropped (the app's own timeout)."""
        mark = _MARKS.get(errno_name)
        if mark is None:
            self.drop(packet_id)
        else:
            self._send(wire.verdict(self.queue, packet_id, wire.NF_ACCEPT, mark))

    def drop(self, packet_id: int) -> None:
        self._send(wire.verdict(self.queue, packet_id, wire.NF_DROP))

    def _send(self, message: bytes) -> None:
        if self._socket is None:
            return
        try:
            self._socket.send(message)
        except OSError as exc:  # ENOENT: the packet is gone with its netns; ENOBUFS: the kernel sends the SYN again
            log.debug("! verdict not taken: %s", exc)

    def _watch_again(self) -> None:
        """uvloop watches no more what had an error (libuv, uv__poll_io)."""
        if self._socket is not None and self._loop is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._loop.add_reader(self._socket.fileno(), self._read)

    def _read(self) -> None:
        """One packet, for there is rarely another: asking once more costs more than a turn of the loop where there is."""
        assert self._socket is not None
        try:
            data = self._socket.recv(65536)
        except BlockingIOError:
            return
        except OSError as exc:
            if exc.errno == errno.ENOBUFS:  # more SYNs than the socket holds: the kernel dropped some, they come again
                log.warning("the packet queue overflowed; some connections start a second later")
                assert self._loop is not None
                self._loop.call_soon(self._watch_again)
                return
            raise
        for message in wire.parse(data):
            if isinstance(message, wire.HeldSyn):
                self._on_syn(message)
            elif isinstance(message, int):
                self.drop(message)
            elif message.errno != errno.ENOENT:
                log.debug("! packet queue: %s", os.strerror(message.errno))

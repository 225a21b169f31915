"""A SYN in a packet queue is held: connect() says what the verdict says, and the kernel does not send it again meanwhile."""

from __future__ import annotations

import errno
import select
import socket
import struct

import pytest

from bridge.adapters.nfqueue import MARK_HOST_UNREACHABLE, MARK_NET_UNREACHABLE, MARK_REFUSE
from bridge.protocol import nfqueue as wire

QUEUE = 7


@pytest.fixture
def queue(netns):
    netns.call(
        "iptables-restore", text=f"*mangle\n-A OUTPUT -p tcp --dport 80 --syn -m mark --mark 0 -j NFQUEUE --queue-num {QUEUE}\nCOMMIT\n"
    )
    netns.call(
        "nft",
        "-f",
        "-",
        text=f"""table inet t {{
  chain refuse {{
    type filter hook output priority -120;
    meta mark {MARK_REFUSE:#x} meta l4proto tcp reject with tcp reset
    meta mark {MARK_HOST_UNREACHABLE:#x} reject with icmpx type host-unreachable
    meta mark {MARK_NET_UNREACHABLE:#x} reject with icmpx type no-route
  }}
}}
""",
    )
    with netns.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as sock:
        sock.bind((0, 0))
        sock.send(wire.bind_request(QUEUE, 100))
        for _ in range(3):
            assert wire.parse(sock.recv(4096)) == []
        yield sock


def _connecting(netns) -> socket.socket:
    app = netns.socket()
    app.setblocking(False)
    assert app.connect_ex(("127.0.0.1", 80)) == errno.EINPROGRESS
    return app


def _held(queue: socket.socket) -> wire.HeldSyn:
    (syn,) = wire.parse(queue.recv(65536))
    assert isinstance(syn, wire.HeldSyn)
    return syn


def _outcome(app: socket.socket) -> int:
    assert select.select([], [app], [], 10)[1]
    return app.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def test_accepted_is_connected(netns, queue) -> None:
    with netns.listen("127.0.0.1", 80), _connecting(netns) as app:
        syn = _held(queue)
        assert (syn.app_addr, syn.app_port, syn.address, syn.port) == (*app.getsockname(), "127.0.0.1", 80)
        queue.send(wire.verdict(QUEUE, syn.packet_id, wire.NF_ACCEPT))
        assert _outcome(app) == 0


@pytest.mark.parametrize(
    ("mark", "expected"),
    [(MARK_REFUSE, errno.ECONNREFUSED), (MARK_HOST_UNREACHABLE, errno.EHOSTUNREACH), (MARK_NET_UNREACHABLE, errno.ENETUNREACH)],
)
def test_a_mark_is_an_errno(netns, queue, mark: int, expected: int) -> None:
    with netns.listen("127.0.0.1", 80), _connecting(netns) as app:
        queue.send(wire.verdict(QUEUE, _held(queue).packet_id, wire.NF_ACCEPT, mark))
        assert _outcome(app) == expected


def test_one_syn_is_queued_however_long_it_is_held(netns, queue) -> None:
    with netns.listen("127.0.0.1", 80), _connecting(netns) as app:
        syn = _held(queue)
        queue.settimeout(1.5)  # the kernel's own repetition would come after 1 s
        with pytest.raises(TimeoutError):
            queue.recv(65536)
        queue.send(wire.verdict(QUEUE, syn.packet_id, wire.NF_ACCEPT))
        assert _outcome(app) == 0


def test_without_a_reader_a_syn_is_dropped(netns, queue) -> None:
    queue.close()
    with netns.listen("127.0.0.1", 80), netns.socket() as app:
        app.setsockopt(socket.IPPROTO_TCP, 18, struct.pack("i", 300))  # TCP_USER_TIMEOUT, ms
        app.settimeout(0.5)
        with pytest.raises(TimeoutError):
            app.connect(("127.0.0.1", 80))

"""TCP of the app, through the real wiring: what connect() says, who answers, and how flows end."""

from __future__ import annotations

import errno
import hashlib
import os
import select
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.lab.netns import enter

LINKS = ("fake", "real", "handed")
RESET = struct.pack("ii", 1, 0)


@pytest.mark.parametrize(
    ("address", "answer"),
    [("10.77.0.9", b"cluster 10.77.0.3\n"), ("10.78.0.1", b"cluster 10.77.0.3\n"), ("fd77::9", b"cluster fd77::3\n")],
)
def test_A01_A02_a_flow_goes_to_the_target_network_and_is_seen_as_the_target(world, address: str, answer: bytes) -> None:
    with world.ses.connect(address, 7000) as app:
        assert app.recv(100) == answer
        assert app.getpeername()[:2] == (address, 7000)
        assert app.getsockname()[0] == ("fd77::3" if ":" in address else "10.77.0.3")


def test_A01_the_twin_shows_that_the_same_address_is_somebody_else_on_the_developers_side(world) -> None:
    with world.dev.connect("10.77.0.9", 7000) as twin:
        assert twin.recv(100).startswith(b"dev ")


def test_A01_by_name_with_the_search_list_of_the_target(world) -> None:
    code = "import socket; s = socket.create_connection(('db', 7000), 10); print(s.recv(100).decode(), end='')"
    assert world.python(code).stdout == "cluster 10.77.0.3\n"


def test_A01_curl_speaks_through_it(world) -> None:
    with world.clu.listen("10.77.0.9", 8080) as listener:

        def answer() -> bytes:
            sock, _ = listener.accept()
            with sock:
                request = sock.recv(4096)
                sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
                return request

        request = world.clu.submit(answer)
        done = world.app_run("curl", "-sS", "--max-time", "10", "http://db.shop.svc:8080/path")
        assert (done.stdout, done.stderr) == ("hello", "")
        assert request.result(10).startswith(b"GET /path HTTP/1.1\r\nHost: db.shop.svc:8080\r\n")


@pytest.mark.parametrize("address", ["10.77.0.9", "fd77::9"])
def test_A03_a_refusal_is_connection_refused_at_once(world, address: str) -> None:
    world.ses.run(_errno_of_connect, address, 1)  # the first one warms caches
    started = time.monotonic()
    assert world.ses.run(_errno_of_connect, address, 1) == errno.ECONNREFUSED
    assert time.monotonic() - started < 0.05


def test_A04_no_route_is_what_the_target_would_get(world) -> None:
    for address in ("10.79.0.5", "203.0.113.5"):
        expected = world.tgt.run(_errno_of_connect, address, 80)
        assert expected in (errno.EHOSTUNREACH, errno.ENETUNREACH)
        assert world.ses.run(_errno_of_connect, address, 80) == expected


def test_A05_a_silent_address_is_the_apps_own_timeout(world) -> None:
    def connect() -> tuple[int, float]:
        with socket.socket() as app:
            app.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, 1)  # one repetition: 1 s + 2 s
            started = time.monotonic()
            return app.connect_ex(("10.77.0.66", 80)), time.monotonic() - started

    code, took = world.ses.run(connect)
    assert code == errno.ETIMEDOUT
    assert 2.5 < took < 4


def test_A05_a_connect_that_does_not_block_and_poll_behave_the_same(world) -> None:
    def states(address: str, port: int, wait_s: float) -> tuple[int, bool, int]:
        with socket.socket() as app:
            app.setblocking(False)
            first = app.connect_ex((address, port))
            writable = bool(select.select([], [app], [], wait_s)[1])
            return first, writable, app.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    assert world.ses.run(states, "10.77.0.66", 80, 0.5) == (errno.EINPROGRESS, False, 0)
    assert world.ses.run(states, "10.77.0.9", 7000, 5) == (errno.EINPROGRESS, True, 0)
    assert world.ses.run(states, "10.77.0.9", 1, 5)[1:] == (True, errno.ECONNREFUSED)


def test_A06_half_close_each_way_lets_the_rest_arrive(world) -> None:
    with world.ses.connect("10.77.0.9", 7000) as app:
        assert app.recv(100)
        app.sendall(b"x" * 300_000)
        app.shutdown(socket.SHUT_WR)
        assert len(_read_all(app)) == 300_000
    with world.clu.listen("10.77.0.9", 7001) as listener, world.ses.connect("10.77.0.9", 7001) as app:
        server, _ = listener.accept()
        with server:
            server.settimeout(10)
            server.sendall(b"all I say")
            server.shutdown(socket.SHUT_WR)
            assert _read_all(app) == b"all I say"
            app.sendall(b"but I go on")
            app.shutdown(socket.SHUT_WR)
            assert _read_all(server) == b"but I go on"


def test_A07_a_reset_of_either_side_is_a_reset_at_the_other(world) -> None:
    with world.clu.listen("10.77.0.9", 7002) as listener:
        for resets_first in ("app", "server"):
            app = world.ses.connect("10.77.0.9", 7002)
            server, _ = listener.accept()
            server.settimeout(10)
            app.sendall(b"hi")
            assert server.recv(10) == b"hi"
            one, other = (app, server) if resets_first == "app" else (server, app)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            one.close()
            with pytest.raises(ConnectionResetError):
                other.recv(10)
            other.close()


def test_A08_bytes_are_the_same_both_ways_at_once(world) -> None:
    size = 30 << 20
    block = os.urandom(1 << 20)
    with world.ses.connect("10.77.0.9", 7000) as app:
        assert app.recv(100) == b"cluster 10.77.0.3\n"

        def send() -> str:
            digest = hashlib.sha256()
            for number in range(size >> 20):
                piece = number.to_bytes(4, "big") + block[4:]
                digest.update(piece)
                app.sendall(piece)
            app.shutdown(socket.SHUT_WR)
            return digest.hexdigest()

        sent = world.ses.submit(send)
        digest, got = hashlib.sha256(), 0
        while data := app.recv(1 << 20):
            digest.update(data)
            got += len(data)
        assert got == size
        assert digest.hexdigest() == sent.result(30)


def test_A10_source_ports_are_used_again_without_a_failure(world) -> None:
    def connect(number: int) -> bytes:
        with socket.socket() as app:
            app.settimeout(10)
            app.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            app.bind(("10.77.0.3", 30000 + number % 20))
            app.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)  # no TIME_WAIT: the port is free again at once
            app.connect(("10.77.0.9" if number % 3 else "10.78.0.1", 7000))
            return app.recv(100)

    def many() -> set[bytes]:
        return {connect(number) for number in range(1000)}

    assert world.ses.run(many, timeout_s=60) == {b"cluster 10.77.0.3\n"}


def test_A11_a_thousand_flows_are_open_at_once_and_each_answers(world) -> None:
    def open_many() -> list[socket.socket]:
        with ThreadPoolExecutor(50, initializer=enter, initargs=(world.ses.path,)) as pool:
            return list(pool.map(lambda _: world.ses.connect("10.77.0.9", 7000), range(1000)))

    apps = open_many()
    try:
        for number, app in enumerate(apps):
            assert app.recv(100) == b"cluster 10.77.0.3\n"
            app.sendall(b"%d" % number)
        assert [int(app.recv(10)) for app in apps] == list(range(1000))
    finally:
        for app in apps:
            app.close()


def test_A12_whoever_speaks_first_or_nobody(world) -> None:
    with world.clu.listen("10.77.0.9", 7003) as listener:
        with world.ses.connect("10.77.0.9", 7003) as app:
            server, _ = listener.accept()
            server.sendall(b"220 hello")
            assert app.recv(100) == b"220 hello"
            server.close()
        with world.ses.connect("10.77.0.9", 7003) as app:
            server, _ = listener.accept()
            server.settimeout(10)
            app.sendall(b"GET /")
            assert server.recv(100) == b"GET /"
            server.close()
        with world.ses.connect("10.77.0.9", 7003) as app:
            server, _ = listener.accept()
            server.settimeout(10)
            app.shutdown(socket.SHUT_WR)
            assert server.recv(100) == b""
            server.close()
            assert app.recv(100) == b""


def test_A13_an_urgent_byte_and_a_peek_do_no_harm(world) -> None:
    with world.ses.connect("10.77.0.9", 7000) as app:
        assert app.recv(4, socket.MSG_PEEK) == b"clus"
        assert app.recv(100) == b"cluster 10.77.0.3\n"
        app.sendall(b"before")
        assert app.recv(100) == b"before"
        app.send(b"!", socket.MSG_OOB)
        app.sendall(b"after")
        assert app.recv(100) == b"after"


def test_A23_the_app_reaches_its_own_listeners(world) -> None:
    for address in ("127.0.0.1", "172.30.0.2", "10.77.0.3", "::1", "fd77::3"):
        with world.ses.listen(address, 9000) as listener, world.ses.connect(address, 9000) as app:
            own, peer = listener.accept()
            app.sendall(b"me")
            assert own.recv(10) == b"me"
            assert peer[0] == address
            own.close()


def test_A18_loopback_stays_the_apps_own(world) -> None:
    assert world.ses.run(_errno_of_connect, "127.0.0.1", 7000) == errno.ECONNREFUSED
    assert world.tgt.run(_errno_of_connect, "127.0.0.1", 7000) == 0


def test_A37_what_was_open_stays_open_while_the_host_process_dies_and_comes_back(world) -> None:
    with world.ses.connect("10.77.0.9", 7000) as app:
        assert app.recv(100)
        world.host.close()
        app.sendall(b"still")
        assert app.recv(100) == b"still"
        with world.ses.connect("10.77.0.9", 7000) as another:
            assert another.recv(100) == b"cluster 10.77.0.3\n"
        world.take_over()
        app.sendall(b"here")
        assert app.recv(100) == b"here"


def test_flows_are_counted_in_the_status(world) -> None:
    from bridge.protocol import door

    with world.ses.connect("10.77.0.9", 7000) as app:
        assert app.recv(100)
        status = world.host.until(door.Status, lambda status: status.flows >= 1)
    assert status.holder in ("nft", "iptables")
    world.host.until(door.Status, lambda status: status.flows == 0)


def test_a_flow_whose_source_port_nat_changes_is_served(world) -> None:
    """Conntrack remembers the port of a connection to the same listener, so it picks another for the second."""

    def twice() -> list[bytes]:
        answers = []
        first = socket.socket()
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        first.bind(("10.77.0.3", 25678))  # no ephemeral port: one of those may stand in TIME-WAIT, without SO_REUSEADDR
        first.connect(("10.77.0.9", 7000))
        second = socket.socket()
        second.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        second.bind(("10.77.0.3", 25678))
        second.settimeout(10)
        second.connect(("10.78.0.1", 7000))
        for app in (first, second):
            answers.append(app.recv(100))
            app.close()
        return answers

    assert world.ses.run(twice) == [b"cluster 10.77.0.3\n"] * 2


def _errno_of_connect(address: str, port: int) -> int:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as app:
        app.settimeout(20)
        return app.connect_ex((address, port))


def _read_all(sock: socket.socket) -> bytes:
    got = bytearray()
    while data := sock.recv(65536):
        got += data
    return bytes(got)

"""The bridge dies, the link is cut, the agent goes: nothing of the app's reaches the developer's network, and all comes back.

Every test here ends with the sentinel of `no_strays`: packets on the developer's side for any address that is not its own: 0.
"""

from __future__ import annotations

import errno
import socket
import threading
import time

import pytest

from bridge.protocol import door

LINKS = ("fake", "real", "handed")
EVERYWHERE = ["10.77.0.9", "10.78.0.1", "203.0.113.7", "fd77::9", "2001:db8::7"]


@pytest.fixture(autouse=True)
def a_bridge_again(world):
    yield
    if world.bridge.poll() is not None:
        world.start()


def _try_everything(world) -> None:
    """TCP, UDP, ICMP and another protocol to the cluster's addresses and beyond; DNS. No answer is expected."""
    for address in EVERYWHERE:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with world.ses.socket(family) as app:
            app.settimeout(0.05)
            with pytest.raises((TimeoutError, OSError)):
                app.connect((address, 7000))
        for kind, protocol in ((socket.SOCK_DGRAM, 0), (socket.SOCK_RAW, socket.IPPROTO_ICMP), (socket.SOCK_RAW, 132)):
            with world.ses.socket(family, kind, protocol) as app:
                try:
                    app.sendto(b"\x08\0\xf7\xff\0\0\0\0", (address, 7000 if kind == socket.SOCK_DGRAM else 0))
                except OSError:
                    continue
    with world.ses.udp("10.77.0.9") as app:
        app.sendto(b"\0\x01\x01\0\0\x01\0\0\0\0\0\0\x02db\x04shop\x03svc\0\0\x01\0\x01", ("10.77.0.9", 53))


def test_A36_a_killed_bridge_leaks_nothing(world) -> None:
    world.kill_bridge()
    _try_everything(world)
    world.sentinel.settle()
    assert world.sentinel.strays() == []


def test_A36_flows_that_were_open_when_the_bridge_was_killed_leak_nothing(world) -> None:
    app = world.ses.connect("10.77.0.9", 7000)
    assert app.recv(100)
    udp = world.ses.udp("10.77.0.9")
    udp.connect(("10.77.0.9", 7000))
    world.kill_bridge()
    udp.send(b"who")
    with pytest.raises(ConnectionResetError):  # an orderly end would be taken for a whole answer
        app.recv(100)
    app.close()
    udp.close()
    world.sentinel.settle()
    assert world.sentinel.strays() == []


def test_A36_a_new_bridge_takes_the_netns_over_while_the_app_keeps_trying(world) -> None:
    stop = threading.Event()
    answers: list[bytes] = []

    def hammer() -> None:
        while not stop.is_set():
            for address in ("10.77.0.9", "fd77::9"):
                try:
                    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as app:
                        app.settimeout(3)
                        app.connect((address, 7000))
                        answers.append(app.recv(100))
                except OSError:
                    continue
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as app:
                    try:
                        app.sendto(b"who", ("10.78.0.1", 7000))
                    except OSError:
                        continue

    hammering = [world.ses.submit(hammer) for _ in range(4)]
    for _ in range(3):
        world.kill_bridge()
        world.start()
    before = len(answers)
    deadline = time.monotonic() + 10
    while len(answers) < before + 8 and time.monotonic() < deadline:
        stop.wait(0.02)
    stop.set()
    for done in hammering:
        done.result(20)
    assert len(answers) >= before + 8
    assert set(answers) <= {b"cluster 10.77.0.3\n", b"cluster fd77::3\n", b""}
    world.sentinel.settle()
    assert world.sentinel.strays() == []


def test_A36_a_syn_that_the_dead_bridge_held_is_served_by_the_next(world) -> None:
    with world.clu.listen("10.77.0.9", 7030) as listener:
        held = world.ses.submit(world.ses.connect, "10.77.0.66", 7030)  # silent: stays held
        time.sleep(0.2)
        world.kill_bridge()
        waiting = world.ses.submit(world.ses.connect, "10.77.0.9", 7030)  # nobody reads the queue now
        world.start()
        with waiting.result(20) as app:
            server, _ = listener.accept()
            server.sendall(b"late, but here")
            assert app.recv(100) == b"late, but here"
            server.close()
        assert not held.done()
        with pytest.raises(TimeoutError):
            held.result(25)


def test_A36_a_syn_that_comes_before_the_next_bridge_has_its_table_waits_for_it(world) -> None:
    """The old table sends what is accepted to the dead bridge's port: it was refused there."""
    world.kill_bridge()
    world.slow_nft_s = 4  # the SYN is sent again after 1 s and after 3
    waiting = world.ses.submit(world.ses.connect, "10.77.0.9", 7000)
    try:
        world.start()
    finally:
        world.slow_nft_s = 0
    with waiting.result(20) as app:
        assert app.recv(100) == b"cluster 10.77.0.3\n"


def test_the_resolver_config_of_the_engine_is_kept_for_the_next_bridge(world) -> None:
    assert world.ready.engine_resolv_conf == "nameserver 172.30.0.1\n"
    world.kill_bridge()
    world.start()
    assert world.ready.engine_resolv_conf == "nameserver 172.30.0.1\n"
    assert (world.folder / "resolv.conf").read_text() == world.facts.resolv_conf


def test_A36_a_new_bridge_starts_whatever_the_app_has_made_of_its_files(world) -> None:
    hosts, resolv_conf = (world.folder / name for name in ("hosts", "resolv.conf"))
    before = hosts.read_bytes(), resolv_conf.read_bytes()
    world.kill_bridge()
    for file in (hosts, resolv_conf):  # it may be root
        with file.open("ab") as theirs:
            theirs.write(b"\xff\xfe\0 rubbish \xff\n")
    world.start()
    assert (hosts.read_bytes(), resolv_conf.read_bytes()) == before


def test_a_stopped_bridge_fails_closed_too(world) -> None:
    world.host.send(door.Stop())
    assert world.bridge.wait(10) == 0
    _try_everything(world)
    world.sentinel.settle()
    assert world.sentinel.strays() == []


def test_a_second_wiring_leaves_one_set_of_rules_and_of_names(world) -> None:
    hosts = (world.folder / "hosts").read_text()
    before = world.ses.call("ip", "rule").count("\n"), world.ses.call("ip", "-6", "rule").count("\n")
    world.kill_bridge()
    world.start()
    assert (world.ses.call("ip", "rule").count("\n"), world.ses.call("ip", "-6", "rule").count("\n")) == before
    with world.ses.socket() as app:
        assert app.connect_ex(("10.77.0.9", 1)) == errno.ECONNREFUSED
    assert (world.folder / "hosts").read_text() == hosts

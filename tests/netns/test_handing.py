"""Where bridge and agent share a folder the app's connections are the agent's: what each holds then, and what becomes of it at an end."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from bridge.protocol import door
from tests.lab.boxes import eventually

LINKS = ("handed",)
_MANY = 40
_PIDFD_GETFD = 438  # of every architecture (pidfd_getfd(2)); Python has no call for it
_libc = ctypes.CDLL(None, use_errno=True)


def _held(pid: int, namespace: int) -> int:
    """Of the connections that are open in the network namespace of process `namespace`, those that process `pid` has a descriptor of."""
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/{namespace}/net/{name}").read_text().splitlines()]
    open_here = {f"socket:[{words[9]}]" for words in lines if words[3] == "01"}  # proc(5): state, inode
    held = 0
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed since
            held += os.readlink(path) in open_here
    return held


def test_the_bridge_holds_none_of_the_apps_connections_and_the_agent_has_both_ends_of_each(world) -> None:
    def connect() -> socket.socket:
        app = world.ses.connect("10.77.0.9", 7000)
        assert app.recv(100) == b"cluster 10.77.0.3\n"
        return app

    bridge, agent = world.bridge.pid, world.agent.process.pid
    others = _held(agent, agent)  # carriers
    with ExitStack() as stack:
        for _ in range(_MANY):
            stack.enter_context(world.ses.run(connect))
        eventually(lambda: _held(bridge, bridge), until=lambda held: held == 0, limit_s=10)
        assert (_held(agent, bridge), _held(agent, agent)) == (_MANY, others + _MANY)
        status = world.host.until(door.Status, lambda status: status.flows == _MANY)
        assert status.link.handed
    world.host.until(door.Status, lambda status: status.flows == 0)
    eventually(lambda: (_held(agent, bridge), _held(agent, agent)), until=lambda held: held == (0, others), limit_s=10)


def test_A37_while_the_link_is_cut_what_is_handed_goes_on_and_new_connects_wait(world) -> None:
    refuse = ("INPUT", "-p", "tcp", "--dport", str(world.agent.port), "-j", "REJECT", "--reject-with", "tcp-reset")
    with world.ses.connect("10.77.0.9", 7000) as app:
        assert app.recv(100) == b"cluster 10.77.0.3\n"
        world.host._dial = None
        world.tgt.call("iptables", "-I", *refuse)
        try:
            status = world.host.until(door.Status, lambda status: status.link.state == "reconnecting")
            assert not status.link.handed
            waiting = world.ses.submit(world.ses.connect, "10.77.0.9", 7000)
            for number in range(10):
                app.sendall(b"%d" % number)
                assert app.recv(100) == b"%d" % number
            with pytest.raises(TimeoutError):  # one that did not wait for the link would be there within a millisecond
                waiting.result(1)
        finally:
            world.tgt.call("iptables", "-D", *refuse)
            world.host._dial = world.agent.dial
        with waiting.result(30) as later:
            assert later.recv(100) == b"cluster 10.77.0.3\n"
        world.host.until(door.Status, lambda status: status.link.handed)
        app.sendall(b"still here")
        assert app.recv(100) == b"still here"


def test_what_a_server_says_before_the_app_has_arrived_is_not_lost(world) -> None:
    with world.clu.listen("10.77.0.9", 8100) as listener, ThreadPoolExecutor() as threads:

        def greet() -> None:
            for _ in range(_MANY):
                sock, _ = listener.accept()
                with sock:
                    sock.sendall(b"220 ready\r\n" * 1000)

        served = world.clu.submit(greet)
        said = threads.map(lambda _: world.ses.run(_read_all, "10.77.0.9", 8100), range(_MANY))
        assert set(said) == {b"220 ready\r\n" * 1000}
        served.result(10)


def _read_all(address: str, port: int) -> bytes:
    with socket.create_connection((address, port), 10) as app:
        said = b""
        while piece := app.recv(65536):
            said += piece
        return said


def test_a_bridge_that_is_killed_resets_both_ends(world) -> None:
    with world.clu.listen("10.77.0.9", 8101) as listener:
        accepted = world.clu.submit(lambda: listener.accept()[0])
        with world.ses.connect("10.77.0.9", 8101) as app, accepted.result(10) as server:
            app.sendall(b"x")
            assert server.recv(1) == b"x"
            world.kill_bridge()
            for end in (app, server):
                end.settimeout(10)
                with pytest.raises(ConnectionResetError):
                    end.recv(1)
    world.start()
    with world.ses.connect("10.77.0.9", 7000) as app:
        assert app.recv(100) == b"cluster 10.77.0.3\n"


@pytest.mark.parametrize(("server", "developers"), [("10.77.0.9", "172.30.0.1"), ("fd77::9", "fd30::1")])
def test_what_is_handed_over_leads_nowhere_but_into_the_session(world, server: str, developers: str) -> None:
    """Who had taken the agent over would hold sockets of the session's namespace: they must not reach the developer's network."""
    with world.ses.connect(server, 7000) as app:
        assert app.recv(100).startswith(b"cluster ")
        with _taken_from(world.agent.process.pid, app.getsockname()) as handed:
            unspecified = struct.pack("H14x", socket.AF_UNSPEC)
            assert _libc.connect(handed.fileno(), unspecified, len(unspecified)) == 0  # connect(2): dissolves the association
            assert handed.connect_ex((developers, 7000)) in (errno.EHOSTUNREACH, errno.ENETUNREACH)
            assert _as_the_agents_user(lambda: handed.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0)) == errno.EPERM
    with world.ses.connect(developers, 7000) as twin:  # which any other socket of that namespace reaches
        assert twin.recv(100).startswith(b"dev ")


def _taken_from(pid: int, app: tuple[str, int]) -> socket.socket:
    """A duplicate of the agent's descriptor whose peer is the app (pidfd_getfd(2))."""
    pidfd = os.pidfd_open(pid)
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            fd = _libc.syscall(_PIDFD_GETFD, pidfd, int(name), 0)
            assert fd >= 0
            with contextlib.suppress(OSError):  # no socket, or one without a peer
                if socket.socket(fileno=os.dup(fd)).getpeername() == app:
                    return socket.socket(fileno=fd)
            os.close(fd)
    finally:
        os.close(pidfd)
    raise AssertionError("the agent has no connection of the app's")


def _as_the_agents_user(attempt: Callable[[], None]) -> int:
    """The errno that a process without capabilities gets, 0 if none."""
    child = os.fork()
    if child == 0:
        try:
            os.setresuid(65532, 65532, 65532)
            attempt()
        except OSError as exc:
            os._exit(exc.errno or 255)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_whoever_else_finds_the_socket_is_told_nothing_and_hung_up_on(world) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
        stranger.settimeout(10)
        stranger.connect(str(Path(world.hand) / "bridge.sock"))
        stranger.send(b"H" + b"\0" * 32)
        assert stranger.recv(512) == b""
    with world.ses.connect("10.77.0.9", 7000) as app:
        assert app.recv(100) == b"cluster 10.77.0.3\n"

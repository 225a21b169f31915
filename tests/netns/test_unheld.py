"""Where the kernel can hold no SYN: a connection is accepted first, dialled then, and reset where the dial fails."""

from __future__ import annotations

import errno
import socket

import pytest

from bridge.protocol import door

HOLD = False


def test_a_flow_goes_to_the_cluster_all_the_same(world) -> None:
    with world.ses.connect("10.77.0.9", 7000) as app:
        assert app.recv(100) == b"cluster 10.77.0.3\n"
        app.sendall(b"and back")
        assert app.recv(100) == b"and back"


def test_what_the_app_says_before_the_dial_is_done_is_kept(world) -> None:
    with world.clu.listen("10.77.0.9", 7020) as listener, world.ses.connect("10.77.0.9", 7020) as app:
        app.sendall(b"first words")
        server, _ = listener.accept()
        with server:
            server.settimeout(10)
            assert server.recv(100) == b"first words"


@pytest.mark.parametrize(("address", "port"), [("10.77.0.9", 1), ("10.79.0.5", 80), ("fd77::9", 1)])
def test_a_dial_that_fails_is_a_reset(world, address: str, port: int) -> None:
    with world.ses.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as app:
        if app.connect_ex((address, port)) != errno.ECONNRESET:  # the reset may be quicker than connect()'s own return
            with pytest.raises(ConnectionResetError):
                app.recv(1)


def test_the_status_says_so(world) -> None:
    world.take_over()
    status = world.host.until(door.Status)
    assert status.holder is None
    assert any("connect()" in warning for warning in status.warnings)


def test_A44_the_listener_still_serves_redirected_connections_only(world) -> None:
    listening = world.ses.call("cat", "/proc/net/tcp").splitlines()[1:]
    for port in [int(line.split()[1].split(":")[1], 16) for line in listening if line.split()[3] == "0A"]:
        with world.ses.socket() as app:
            assert app.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED

"""The agent dies, and another takes its place, at the same address or at another: with the real link, under a running app."""

from __future__ import annotations

import errno
import signal

import pytest

from bridge.protocol import door

LINKS = ("real", "handed")


def _another_agent(world) -> None:
    world.start_agent()
    world.host._dial = world.agent.dial
    world.host.send(door.Agent(world.agent.host_key, world.agent.agent_id))


def test_A37_connects_wait_while_the_agent_is_away_and_succeed_after(world) -> None:
    world.agent.process.send_signal(signal.SIGKILL)
    world.agent.process.wait(10)
    world.host.until(door.Status, lambda status: status.link.state == "reconnecting")
    waiting = world.ses.submit(world.ses.connect, "10.77.0.9", 7000)
    with world.ses.udp("10.77.0.9") as lost:
        lost.sendto(b"who", ("10.77.0.9", 7000))
    _another_agent(world)
    with waiting.result(30) as app:
        assert app.recv(100) == b"cluster 10.77.0.3\n"
    world.host.until(door.Status, lambda status: status.link.state == "connected")
    with world.ses.udp("10.77.0.9") as app:
        app.sendto(b"who", ("10.77.0.9", 7000))
        assert app.recv(100) == b"cluster 10.77.0.3"


def test_A38_flows_of_a_dead_agent_are_reset(world) -> None:
    with world.ses.connect("10.77.0.9", 7000) as app:
        assert app.recv(100)
        world.agent.process.send_signal(signal.SIGKILL)
        world.agent.process.wait(10)
        _another_agent(world)
        with pytest.raises(ConnectionResetError):
            app.recv(100)


def test_A38_a_target_that_has_moved_is_the_apps_new_identity(world) -> None:
    move = "addr del {}/24 dev eth0\naddr add {}/24 dev eth0\nroute replace 10.78.0.0/16 via 10.77.0.9\n"
    world.tgt.ip(move.format("10.77.0.3", "10.77.0.4"))
    try:
        _another_agent(world)
        world.host.until(door.Status, lambda status: status.link.state == "connected")
        for _ in range(100):
            try:
                with world.ses.connect("10.77.0.9", 7000) as app:
                    assert app.recv(100) == b"cluster 10.77.0.4\n"
                    if app.getsockname()[0] == "10.77.0.4" and "10.77.0.3" not in world.ses.call("ip", "addr"):
                        break
            except OSError as exc:  # from the old address, in the moment before it went: told at once, never left to wait
                if exc.errno not in (errno.EHOSTUNREACH, errno.ECONNRESET):
                    raise
        else:
            pytest.fail("the app still has the old address")
    finally:
        world.tgt.ip(move.format("10.77.0.4", "10.77.0.3"))

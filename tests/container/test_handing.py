"""App and target on one engine: connections are handed to the agent, status says so, and nothing is left or open to others."""

from __future__ import annotations

import pytest

from tests.container.conftest import Bridge
from tests.lab.boxes import App, eventually
from tests.lab.dockerlab import Lab


def _bridge_holds(app: App) -> int:
    """Of the connections that are open in the session's namespace, those that the bridge has a descriptor of."""
    code = (
        "import os\n"
        "lines = [line.split() for line in open('/proc/net/tcp')]\n"
        "here = {f'socket:[{words[9]}]' for words in lines if words[3] == '01'}\n"
        "assert here\n"
        "print(sum(os.readlink(f'/proc/1/fd/{fd}') in here for fd in os.listdir('/proc/1/fd')))\n"
    )
    done = app.part("bridge").exec_run(["/opt/mbridge/bin/python", "-c", code])
    assert done.exit_code == 0, done.output
    return int(done.output)


def test_the_apps_connections_are_the_agents_and_status_says_so(lab: Lab, bridge: Bridge) -> None:
    with bridge(f"docker/{lab.target.name}") as app:
        status = eventually(app.status, until=lambda one: one["handed"], limit_s=10)
        assert status["link"]["via"] == "direct"
        assert " handed" in app.cli.run("status").stdout
        talk = app.probing("keep_talking", host=lab.server_ip, seconds=6)
        eventually(app.status, until=lambda one: one["flows"] == 1, limit_s=10)
        eventually(lambda: _bridge_holds(app), until=lambda held: held == 0, limit_s=5)
        assert "count" in talk.answer()


@pytest.mark.parametrize("via", ["direct", "exec"])
def test_a_carrier_that_is_named_carries_the_connections_too(lab: Lab, bridge: Bridge, via: str) -> None:
    with bridge(f"docker/{lab.target.name}", "--via", via) as app:
        talk = app.probing("keep_talking", host=lab.server_ip, seconds=4)
        eventually(app.status, until=lambda one: one["flows"] == 1, limit_s=10)
        assert _bridge_holds(app) == 1
        assert "count" in talk.answer()
        status = app.status()
        assert (status["handed"], status["link"]["via"]) == (False, via)
        assert not lab.client.volumes.list(filters={"name": f"mbridge-{app.session}-hand"})
        assert not _mount(app, "agent")


def test_the_socket_is_the_bridges_and_the_agents_alone_and_goes_with_the_session(lab: Lab, bridge: Bridge) -> None:
    with bridge(f"docker/{lab.target.name}") as app:
        volume = f"mbridge-{app.session}-hand"
        assert lab.client.volumes.get(volume).attrs["Labels"]["mbridge.session"] == app.session
        assert [mount["RW"] for mount in _mount(app, "agent")] == [False]
        assert [mount["RW"] for mount in _mount(app, "bridge")] == [True]
        users = lab.client.containers.list(all=True, filters={"volume": volume})
        assert {user.labels["mbridge.role"] for user in users} == {"agent", "bridge"}
    assert not lab.client.volumes.list(filters={"name": volume})


def test_A38_a_handed_connection_is_reset_with_its_agent_and_the_next_goes_through_the_new_one(lab: Lab, bridge: Bridge) -> None:
    with bridge(f"docker/{lab.target.name}") as app:
        eventually(app.status, until=lambda one: one["handed"], limit_s=10)
        talk = app.probing("keep_talking", host=lab.server_ip, seconds=30)
        eventually(app.status, until=lambda one: one["flows"] == 1, limit_s=10)
        app.part("agent").kill()
        assert "ECONNRESET" in str(talk.answer())
        eventually(app.status, until=lambda one: one["state"] == "ready" and one["handed"], limit_s=30)
        assert app.probe("who", host=lab.server_ip)["peer"] == lab.target_ip


def _mount(app: App, part: str) -> list[dict[str, object]]:
    container = app.part(part)
    container.reload()
    return [mount for mount in container.attrs["Mounts"] if mount["Destination"] == "/run/mbridge-hand"]

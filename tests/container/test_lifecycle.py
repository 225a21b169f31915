"""A34 to A38, A41 and A42: sessions come, go, are cut and killed, and nothing is left or leaks."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import psutil
import pytest

from tests.container.conftest import IDLE, App, Bridge
from tests.lab.boxes import Box, Cli, eventually, of_session
from tests.lab.dockerlab import Lab

CUT_SHORT_S, CUT_LONG_S = 5, 60


def left_over(client: docker.DockerClient, session: str) -> dict[str, list[str]]:
    """What of a session is still on this machine."""
    label = f"mbridge.session={session}"
    return {
        "containers": [str(one.name) for one in of_session(client, session)],
        "networks": [str(one.name) for one in client.networks.list() if session in one.name],
        "volumes": [str(one.name) for one in client.volumes.list() if session in one.name]
        + [one.name for one in client.volumes.list(filters={"label": label})],
        "processes": [" ".join(one.cmdline()) for one in psutil.process_iter() if _of(one, session)],
    }


def _of(process: psutil.Process, session: str) -> bool:
    with contextlib.suppress(psutil.Error):
        return session in " ".join(process.cmdline()) and process.pid != os.getpid()
    return False


def nothing_left(client: docker.DockerClient, cli: Cli, session: str) -> None:
    nothing = {"containers": [], "networks": [], "volumes": [], "processes": []}
    eventually(lambda: left_over(client, session), until=lambda left: left == nothing, limit_s=15)
    assert not list(cli.state.rglob(f"{session}*")), "the session's folder"


@contextlib.contextmanager
def cut(target: Box) -> Iterator[None]:
    """No packet passes between this machine and the target's namespace; the target's own network is not touched."""
    (address,) = target.addresses().values()
    gateway = address.rpartition(".")[0] + ".1"  # the engine's bridge has the network's first address
    rules = [("INPUT", "-s", gateway), ("OUTPUT", "-d", gateway)]
    for chain, flag, address in rules:
        assert target.run("iptables", "-I", chain, flag, address, "-j", "DROP").code == 0
    try:
        yield
    finally:
        for chain, flag, address in rules:
            assert target.run("iptables", "-D", chain, flag, address, "-j", "DROP").code == 0


def state_of(app: App) -> str:
    return str(app.status()["state"])


def host_process(cli: Cli, session: str) -> int:
    (lock,) = cli.state.rglob(f"{session}/host.lock")
    return int(lock.read_text())


# Ends at a SIGTERM although it is process 1: `down` need not wait until its patience is over.
ENDS_AT_TERM = """[sh, -c, "trap 'exit 0' TERM; sleep infinity & wait"]"""


def config(folder: Path, lab: Lab, target: str, name: str = "mbridge.yaml", command: str = ENDS_AT_TERM) -> Path:
    file = folder / name
    file.write_text(f"target: docker/{target}\napp: {{ image: '{lab.programs_image}', command: {command} }}\n")
    return file


def test_A34_down_of_nothing_is_fine(own_cli: Cli) -> None:
    for words in (("down",), ("down", "--all"), ("down", "abcdef")):
        done = own_cli.run(*words)
        assert done.returncode == 0, done.stderr
        assert done.stdout == ""


def test_A34_up_detached_then_down_twice_leaves_nothing(lab: Lab, own_cli: Cli, tmp_path: Path) -> None:
    config(tmp_path, lab, lab.target.name)
    done = own_cli.run("up", "-d", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    session = done.stdout.strip()
    (status,) = own_cli.status()
    assert (status["id"], status["state"], status["target"]) == (session, "ready", f"docker/{lab.target.name}")
    assert own_cli.run("down", session).returncode == 0
    nothing_left(lab.client, own_cli, session)
    assert own_cli.run("down", session).returncode == 0
    assert own_cli.status() == []


def test_A34_up_twice_is_two_sessions_or_says_why_not(lab: Lab, own_cli: Cli, tmp_path: Path) -> None:
    config(tmp_path, lab, lab.target.name)
    first = own_cli.run("up", "-d", cwd=tmp_path)
    second = own_cli.run("up", "-d", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    if second.returncode == 0:
        assert {one["state"] for one in own_cli.status()} == {"ready"}
    else:
        assert first.stdout.strip() in second.stderr
    assert own_cli.run("down", "--all", limit_s=90).returncode == 0
    nothing_left(lab.client, own_cli, first.stdout.strip())


def test_A34_apps_side_by_side_are_sessions_of_their_own(lab: Lab, own_cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mbridge.yaml").write_text(
        f"target: docker/{lab.target.name}\napp: {{ image: '{lab.programs_image}' }}\n"
        f"apps:\n  one: {{ app: {{ command: {ENDS_AT_TERM} }} }}\n  two: {{ app: {{ command: {ENDS_AT_TERM} }} }}\n"
    )
    done = own_cli.run("up", "-d", cwd=tmp_path, limit_s=90)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 2
    assert {one["app"] for one in own_cli.status()} == {"one", "two"}


def test_A35_two_sessions_with_one_target_and_with_two(lab: Lab, bridge: Bridge) -> None:
    with lab.another_target(61) as other, contextlib.ExitStack() as stack:
        names = [lab.target.name, lab.target.name, other.name]
        apps = [stack.enter_context(bridge(f"docker/{name}")) for name in names]
        peers = [app.probe("who", host=lab.server_ip)["peer"] for app in apps]
        assert peers == [lab.target_ip, lab.target_ip, lab.address(61)]


def test_A36_ctrl_c_undoes_everything(lab: Lab, bridge: Bridge, own_cli: Cli) -> None:
    with bridge(f"docker/{lab.target.name}") as app:
        session = app.session
        app.process.send_signal(signal.SIGINT)
        app.process.wait(30)
    nothing_left(lab.client, own_cli, session)


@pytest.mark.parametrize("step", ["target", "images", "agent", "network"])
def test_A36_ctrl_c_at_any_step_of_the_start_undoes_just_what_was_done(lab: Lab, own_cli: Cli, step: str) -> None:
    """Right after the step was said to be done; after the last one, `link`, the app runs, and the signal is the app's."""
    process = own_cli.start("run", "--network", lab.outside, f"docker/{lab.target.name}", lab.programs_image, *IDLE)
    assert process.stderr is not None
    assert any(line.startswith(f"mbridge: {step}".encode()) for line in process.stderr)
    known = [folder.name for folder in (own_cli.state / "mbridge").glob("*") if folder.is_dir()]
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode not in (0, None)
    for session in known:
        nothing_left(lab.client, own_cli, session)
    mine = lab.client.containers.list(all=True, filters={"label": f"mbridge.session={known[0] if known else 'none'}"})
    assert mine == []


KILLED = ["host", "pause", "bridge", "app", "agent"]


@pytest.mark.parametrize("part", KILLED)
def test_A36_after_kill_9_of_any_part_nothing_leaks_and_down_leaves_nothing(lab: Lab, own_cli: Cli, part: str) -> None:
    """While a part is dead, the app tries on: nothing of what it sends may show on the developer's network."""
    strays = len(lab.strays())
    with lab.another_target(62) as target:
        process = own_cli.start("run", "--network", lab.outside, f"docker/{target.name}", lab.programs_image, *IDLE)
        try:
            status = eventually(
                lambda: own_cli.session(f"docker/{target.name}"), until=lambda one: bool(one) and one["state"] == "ready", limit_s=40
            )
            session = status["id"]
            parts = {role: of_session(lab.client, session, role)[0] for role in KILLED[1:]}
            app = Box(parts["app"])
            assert app.probe("who", host=lab.server_ip)["peer"] == lab.address(62)
            if part == "host":
                os.kill(process.pid, signal.SIGKILL)
                process.wait(10)
            else:
                with contextlib.suppress(docker.errors.APIError):
                    parts[part].kill()
            if part not in ("app", "pause"):
                for _ in range(5):
                    if not app.alive():
                        break
                    seen = app.probe("who_or_error", host=lab.server_ip, port=7002, timeout=1.0)
                    assert seen in ("timeout", "EHOSTUNREACH", "ENETUNREACH", "ECONNREFUSED", "ECONNRESET", lab.address(62)), seen
                    app.run(
                        "python3",
                        "-c",
                        f"import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('{lab.server_ip}', 7001))",
                    )
                    app.run("ping", "-c", "1", "-W", "1", lab.server_ip)
            assert own_cli.run("down", "--all", limit_s=60).returncode == 0
            nothing_left(lab.client, own_cli, session)
            assert target.alive()
        finally:
            process.kill()
            process.communicate()
    assert lab.strays()[strays:] == []


@pytest.mark.parametrize("part", ["bridge", "agent"])
def test_A36_a_killed_part_comes_back_and_the_app_was_not_restarted(lab: Lab, bridge: Bridge, part: str) -> None:
    with lab.another_target(63) as target, bridge(f"docker/{target.name}") as app:
        started = app.container.attrs["State"]["StartedAt"]
        app.part(part).kill()
        seen = eventually(
            lambda: app.probe("who_or_error", host=lab.server_ip, port=7002, timeout=5.0),
            until=lambda peer: peer == lab.address(63),
            limit_s=60,
        )
        assert seen == lab.address(63)
        eventually(lambda: state_of(app), until=lambda state: state == "ready", limit_s=20)
        app.container.reload()
        assert app.container.attrs["State"]["StartedAt"] == started


def test_A36_up_takes_over_what_a_killed_host_process_left(lab: Lab, own_cli: Cli, tmp_path: Path) -> None:
    config(tmp_path, lab, lab.target.name)
    session = own_cli.run("up", "-d", cwd=tmp_path).stdout.strip()
    (app,) = of_session(lab.client, session, "app")
    started = app.attrs["State"]["StartedAt"]
    os.kill(host_process(own_cli, session), signal.SIGKILL)
    eventually(lambda: own_cli.status()[0]["state"], until=lambda state: state != "ready", limit_s=10)
    done = own_cli.run("up", "-d", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == session
    app.reload()
    assert app.attrs["State"]["StartedAt"] == started
    assert Box(app).probe("who", host=lab.server_ip)["peer"] == lab.target_ip


def test_A37_a_cut_of_5_s_is_not_seen_by_what_is_open_and_status_is_honest(lab: Lab, bridge: Bridge) -> None:
    with lab.another_target(64) as target, bridge(f"docker/{target.name}", "--via", "direct") as app:
        talk = app.probing("keep_talking", host=lab.server_ip, seconds=12)
        time.sleep(1.5)
        with cut(target):
            time.sleep(CUT_SHORT_S)
        seen = talk.answer()
        assert "count" in seen, seen
        assert state_of(app) == "ready"


@pytest.mark.timeout(240)
def test_A41_a_cut_of_60_s_loses_nothing_and_held_connects_succeed_after(lab: Lab, bridge: Bridge) -> None:
    """Also A37: an open conversation, a transfer under way and a connect that waits; status says reconnecting meanwhile."""
    with lab.another_target(65) as target, bridge(f"docker/{target.name}", "--via", "direct") as app:
        started = app.container.attrs["State"]["StartedAt"]
        talk = app.probing("keep_talking", host=lab.server_ip, seconds=75, limit_s=150)
        bulk = app.probing("both_ways", host=lab.server_ip, key="cut", length=150_000_000, limit_s=180)
        time.sleep(0.4)
        with cut(target):
            began = time.monotonic()
            eventually(lambda: state_of(app), until=lambda state: state == "reconnecting", limit_s=30)
            held = app.probing("connect", host=lab.server_ip, port=7001, timeout=100, limit_s=120)
            time.sleep(max(0.0, CUT_LONG_S - (time.monotonic() - began)))
        assert held.answer() == "connected"
        assert "count" in talk.answer()
        seen = bulk.answer()
        assert seen["got"] == seen["theirs"] == seen["want"]
        eventually(lambda: state_of(app), until=lambda state: state == "ready", limit_s=15)
        app.container.reload()
        assert app.container.attrs["State"]["StartedAt"] == started


def test_A38_a_target_that_restarts_is_found_again_and_the_app_is_not_restarted(lab: Lab, bridge: Bridge) -> None:
    with lab.another_target(66) as target, bridge(f"docker/{target.name}") as app:
        started = app.container.attrs["State"]["StartedAt"]
        target.container.stop(timeout=1)
        status = eventually(app.status, until=lambda one: one["state"] == "reconnecting", limit_s=20)
        assert status["why"]
        time.sleep(1)
        target.container.start()
        eventually(
            lambda: app.probe("who_or_error", host=lab.server_ip, port=7002, timeout=5.0),
            until=lambda peer: peer == lab.address(66),
            limit_s=60,
        )
        eventually(lambda: state_of(app), until=lambda state: state == "ready", limit_s=20)
        assert app.status()["link"]["via"] == "direct", "a new agent is not avoided for what its predecessor's carriers did"
        app.container.reload()
        assert app.container.attrs["State"]["StartedAt"] == started


def _context(name: str, url: str, folder: Path) -> Path:
    """A DOCKER_CONFIG with one context, as `docker context create` writes it."""
    meta = folder / "contexts" / "meta" / hashlib.sha256(name.encode()).hexdigest() / "meta.json"
    meta.parent.mkdir(parents=True)
    meta.write_text(json.dumps({"Name": name, "Metadata": {}, "Endpoints": {"docker": {"Host": url}}}))
    return folder


@pytest.mark.timeout(180)
def test_A38_the_link_goes_back_to_the_better_carrier_and_no_open_flow_notices(
    lab: Lab, bridge: Bridge, own_cli: Cli, tmp_path: Path
) -> None:
    """The target's address cannot be dialled at first; then it can. By another name of the engine, so that flows go by the link."""
    with lab.another_target(69) as target, contextlib.ExitStack() as stack:
        own_cli.environ["DOCKER_CONFIG"] = str(_context("twin", "unix:///run/docker.sock", tmp_path))
        with cut(target):
            app = stack.enter_context(bridge(f"docker/{target.name}", "--docker-context", "twin"))
            status = app.status()
            assert (status["link"]["via"], status["handed"]) == ("exec", False)
            talk = app.probing("keep_talking", host=lab.server_ip, seconds=25)
            bulk = app.probing("both_ways", host=lab.server_ip, key="better", length=150_000_000, limit_s=150)
        eventually(app.status, until=lambda one: (one["state"], one["link"]["via"]) == ("ready", "direct"), limit_s=60)
        assert "count" in talk.answer()
        seen = bulk.answer()
        assert seen["got"] == seen["theirs"] == seen["want"]
        app.process.send_signal(signal.SIGTERM)
        assert "the link is down" not in app.process.communicate(timeout=30)[1].decode(), "no news for the user"


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("via", "bridges_mb", "agents_mb"), [("direct", 400, 200), ("auto", 100, 100)])
def test_A42_a_thousand_readers_that_stall_stay_within_their_bound(
    lab: Lab, bridge: Bridge, via: str, bridges_mb: int, agents_mb: int
) -> None:
    """Each flow's server pushes what nobody reads, 600 MB in sum. By a carrier the windows' bound may be held; handed, by the agent
    alone, some 20 MB."""
    with lab.another_target(67) as target, bridge(f"docker/{target.name}", "--via", via) as app:
        parts = {role: app.part(role) for role in ("bridge", "agent")}
        worst = dict.fromkeys(parts, 0)
        stalled = app.probing("stalled_readers", host=lab.server_ip, count=1000, length=600_000, seconds=8, limit_s=120)
        answer: list[int] = []
        waiting = threading.Thread(target=lambda: answer.append(stalled.answer()))
        waiting.start()
        while waiting.is_alive():
            worst = {role: max(worst[role], resident(part)) for role, part in parts.items()}
            waiting.join(0.5)
        assert answer == [1000]
        assert worst["bridge"] < bridges_mb << 20, worst
        assert worst["agent"] < agents_mb << 20, worst
        assert app.probe("who", host=lab.server_ip)["peer"] == lab.address(67)  # others are not held up


def resident(container: docker.models.containers.Container) -> int:
    """Resident bytes of a container's processes, as this machine's kernel counts them."""
    top = container.top(ps_args="-o pid,rss")
    return sum(int(row[1]) for row in top["Processes"]) * 1024


def test_A36_logs_of_every_part_can_be_read(lab: Lab, app: App, cli: Cli) -> None:
    done = cli.run("logs", app.session)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "PRIVATE KEY" not in done.stdout


def test_A36_followed_logs_go_on_with_a_new_agent_and_a_restarted_bridge_until_the_session_ends(lab: Lab, bridge: Bridge) -> None:
    with lab.another_target(78) as target, bridge(f"docker/{target.name}") as app:
        following = app.cli.start("logs", "-f", "--part", "agent", "--part", "bridge")
        assert following.stdout is not None
        seen: list[bytes] = []

        def until(words: bytes) -> None:
            for line in following.stdout or ():
                seen.append(line)
                if words in line:
                    return
            raise AssertionError(f"no {words!r} after {seen}")

        ids = []
        for _ in range(3):
            until(b"agent  | mbridge-agent 1 ")
            until(b"= link: a bridge has proven")
            ids.append(app.part("agent").id)
            app.part("agent").kill()
        until(b"agent  | mbridge-agent 1 ")
        ids.append(app.part("agent").id)
        app.part("bridge").kill()
        until(b" wired in ")
        eventually(lambda: state_of(app), until=lambda state: state == "ready")
        logged = app.part("bridge").logs().decode().splitlines()
        app.process.send_signal(signal.SIGTERM)
        rest, told = following.communicate(timeout=15)
    assert following.returncode == 0
    lines = b"".join([*seen, rest]).decode().splitlines()
    assert len([line for line in lines if line.startswith("agent  | mbridge-agent 1 ")]) == 4, "each from its first word on"
    assert [line.removeprefix("bridge | ") for line in lines if line.startswith("bridge")][: len(logged)] == logged, "none lost or twice"
    assert "wired in" in logged[-2] + logged[-1], "the bridge's second life is among them"
    anew = "mbridge: the agent was made anew: container mbridge-{}-agent, {}; its log goes on here"
    assert told.decode().splitlines() == [anew.format(app.session, str(one)[:12]) for one in ids[1:]]


def test_A37_status_has_the_agreed_form(lab: Lab, app: App, cli: Cli) -> None:
    one = next(one for one in cli.status() if one["id"] == app.session)
    assert {"id", "target", "state", "since", "why", "link", "agent", "ports"} <= set(one)
    assert {"via", "state", "since"} <= set(one["link"])
    assert (one["state"], one["target"], one["link"]["via"]) == ("ready", f"docker/{lab.target.name}", "direct")
    assert json.dumps(one)


def test_A36_the_exec_carrier_carries_the_same(lab: Lab, bridge: Bridge) -> None:
    """As with a remote engine: no address is dialled, everything goes through the engine's API."""
    with bridge(f"docker/{lab.target.name}", "--via", "exec") as app:
        assert app.probe("who", host=lab.server_ip)["peer"] == lab.target_ip
        assert app.status()["link"]["via"] == "exec"
        seen = app.probe("both_ways", host=lab.server_ip, key="exec", length=20_000_000)
        assert seen["got"] == seen["theirs"] == seen["want"]


DAMAGES = {
    "truncated": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "unknown step": lambda text: text.replace('"do": "volume"', '"do": "fly"'),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_A36_a_damaged_plan_keeps_down_from_nothing(lab: Lab, own_cli: Cli, tmp_path: Path, damage: Callable[[str], str]) -> None:
    config(tmp_path, lab, lab.target.name)
    session = own_cli.run("up", "-d", cwd=tmp_path).stdout.strip()
    os.kill(host_process(own_cli, session), signal.SIGKILL)
    (plan,) = own_cli.state.rglob(f"{session}/plan.json")
    plan.write_text(damage(plan.read_text()))
    plan.with_name("status.json").write_text("{")
    (status,) = own_cli.status()
    assert (status["id"], status["state"]) == (session, "failed")
    done = own_cli.run("up", "-d", cwd=tmp_path)  # the next start does not trip over it
    assert done.returncode == 0, done.stderr
    assert own_cli.run("down", done.stdout.strip()).returncode == 0
    done = own_cli.run("down")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("plan is damaged") == 1
    nothing_left(lab.client, own_cli, session)


def test_A36_dry_run_prints_the_plan_and_changes_nothing(lab: Lab, own_cli: Cli) -> None:
    done = own_cli.run("run", "--dry-run", f"docker/{lab.target.name}", lab.programs_image, "true")
    assert done.returncode == 0, done.stderr
    assert "pause" in done.stdout
    assert own_cli.status() == []
    assert not list(own_cli.state.rglob("plan.json"))

"""K21, K17: what sessions cost the API server, counted between the two, and what they make of one that ends idle streams."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.cluster.kube import PUBLIC_KEY, TARGET_IMAGE, Namespace, bridged, container, ended, service
from tests.cluster.kubeconfigs import Kubeconfig
from tests.cluster.test_run import ip_of
from tests.lab.boxes import Cli, eventually
from tests.lab.relay import Relay

PER_START, WITH_AN_AGENT, PER_IDLE_MINUTE = 20, 12, 4
SESSIONS = 100


@pytest.fixture
def counted(namespace: Namespace, tmp_path: Path) -> Iterator[tuple[Cli, Relay]]:
    """`mbridge` whose API server is behind a relay that reads along, since `kubectl proxy` speaks plain HTTP."""
    words = ("proxy", "--port=0", "--disable-filter")
    with subprocess.Popen(
        [*namespace.cluster.kubectl_command, *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    ) as proxy:
        try:
            assert proxy.stdout is not None
            host, _, port = proxy.stdout.readline().split()[-1].rpartition(":")
            with Relay((host, int(port))) as relay:
                file = tmp_path / "counted"
                file.write_text(json.dumps({
                    "clusters": [{"name": "c", "cluster": {"server": f"http://{relay.address}"}}],
                    "contexts": [{"name": "c", "context": {"cluster": "c"}}], "current-context": "c"}))  # fmt: skip
                yield Cli(namespace.state, {"KUBECONFIG": str(file)}), relay
        finally:
            os.killpg(proxy.pid, signal.SIGINT)


def test_K21_a_whole_start_and_end_asks_twenty_times_at_most_and_less_with_the_agent_used_again(
    namespace: Namespace, counted: tuple[Cli, Relay]
) -> None:
    cli, relay = counted
    namespace.workload(pod={"containers": [container(resources={"limits": {"memory": "1Gi"}})]})  # so that it is looked at
    counts = []
    for _ in range(2):
        before = len(relay.requests)
        done = cli.run("run", "deploy/web", "-n", namespace.name, TARGET_IMAGE, "true")
        assert done.returncode == 0, done.stderr
        counts.append(len(relay.requests) - before)
    assert any("portforward" in path for path in relay.requests), "carriers are among what was counted"
    assert counts[0] <= PER_START, relay.requests
    assert counts[1] <= WITH_AN_AGENT, relay.requests


def test_K21_an_idle_session_asks_four_times_a_minute_at_most(namespace: Namespace, counted: tuple[Cli, Relay]) -> None:
    cli, relay = counted
    namespace.workload()
    with bridged(namespace, "deploy/web", cli=cli) as app:
        eventually(app.status, until=lambda status: status["state"] == "ready")
        before, began = len(relay.requests), time.monotonic()
        time.sleep(15)  # what is counted is requests in a time
        minutes = (time.monotonic() - began) / 60
        asked = relay.requests[before:]
    assert len(asked) <= PER_IDLE_MINUTE * minutes, asked


def test_K21_a_hundred_sessions_ask_for_no_more_each(namespace: Namespace, counted: tuple[Cli, Relay]) -> None:
    """Of one user, so with one agent: the target, the environment and two carriers each; eight start at any time."""
    cli, relay = counted
    namespace.workload()
    kubeconfig = cli.environ["KUBECONFIG"]

    at_once = asyncio.Semaphore(8)

    async def one(number: int) -> bytes:
        async with at_once, ended(namespace.place("deploy/web", session=f"s{number:05d}", kubeconfig=kubeconfig)) as place:
            await place.find()
            agent, environ = await asyncio.gather(place.start_agent(PUBLIC_KEY, lambda _: None), place.environ())
            for _ in range(2):
                (await place.dial(agent, ()))[1].close()
            return environ.raw

    async def run() -> list[bytes]:
        await one(0)  # makes the agent
        relay.requests.clear()
        async with asyncio.timeout(90):
            return await asyncio.gather(*(one(number) for number in range(1, SESSIONS + 1)))

    (environ,) = set(asyncio.run(run()))
    assert b"FROM_IMAGE=image" in environ
    assert SESSIONS * 4 < len(relay.requests) <= SESSIONS * PER_START
    (pod,) = namespace.pods("app=web")
    assert len(pod["spec"]["ephemeralContainers"]) == 1


# An echo that says when it is connected, then waits for a line on stdin before it speaks.
TALK = """
import socket, sys
with socket.create_connection(({host!r}, 8080), timeout=30) as sock:
    stream = sock.makefile("rwb")
    stream.readline()
    print("connected", flush=True)
    for line in sys.stdin:
        stream.write(line.encode()); stream.flush()
        print(stream.readline().decode().strip(), flush=True)"""


def test_K17_an_api_server_that_closes_idle_streams_ends_no_connection(namespace: Namespace, tmp_path: Path) -> None:
    """After 4 s without a byte: sooner than the link's own question, so carriers do end; an open connection does not see it."""
    namespace.deployments("web", "peer")
    namespace.apply(service("peer"))
    (peer,) = namespace.pods("app=peer")
    config = Kubeconfig.of(namespace.cluster, tmp_path)
    real = urlsplit(config.cluster["server"])
    assert real.hostname is not None
    with Relay((real.hostname, real.port or 443), idle_s=4) as relay:
        config.cluster.update({"server": f"https://{relay.address}", "tls-server-name": real.hostname})
        cli = Cli(namespace.state, {"KUBECONFIG": str(config.write())})
        with bridged(namespace, "deploy/web", cli=cli) as app, talking(app.name, ip_of(peer)) as talk:
            assert talk("first") == "first"
            ended_before = relay.idle_ended
            eventually(lambda: relay.idle_ended, until=lambda count: count >= ended_before + 4, limit_s=40)
            assert talk("second") == "second"
            assert app.asks("peer")["host"] == peer["metadata"]["name"]
            eventually(app.status, until=lambda status: status["state"] == "ready")


# 5 MB/s through an echo until a line comes on stdin; says whether the same came back, all of it.
STREAM = """
import hashlib, json, os, socket, sys, threading
with socket.create_connection(({host!r}, 8080), timeout=60) as sock:
    sock.makefile("rb", buffering=0).readline()
    sent, got, stop, totals = hashlib.sha256(), hashlib.sha256(), threading.Event(), [0, 0]
    def send():
        while not stop.wait(0.05):
            piece = os.urandom(1 << 18)
            sock.sendall(piece); sent.update(piece); totals[0] += len(piece)
        sock.shutdown(socket.SHUT_WR)
    sending = threading.Thread(target=send)
    sending.start()
    threading.Thread(target=lambda: (sys.stdin.readline(), stop.set())).start()
    while piece := sock.recv(1 << 18):
        got.update(piece); totals[1] += len(piece)
    sending.join()
    print(json.dumps([*totals, sent.digest() == got.digest()]))"""


def test_K17_the_link_goes_back_to_port_forward_and_no_open_connection_notices(namespace: Namespace, counted: tuple[Cli, Relay]) -> None:
    """Port-forward is refused at first, as by a proxy that knows no WebSocket of it; then it is not."""
    cli, relay = counted
    namespace.deployments("web", "peer")
    (peer,) = namespace.pods("app=peer")
    relay.refused = "/portforward"
    with bridged(namespace, "deploy/web", cli=cli) as app:
        assert app.status()["link"]["via"] == "exec"
        command = ["docker", "exec", "-i", app.name, "python3", "-uc", STREAM.format(host=ip_of(peer))]
        with (
            talking(app.name, ip_of(peer)) as talk,
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as stream,
        ):
            assert talk("first") == "first"
            before = len(relay.requests)
            relay.refused = "\0"
            eventually(app.status, until=lambda one: (one["state"], one["link"]["via"]) == ("ready", "port-forward"), limit_s=60)
            asked = relay.requests[before:]
            assert talk("second") == "second"
            sent, got, same = json.loads(stream.communicate("end\n", timeout=60)[0])
            assert same, f"{got} of {sent} bytes came back"
            assert sent > 20 << 20
        app.process.send_signal(signal.SIGTERM)
        assert "the link is down" not in app.process.communicate(timeout=30)[1].decode(), "no news for the user"
    assert len([path for path in asked if "/portforward" in path]) == 2, "the trial's carriers are those that are used"
    assert not [path for path in asked if "/exec" in path], asked


@contextlib.contextmanager
def talking(container: str, host: str) -> Iterator[Callable[[str], str]]:
    """A conversation of a program in the app's container: each call says a line and returns the answer."""
    command = ["docker", "exec", "-i", container, "python3", "-uc", TALK.format(host=host)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "connected\n"

        def talk(line: str) -> str:
            print(line, file=process.stdin, flush=True)
            return process.stdout.readline().strip()  # type: ignore[union-attr]  # looked at above

        yield talk
        process.stdin.close()

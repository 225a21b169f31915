"""Far away: the same app with a slow way between host and agent, beside raw TCP over that very way."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from statistics import median

from tests.bench.figures import Row, alternate, number, percentile, ratio
from tests.bench.scene import BY_CARRIER, HERE, PORT, TRAFFIC, Scene, Way
from tests.container.conftest import bridged
from tests.lab.dockerlab import wait_ready

_RELAY_PORT, _MARK = 17101, 0x6D62
_SECONDS = 3.0


@contextlib.contextmanager
def slow_way(address: str, round_trip_ms: int) -> Iterator[None]:
    """Every connection of this host's to `address` goes through slow_relay.py meanwhile."""
    command = [sys.executable, str(HERE / "slow_relay.py"), str(_RELAY_PORT), str(round_trip_ms), str(_MARK)]
    relay = subprocess.Popen(command, stdout=subprocess.PIPE)
    rule = ["OUTPUT", "-p", "tcp", "-d", f"{address}/32", "-m", "mark", "!", "--mark", str(_MARK), "-j", "REDIRECT"]
    rule += ["--to-ports", str(_RELAY_PORT)]
    try:
        assert relay.stdout is not None
        assert relay.stdout.readline() == b"ready\n", "the slow relay did not start"
        subprocess.run(["iptables", "-w", "-t", "nat", "-I", *rule], check=True, timeout=20)
        yield
    finally:
        subprocess.run(["iptables", "-w", "-t", "nat", "-D", *rule], check=False, timeout=20, capture_output=True)
        relay.kill()
        relay.wait()


def far(scene: Scene) -> Iterable[Row]:
    target = scene.lab.target
    program = ["python3", "-c", TRAFFIC, "serve", f'{{"port": {PORT}}}']
    wait_ready(scene.lab.box("far", scene.lab.lab_image, program, network=f"container:{target.container.id}"))
    for round_trip_ms in (20, 80):
        with slow_way(scene.lab.target_ip, round_trip_ms), bridged(scene.lab, scene.cli, f"docker/{target.name}", *BY_CARRIER) as app:
            ours = Way("mbridge", app, scene.traffic_ip, PORT, {"bridge": app.part("bridge"), "agent": app.part("agent")})
            raw = Way("raw TCP", scene.on_host, scene.lab.target_ip, PORT, {})
            yield from _bulk(ours, raw, round_trip_ms)
            yield from _beside(ours, round_trip_ms)


def _bulk(ours: Way, raw: Way, round_trip_ms: int) -> Iterable[Row]:
    size = int(6e6 / round_trip_ms * 1000 * _SECONDS)
    for direction in ("up", "down"):
        for way in (ours, raw):
            way.run(direction, size=size // 2)  # windows grow, on both ways

        def sample(way: Way, direction: str = direction) -> Callable[[], float]:
            return lambda: size / 1e6 / way.run(direction, size=size)

        taken = alternate(3, {way.name: sample(way) for way in (ours, raw)})
        share = 100 * ratio(taken["mbridge"], taken["raw TCP"])
        detail = f"mbridge {number(median(taken['mbridge']))} MB/s; raw TCP over the same relay {number(median(taken['raw TCP']))}"
        what = f"bulk {direction}, {round_trip_ms} ms away, share of the way's own rate"
        yield Row(f"far-{round_trip_ms}-{direction}", what, share, "%", 70, 80, detail, at_least=True)


def _beside(ours: Way, round_trip_ms: int) -> Iterable[Row]:
    for direction in ("up", "down"):
        taken = ours.run("beside", way=direction, seconds=8)
        p99 = percentile(taken, 0.99) * 1000
        detail = f"p50 {number(median(taken) * 1000)} ms, p99 {number(p99)} ms of {len(taken)}"
        what = f"8-byte echo beside bulk {direction}, {round_trip_ms} ms away, p99 in round trips"
        yield Row(f"far-{round_trip_ms}-beside-{direction}", what, p99 / round_trip_ms, "×", 3, 2, detail)

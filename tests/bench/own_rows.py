"""Figures without a tunnel as peer: many flows, start, names, memory, images."""

from __future__ import annotations

import gzip
import subprocess
import time
from collections.abc import Iterable
from statistics import median
from typing import Any

from tests.bench.figures import Row, alternate, number
from tests.bench.scene import PORT, Scene, Way, resident, traffic
from tests.lab.boxes import MBRIDGE, Box, eventually

_MB = 1e6
_HELD = 1000


def many(scene: Scene) -> Iterable[Row]:
    way = scene.mbridge
    seen = way.metered("many", 10_000, total=10_000, parallel=64)
    detail = f"{number(10_000 / seen['seconds'])} a second (CPU µs each: {way.costs(1e6)}) {' '.join(seen['reasons'])}".strip()
    yield Row("short", "10,000 short connections, 64 at once: failed", seen["failed"], "", 0, 0, detail)
    with scene.another_app() as app:  # memory that was used before is used again, and would hide what flows need
        parts = {part: app.part(part) for part in ("bridge", "agent")}
        before = {part: resident(container) for part, container in parts.items()}
        holding = Way("mbridge", app, scene.traffic_ip, PORT, parts).begin("hold", count=_HELD, seconds=6)
        holding.until("open")
        during = {part: resident(container) for part, container in parts.items()}
        held = holding.answer()
    grown = {part: (during[part] - before[part]) / _HELD / 1024 for part in before}
    detail = f"{held['turns']} turns {' '.join(held['reasons'])}".strip()
    yield Row("open", "1,000 open at once, each sending: failed", held["failed"], "", 0, 0, detail)
    told = " + ".join(f"{part} {number(size)}" for part, size in grown.items())
    yield Row("open-memory", "memory per open flow, bridge and agent", sum(grown.values()), "KiB", 64, 64, told)


def start(scene: Scene) -> Iterable[Row]:
    run = [str(MBRIDGE), "run", "--network", scene.lab.outside, f"docker/{scene.lab.target.name}", scene.lab.programs_image, "true"]
    docker_run = ["docker", "run", "--rm", "--network", scene.lab.outside, scene.lab.programs_image, "true"]

    def timed(command: list[str]) -> float:
        started = time.perf_counter()
        done = subprocess.run(command, env=scene.cli.env(), capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr.decode(errors="replace")[-1000:]
        return time.perf_counter() - started

    timed(run)
    samples: dict[str, Any] = {"mbridge run": lambda: timed(run), "docker run": lambda: timed(docker_run)}
    taken = alternate(5, samples)
    detail = f"fastest {number(min(taken['mbridge run']))}; docker run of the same {number(median(taken['docker run']))}"
    yield Row("start", "mbridge run docker/T IMAGE true, to its end", median(taken["mbridge run"]), "s", 2.5, 1.5, detail)
    helped = [timed([str(MBRIDGE), "--help"]) * 1000 for _ in range(9)]
    bare = [timed([str(MBRIDGE.with_name("python")), "-c", "pass"]) * 1000 for _ in range(9)]
    detail = f"fastest {number(min(helped))}; python -c pass {number(median(bare))}"
    yield Row("help", "mbridge --help", median(helped), "ms", 250, 150, detail)


def names(scene: Scene) -> Iterable[Row]:
    """The same questions from the app and from a container beside the target, each to the nameserver of its resolv.conf."""
    boxes = {"app": scene.app, "beside": scene.lab.insider}
    for kind, name, count, must, goal in (("cached", "server.lab.test", 300, 200, 100), ("uncached", "wild.lab.test", 200, 2000, 500)):
        rounds = iter(range(100))

        def sample(box: Box, kind: str = kind, name: str = name, count: int = count, rounds: Any = rounds) -> float:
            fresh = f"r{next(rounds)}-" if kind == "uncached" else ""
            return median(traffic(box, "names", name=name, count=count, fresh=fresh)) * 1e6

        taken = alternate(5, {who: lambda box=box: sample(box) for who, box in boxes.items()})  # type: ignore[misc]
        more = median(one - other for one, other in zip(taken["app"], taken["beside"], strict=True))
        detail = f"app {number(median(taken['app']))} µs; asked directly {number(median(taken['beside']))} µs"
        yield Row(f"dns-{kind}", f"DNS, {kind}: more than asking directly", more, "µs", must, goal, detail)


def memory(scene: Scene) -> Iterable[Row]:
    """Of a session that has just begun: a busy one keeps what it has used."""
    with scene.another_app() as app:
        eventually(lambda: app.status()["state"] == "ready")
        time.sleep(2)
        for part, must, goal in (("bridge", 80, 70), ("agent", 60, 50)):
            yield Row(f"memory-{part}", f"resident memory, idle: {part}", resident(app.part(part)) / _MB, "MB", must, goal)


def images(scene: Scene) -> Iterable[Row]:
    base, agent = _packed("debian:bookworm-slim"), _packed(scene.agent.image.id)
    detail = f"{number(agent / _MB)} MB, its base {number(base / _MB)} MB, both through gzip -6"
    yield Row("image-agent", "agent image above its base", (agent - base) / _MB, "MB", 45, 35, detail)


def _packed(image: str) -> int:
    saved = subprocess.run(["docker", "save", image], capture_output=True, check=True, timeout=120).stdout
    return len(gzip.compress(saved, 6))

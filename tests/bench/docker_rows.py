"""The figures of a Docker target. Each function of ROWS measures one group of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from statistics import median

from tests.bench import far_rows, own_rows
from tests.bench.figures import Row, alternate, number, ratio
from tests.bench.scene import Scene, Way

BULK, SHUTTLE_BULK = 256 << 20, 16 << 20
GB = 1e9


def bulk(scene: Scene) -> Iterable[Row]:
    for way in ("up", "down"):
        yield from _bulk(scene, way)


def _bulk(scene: Scene, direction: str) -> Iterable[Row]:
    ours = (scene.mbridge, scene.carried)
    sizes = {way.name: (way, BULK) for way in (*ours, scene.ssh)} | {scene.sshuttle.name: (scene.sshuttle, SHUTTLE_BULK)}

    def sample(way: Way, size: int) -> Callable[[], float]:
        return lambda: size / 1e6 / way.metered(direction, size / GB, size=size)

    rates = alternate(5, {name: sample(*one) for name, one in sizes.items()})
    costs = {name: way.costs() for name, (way, _) in sizes.items()}
    told = {name: f"{name} {number(median(rates[name]))} MB/s (CPU s/GB: {costs[name]})" for name in sizes}
    for way in ours:
        for peer, must, goal in (("ssh -L", 0.9, 1.2), ("sshuttle", 20, 25)):
            what = f"bulk {direction}, one flow{_by(scene, way)}, against {peer}"
            value = ratio(rates[way.name], rates[peer])
            name = f"bulk-{direction}{_suffix(scene, way)}-{peer.split()[0]}"
            yield Row(name, what, value, "×", must, goal, f"{told[way.name]}; {told[peer]}", at_least=True)


def _by(scene: Scene, way: Way) -> str:
    return f" {way.name}" if way is scene.carried else ""


def _suffix(scene: Scene, way: Way) -> str:
    return "-carried" if way is scene.carried else ""


def latency(scene: Scene) -> Iterable[Row]:
    for name, function, count, must, goal in (("round-trip", "round_trips", 1000, 2, 1.5), ("connect", "connects", 100, 1.6, 1.0)):
        what = {"round-trip": "round trip on an open flow", "connect": "connect + first answer, the SYN held"}[name]

        def sample(way: Way, function: str = function, count: int = count) -> Callable[[], float]:
            return lambda: median(way.metered(function, count, count=count)) * 1e6

        ways = (scene.mbridge, scene.carried, scene.ssh)
        taken = alternate(7, {way.name: sample(way) for way in ways})
        told = {way.name: f"{way.name} {number(median(taken[way.name]))} µs (CPU µs each: {way.costs(1e6)})" for way in ways}
        for way in ways[:2]:
            said = f"{what}{_by(scene, way)}, against ssh -L"
            value = ratio(taken[way.name], taken["ssh -L"])
            yield Row(f"{name}{_suffix(scene, way)}", said, value, "×", must, goal, f"{told[way.name]}; {told['ssh -L']}")


ROWS: dict[str, Callable[[Scene], Iterable[Row]]] = {
    "bulk": bulk,
    "latency": latency,
    "many": own_rows.many,
    "far": far_rows.far,
    "start": own_rows.start,
    "dns": own_rows.names,
    "memory": own_rows.memory,
    "images": own_rows.images,
}

"""`./dev bench [NAME...] [--cluster] [--json FILE]`: the figures that the design asks for, each beside its peer.

Without names: all groups of the Docker target. `--cluster` adds those of the Kubernetes target, whose names begin with `k8s-`.
Exits with 1 where a figure falls short of what it must reach.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from tests.bench import docker_rows, kube_rows
from tests.bench.figures import Row, table
from tests.bench.scene import scene

_CLUSTER = "k8s-"
Groups = dict[str, Callable[[Any], Iterable[Row]]]


def say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


class Bench:
    """What was measured, and what could not be."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.failed: list[str] = []

    def measure(self, names: Sequence[str], groups: Groups, made: AbstractContextManager[Any]) -> None:
        if not names:
            return
        try:
            with made as on:
                for name in names:
                    self._group(name, groups[name], on)
        except Exception:  # a scene that cannot be made; the other one may
            self.failed += [name for name in names if name not in self.failed]
            traceback.print_exc()

    def _group(self, name: str, group: Callable[[Any], Iterable[Row]], on: Any) -> None:
        started = time.monotonic()
        try:
            for row in group(on):
                self.rows.append(row)
                say(f"{row.what}: {row.value:.3g} {row.unit}, {row.verdict}; {row.detail}")
        except Exception:  # one group's failure must not hide the others' figures
            self.failed.append(name)
            traceback.print_exc()
        say(f"{name} took {time.monotonic() - started:.0f} s")

    def report(self, json_path: Path | None) -> int:
        print(table(self.rows))
        if json_path is not None:
            json_path.write_text(json.dumps({"rows": [row.as_json() for row in self.rows], "failed": self.failed}, indent=1) + "\n")
        short = [row.what for row in self.rows if row.verdict == "SHORT"] + [f"{name}: not measured" for name in self.failed]
        for what in short:
            say(f"SHORT: {what}")
        return 1 if short else 0


def main() -> int:
    cluster = {_CLUSTER + name: group for name, group in kube_rows.ROWS.items()}
    known = [*docker_rows.ROWS, *cluster]
    parser = argparse.ArgumentParser(prog="./dev bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(known))
    parser.add_argument("--cluster", action="store_true", help="the groups of the Kubernetes target too")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the rows there as JSON too")
    words = parser.parse_args()
    if unknown := set(words.names) - set(known):
        parser.error(f"no group {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    names = words.names or list(docker_rows.ROWS)
    bench = Bench()
    bench.measure([name for name in names if name not in cluster], docker_rows.ROWS, scene())
    bench.measure(list(cluster) if words.cluster else [name for name in names if name in cluster], cluster, kube_rows.scene())
    return bench.report(words.json)


if __name__ == "__main__":
    sys.exit(main())

"""`./dev bench [NAME...] [--cluster] [--json FILE]`: the figures that an issue or the design asks for, each beside its peer."""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from pathlib import Path

from tests.bench.docker_rows import ROWS
from tests.bench.figures import Row, table
from tests.bench.scene import scene


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which groups: {', '.join(ROWS)} (all of them where none is named)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the rows there as JSON too")
    words = parser.parse_args()
    if unknown := set(words.names) - set(ROWS):
        parser.error(f"no group {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    rows: list[Row] = []
    failed: list[str] = []
    with scene() as made:
        for name in words.names or ROWS:
            started = time.monotonic()
            try:
                for row in ROWS[name](made):
                    rows.append(row)
                    made.say(f"{row.what}: {row.value:.3g} {row.unit}, {row.verdict}; {row.detail}")
            except Exception:  # one group's failure must not hide the others' figures
                failed.append(name)
                traceback.print_exc()
            made.say(f"{name} took {time.monotonic() - started:.0f} s")
    print(table(rows))
    if words.json is not None:
        words.json.write_text(json.dumps({"rows": [row.as_json() for row in rows], "failed": failed}, indent=1) + "\n")
    short = [row.what for row in rows if row.verdict == "SHORT"]
    for what in (*short, *(f"{name}: could not be measured" for name in failed)):
        print(f"bench: SHORT: {what}", file=sys.stderr)
    return 1 if short or failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Entry point of the bridge's container.

    python -m bridge.sidecar [serve]                      the bridge: waits at its door to be configured
    python -m bridge.sidecar door control                 stdio of an exec, joined to the door's control connection
    python -m bridge.sidecar door carrier ID [VIA]        … handed to the bridge as a carrier
    python -m bridge.sidecar probe                        what this kernel and these rights allow, as JSON

Imports happen in the branch that needs them: a carrier's start is part of a reconnect's time.
"""

from __future__ import annotations

import sys


def main(words: list[str]) -> int:
    match words:
        case [] | ["serve"]:
            from bridge.sidecar.running import main as serve

            return serve()
        case ["door", "control"] | ["door", "carrier", _] | ["door", "carrier", _, _]:
            from bridge.sidecar.door import join_stdio

            try:
                return join_stdio(words[1:])
            except (OSError, ValueError) as exc:
                print(f"the bridge's door is closed: {exc}", file=sys.stderr)
                return 1
        case ["probe"]:
            from bridge.sidecar.probe import main as probe

            return probe()
    print((__doc__ or "").strip(), file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

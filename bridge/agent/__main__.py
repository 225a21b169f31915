"""Entry points of the agent's image: serve (default), `door`, `environ`. What each needs is imported where it is used."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

_SOCKET_PATH = "/run/mbridge/agent.sock"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="mbridge-agent")
    parser.add_argument("--listen", choices=("any", "loopback"), default="loopback", help="where the carriers' TCP port is open")
    parser.add_argument("--key", help='the one client key, "ssh-ed25519 AAAA…"')
    parser.add_argument("--ttl", type=float, default=180.0, help="seconds without a link after which the agent ends")
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("door", help="join stdin and stdout to the running agent")
    environ = commands.add_parser("environ", help="print the environment of the target's process")
    environ.add_argument("pid", nargs="?", type=int)
    environ.add_argument("--container", help="its container's id")
    chosen = parser.parse_args(arguments)
    socket_path = Path(os.environ.get("MBRIDGE_AGENT_SOCKET", _SOCKET_PATH))

    if chosen.command == "door":
        from bridge.agent import door

        return door.run(socket_path)
    if chosen.command == "environ":
        from bridge.agent import environ as reading

        return reading.run(chosen.pid, chosen.container)
    if not chosen.key:
        parser.error("--key is needed to serve")
    if chosen.ttl <= 0:
        parser.error("--ttl is a number of seconds above 0")
    return _serve(chosen.listen, chosen.key, chosen.ttl, socket_path)


def _serve(listen: str, key: str, ttl_s: float, socket_path: Path) -> int:
    import uvloop

    from bridge.agent import serving

    serving.configure_log()
    serving.harden()
    try:
        return uvloop.run(serving.serve(listen=listen, client_key=key, ttl_s=ttl_s, socket_path=socket_path))
    except (OSError, ValueError) as exc:
        print(f"mbridge: error: the agent cannot start: {exc}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

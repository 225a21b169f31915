"""`python -m bridge.agent environ`: prints the target process's environment, byte for byte as in /proc/PID/environ (proc(5)).

The target's process is the oldest one whose cgroup names the container; without a container's id it is the PID given, or 1.
It runs in the target's PID namespace, in a container of its own, and ends at once. Values go to stdout and nowhere else.
"""

from __future__ import annotations

import sys
from pathlib import Path

_MOST_CGROUP = 64 << 10


def run(pid: int | None, container: str | None, proc: Path = Path("/proc")) -> int:
    """Returns the exit code."""
    if container is not None:
        pid = find(container, proc)
        if pid is None:
            print(f"mbridge: error: no process of container {container[:12]} is visible from here", file=sys.stderr)
            return 1
    try:
        data = (proc / str(pid or 1) / "environ").read_bytes()
    except OSError as exc:
        print(f"mbridge: error: cannot read the environment of process {pid or 1}: {(exc.strerror or str(exc)).lower()}", file=sys.stderr)
        return 1
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
    return 0


def find(container: str, proc: Path) -> int | None:
    """The oldest process of that container."""
    found: list[tuple[int, int]] = []
    for entry in proc.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if container in (entry / "cgroup").read_text()[:_MOST_CGROUP]:
                found.append((_started(entry), int(entry.name)))
        except (OSError, ValueError, IndexError):
            continue  # gone meanwhile
    return min(found)[1] if found else None


def _started(entry: Path) -> int:
    """proc_pid_stat(5), field 22; the name in field 2 may hold anything but is the last to end with a parenthesis."""
    return int((entry / "stat").read_text().rpartition(")")[2].split()[19])

"""`./dev test`: each level of tests in a pytest process of its own, one after another, and one sum at the end.

    python tests/levels.py [LEVEL...] [--scenario A03] [PYTEST OPTION...]

Theory of operation: a level that hangs is ended by its own time limit and counted as a failure, and the next one still
runs. A test that failed runs once more at the end, alone, in a fresh process: what passes then is called UNSTABLE in the
closing lines, and the run stays green. That line is there to be read: an unstable test is a bug, in it or in mbridge.

The last line is the plain count, alone: `N passed, N failed, N skipped`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
# In the order of their run: what is quick and tells most comes first. Limits in seconds, about three times what a level takes.
LIMITS = {"unit": 240, "assumptions": 240, "fuzz": 300, "netns": 600, "container": 1500, "engine": 600, "cluster": 2400}
ONCE_MORE_S = 300
ONCE_MORE_MAX = 15  # more failures than that are no matter of luck
EXIT_FAILED = 1


@dataclass
class Outcome:
    """What became of each test: its id → passed, failed or skipped, and for the latter two why."""

    outcomes: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    unfinished: str | None = None

    def take(self, line: dict[str, str]) -> None:
        test, outcome = line["test"], line["outcome"]
        if outcome == "started":
            self.unfinished = test
            return
        self.unfinished = None
        if self.outcomes.get(test) == "failed":  # a teardown that fails after a call that failed: the first reason counts
            return
        self.outcomes[test] = outcome
        if text := line.get("text"):
            self.texts[test] = text

    def named(self, outcome: str) -> list[str]:
        return [test for test, became in self.outcomes.items() if became == outcome]


def main(args: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="./dev test", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("levels", nargs="*", metavar="LEVEL", help=", ".join(LIMITS))
    parser.add_argument("--scenario", action="append", default=[], metavar="A03", help="only tests of this scenario; may be repeated")
    parser.add_argument("--clean", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--clean-images", action="store_true", help=argparse.SUPPRESS)
    ours, rest = _split(args)
    options = parser.parse_args(ours)
    if options.clean or options.clean_images:
        return _clean(images=options.clean_images)
    if unknown := set(options.levels) - set(LIMITS):
        parser.error(f"no level {', '.join(sorted(unknown))}; there are {', '.join(LIMITS)}")
    if options.scenario:
        rest += ["-k", " or ".join(f"test_{_padded(name)}_" for name in options.scenario)]
    sum_of = Outcome()
    began = time.monotonic()
    for level in [level for level in LIMITS if level in (options.levels or LIMITS)]:
        _run_level(level, rest, sum_of)
    unstable = _once_more(sum_of)
    return _close(sum_of, unstable, time.monotonic() - began)


def _split(args: list[str]) -> tuple[list[str], list[str]]:
    """Our words, and pytest's: from the first option on that is not ours."""
    taken = 0
    while taken < len(args):
        if args[taken] == "--scenario":
            taken += 2
        elif args[taken].startswith("--scenario="):
            taken += 1
        elif args[taken].startswith("-") and args[taken] not in ("-h", "--help", "--clean", "--clean-images"):
            break
        else:
            taken += 1
    return args[:taken], args[taken:]


def _padded(name: str) -> str:
    """`A3` and `a03` are test_A03_…"""
    match = re.fullmatch(r"([A-Za-z])0*(\d+)", name)
    return f"{match[1].upper()}{int(match[2]):02d}" if match else name


def _run_level(level: str, rest: list[str], sum_of: Outcome) -> None:
    folder = ROOT / "tests" / level
    if not folder.is_dir():
        return
    print(f"== {level}", flush=True)
    _prepare(level)
    began = time.monotonic()
    found, ended = _pytest([str(folder.relative_to(ROOT)), *rest], LIMITS[level])
    if ended == "time":
        # named after the level, so that it does not run once more: the tests behind it have not run at all
        found.take({"test": f"tests/{level}", "outcome": "failed",
                    "text": f"the level's {LIMITS[level]} s were over while {found.unfinished or 'nothing'} ran"})  # fmt: skip
    elif ended not in (0, 1, 5) or (found.unfinished and ended != 0):  # 5: nothing was selected
        found.take({"test": f"tests/{level}", "outcome": "failed",
                    "text": f"pytest ended with {ended} while {found.unfinished or 'nothing'} ran"})  # fmt: skip
    count = Counter(found.outcomes.values())
    print(f"== {level}: {count['passed']} passed, {count['failed']} failed, {count['skipped']} skipped "
          f"in {time.monotonic() - began:.0f} s", flush=True)  # fmt: skip
    sum_of.outcomes |= found.outcomes
    sum_of.texts |= found.texts


def _prepare(level: str) -> None:
    """What is built once for a machine, outside the tests' limits in time. Where it fails, the tests' fixtures say why."""
    began = time.monotonic()
    try:
        if level in ("container", "engine", "cluster"):
            subprocess.run([Path(sys.executable).with_name("mbridge"), "images", "build"], stdout=subprocess.DEVNULL, check=True)
        if level in ("container", "engine"):
            import docker

            from tests.lab import images

            client = docker.from_env(timeout=900)
            for which in images.FOLDERS:
                images.ensure(client, which)
        if level == "engine" and os.geteuid() == 0:
            subprocess.run([ROOT / "tests" / "engine" / "engine", "build"], stdout=subprocess.DEVNULL, check=True)
        if level == "cluster" and os.geteuid() == 0 and "MBRIDGE_TEST_KUBECONFIG" not in os.environ:
            subprocess.run([ROOT / "tests" / "cluster" / "cluster", "build"], stdout=subprocess.DEVNULL, check=True)
    except Exception as error:
        print(f"== {level}: not prepared: {error}", flush=True)
    if time.monotonic() - began > 5:
        print(f"== {level}: prepared in {time.monotonic() - began:.0f} s", flush=True)


def _pytest(args: list[str], limit_s: float) -> tuple[Outcome, int | str]:
    """One pytest process; its exit code, or "time" where it had to be ended."""
    found = Outcome()
    with tempfile.TemporaryDirectory(prefix="mbridge-test-") as folder:
        report = Path(folder, "report")
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--tb=no", "-rN", "--no-header", "-q",
                   "--durations=10", "--durations-min=10",
                   f"--mbridge-report={report}", *args]  # fmt: skip
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, start_new_session=True)
        ended: int | str
        try:
            ended = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            ended = "time"
            _end(process)
        except KeyboardInterrupt:
            _end(process)
            raise
        with contextlib.suppress(FileNotFoundError):
            for line in report.read_text().splitlines():
                found.take(json.loads(line))
    return found, ended


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGINT first, so that fixtures are torn down; what is left after 30 s is killed with its whole process group."""
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(30)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _once_more(sum_of: Outcome) -> list[str]:
    """Run each failed test again, alone; those that pass are taken out of the failures and returned."""
    failed = sum_of.named("failed")
    again = [test for test in failed if "::" in test]
    if not again or len(failed) > ONCE_MORE_MAX:
        return []
    print(f"== once more, each alone: {len(again)}", flush=True)
    unstable = []
    for test in again:
        found, _ = _pytest([test], ONCE_MORE_S)
        if found.outcomes.get(test) == "passed":
            sum_of.outcomes[test] = "passed"
            unstable.append(test)
    return unstable


def _close(sum_of: Outcome, unstable: list[str], seconds: float) -> int:
    reasons = Counter(sum_of.texts.get(test, "") for test in sum_of.named("skipped"))
    for reason, times in reasons.most_common():
        print(f"SKIPPED {times} x {reason}")
    for test in sum_of.named("failed"):
        print(f"\n____ FAILED {test}\n{sum_of.texts.get(test, '').rstrip()}")
    for test in sum_of.named("failed"):
        print(f"FAILED {test}")
    for test in unstable:
        print(f"UNSTABLE {test}: failed, then passed alone; find out why: {_last_line(sum_of.texts.get(test, ''))}")
    count = Counter(sum_of.outcomes.values())
    print(f"{seconds:.0f} s")
    print(f"{count['passed']} passed, {count['failed']} failed, {count['skipped']} skipped", flush=True)
    return EXIT_FAILED if count["failed"] or not sum_of.outcomes else 0


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.startswith("E ")] or text.splitlines() or [""]
    return lines[0].removeprefix("E").strip()[:160]


def _clean(images: bool) -> int:
    """Remove what tests that were killed have left on the engine: all that carries their label."""
    import docker

    client = docker.from_env()
    for container in client.containers.list(all=True, filters={"label": "mbridge.test"}):
        container.remove(force=True, v=True)
    for network in client.networks.list(filters={"label": "mbridge.test"}):
        network.reload()
        for container in network.containers:  # of sessions whose state folder went with the test that made them
            container.remove(force=True, v=True)
        network.remove()
    if images:
        for label in ("mbridge.test", "mbridge.image"):
            for image in client.images.list(filters={"label": label}):
                client.images.remove(image.id, force=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

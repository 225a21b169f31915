"""`mbridge up -d`: the host process that stays, and how the command waits until it is ready.

Theory of operation: the command starts `python -m bridge.cli.detached` in a session of its own and gives it the wishes by stdin
(they may hold values of environments, which no argument list may). While it starts it shares the command's stderr, so steps and
warnings are seen as they come; by stdout it answers in JSON lines:

    {"app": "orders", "ready": "kqzwtb"}      one for each session
    {"error": message, "hint": …, "exit": 4}  it cannot be; what was made is undone

When all are ready it lets go of stdin, stdout and stderr and serves on; what it has to tell goes to the sessions' logs. Ctrl-C
before that ends it in order. Limits: both ends are the same installation, so wishes pass as pickles.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from bridge.cli.ui import Ui
from bridge.errors import BridgeError
from bridge.model.wish import SessionWish

_UNDO_S = 60


def start(wishes: Sequence[SessionWish], ui: Ui) -> list[str]:
    """Start the process and wait; the sessions' ids in the order of the wishes. Raises what kept them from starting."""
    # -P: the user's folder may hold a `bridge` or a `json` of its own, which must not be imported.
    command = [sys.executable, "-P", "-m", "bridge.cli.detached"]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    assert child.stdin is not None
    assert child.stdout is not None
    ready: dict[str, str] = {}
    try:
        with contextlib.suppress(BrokenPipeError), child.stdin:
            pickle.dump((list(wishes), ui.level), child.stdin)
        for line in child.stdout:
            answer: dict[str, Any] = json.loads(line)
            if "error" in answer:
                child.wait(_UNDO_S)
                raise _error(answer)
            ready[answer["app"]] = answer["ready"]
            if len(ready) == len(wishes):
                return [ready[wish.app_name] for wish in wishes]
    except BaseException:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_UNDO_S)
        raise
    raise BridgeError(
        f"the host process ended with {child.wait(_UNDO_S)} before its sessions were ready", hint="mbridge up, without -d, shows why"
    )


def _error(answer: dict[str, Any]) -> BridgeError:
    error = BridgeError(str(answer["error"]), hint=answer["hint"])
    error.exit_code = int(answer["exit"])
    return error


def main() -> int:
    """The process that stays."""
    from bridge.cli.several import up_several

    wishes, level = pickle.load(sys.stdin.buffer)
    answers = os.dup(1)
    os.set_inheritable(answers, False)
    _to_nowhere(0, 1)
    ui = Ui(level=level)
    waiting = {wish.app_name for wish in wishes}

    def on_ready(app: str, session: str) -> None:
        _answer(answers, {"app": app, "ready": session})
        waiting.discard(app)
        if not waiting:
            os.close(answers)
            _to_nowhere(2)

    def teller(app: str) -> Ui:
        return ui.prefixed(app) if len(wishes) > 1 else ui

    try:
        return asyncio.run(up_several(wishes, teller, attach=False, on_ready=on_ready))
    except BridgeError as error:
        if waiting:
            _answer(answers, {"error": error.message, "hint": error.hint, "exit": error.exit_code})
        return error.exit_code


def _answer(fd: int, value: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # the command was killed: the session goes on
        os.write(fd, json.dumps(value).encode() + b"\n")


def _to_nowhere(*fds: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fd in fds:
        os.dup2(nowhere, fd)
    os.close(nowhere)


if __name__ == "__main__":
    sys.exit(main())

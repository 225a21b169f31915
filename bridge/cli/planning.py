"""`--dry-run`: the plan in words or as JSON; nothing is made."""

from __future__ import annotations

from collections.abc import Sequence

from bridge.cli.main import Caller
from bridge.cli.ui import printable
from bridge.model.wish import SessionWish


def show(caller: Caller, wishes: Sequence[SessionWish], as_json: bool) -> int:
    plans = [caller.wiring.plan(wish) for wish in wishes]
    if as_json:
        caller.ui.json([plan.to_json() for plan in plans])
        return 0
    for number, (wish, plan) in enumerate(zip(wishes, plans, strict=True)):
        caller.ui.say(
            ("\n" if number else "") + f"{plan.target} with {printable(wish.app.image)}: {len(plan.steps)} steps, undone backwards"
        )
        for place, line in enumerate(plan.lines(), start=1):
            caller.ui.say(f"  {place:>2}  {printable(line)}")
    return 0

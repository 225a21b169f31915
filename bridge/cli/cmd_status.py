"""`mbridge status`: what is bridged, since when, how it is doing, and why not."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from bridge.cli.main import Caller
from bridge.cli.options import Command, common, json_option, session_argument
from bridge.cli.ui import Ui, ago, printable

if TYPE_CHECKING:
    from bridge.model.session import SessionStatus

EXAMPLES = """\
  mbridge status                  all sessions of this machine
  mbridge status kqzwtb --json    one of them, for programs
  mbridge status --watch          until Ctrl-C, at each change
"""
_EMPTY = "no session; start one: mbridge run docker/NAME IMAGE"


@click.command("status", cls=Command, examples=EXAMPLES)
@session_argument
@json_option
@click.option("--watch", is_flag=True, help="Go on, and show each change.")
@click.option("--interval", metavar="SECONDS", type=click.FloatRange(min=0.1), default=1.0, show_default=True, help="Of --watch.")
@common
@click.pass_obj
def command(caller: Caller, /, session: str | None, as_json: bool, watch: bool, interval: float) -> int:
    """What is bridged, since when, how it is doing, and why not.

    With --json, a list of {id, target, state, since, why, link: {via, state, since}, agent, ports, warnings}; with --watch, one
    such list a line at each change. A state is starting, ready, reconnecting, stopping or failed. LINK says by what the link goes, and
    `handed` where the app's TCP does not: on one engine with the target its connections are given to the agent itself.
    """
    shown: object = None
    while True:
        found = chosen(caller.wiring.sessions(), session)
        picture = _json(found, watch) if as_json else _drawn(caller.ui, found)
        # On a terminal the picture's clocks run; elsewhere a line more is a change of what it tells, which is not the flows.
        clocks = caller.ui.on_terminal(caller.ui.out) or as_json
        told = picture if clocks else [replace(one, flows=0) for one in found]
        if told != shown:
            shown = told
            if not found and not as_json:
                caller.ui.note(_EMPTY)
            elif watch and not as_json:
                caller.ui.redraw(picture)
            else:
                caller.ui.say(picture)
        if not watch:
            return 0
        time.sleep(interval)


def chosen(sessions: Sequence[SessionStatus], wanted: str | None) -> list[SessionStatus]:
    """The session called `wanted`, or all. Raises SpecError with the nearest id."""
    from bridge.errors import SpecError

    if wanted is None:
        return list(sessions)
    found = [one for one in sessions if wanted in (one.id, one.app)] or [one for one in sessions if one.id.startswith(wanted)]
    if not found:
        ids = ", ".join(f"{one.id} ({one.target})" for one in sessions)
        raise SpecError(f"no session is called {wanted!r}", hint=f"there are: {ids}" if ids else "mbridge status")
    return found


def _json(found: Sequence[SessionStatus], one_line: bool) -> str:
    import json

    return json.dumps([one.to_json() for one in found], indent=None if one_line else 2)


def _drawn(ui: Ui, found: Sequence[SessionStatus]) -> str:
    if not found:
        return ""
    header = ("SESSION", "TARGET", "STATE", "SINCE", "LINK", "AGENT", "PORTS")
    rows = [[printable(cell) for cell in _row(one)] for one in found]
    lines = ui.laid_out(header, rows).splitlines()
    drawn = [lines[0]]
    for line, one in zip(lines[1:], found, strict=True):
        drawn.append(line)
        drawn += [f"  {printable(text)}" for text in _beneath(one)]
    return "\n".join(drawn)


def _row(one: SessionStatus) -> tuple[str, ...]:
    link = " ".join(word for word in (one.link.via, one.link.state, "handed" if one.handed else None) if word)
    name = one.target if one.app in (None, "app") else f"{one.target} ({one.app})"
    return one.id, name, one.state.value, _since(one.since), link, one.agent or "-", ", ".join(one.ports) or "-"


def _beneath(one: SessionStatus) -> list[str]:
    """What the reader would ask next: why not, and what is degraded."""
    lines = [f"why: {one.why}"] if one.why else []
    if one.link.state != "up" and one.link.since:
        lines.append(f"the link is {one.link.state} since {_since(one.link.since)}")
    return lines + [f"warning: {warning}" for warning in one.warnings]


def _since(moment: str) -> str:
    """The span since a moment in ISO 8601; the text as it is where it is none."""
    try:
        return ago((datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds())
    except (ValueError, TypeError):
        return moment

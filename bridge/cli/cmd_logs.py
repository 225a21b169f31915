"""`mbridge logs [SESSION]`: what the session's parts have logged, in one stream."""

from __future__ import annotations

import click

from bridge.cli.main import Caller
from bridge.cli.options import Command, common, session_argument

EXAMPLES = """\
  mbridge logs                          of the only session there is: all but the app's
  mbridge logs kqzwtb --part bridge     one part
  mbridge logs --follow --tail 20
"""
PARTS = ("host", "bridge", "agent", "app")


@click.command("logs", cls=Command, examples=EXAMPLES)
@session_argument
@click.option(
    "--part", "parts", type=click.Choice(PARTS), multiple=True, help="Only this part (repeat). Without it: host, bridge and agent."
)
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes.")
@click.option("--tail", metavar="LINES", type=click.IntRange(min=0), default=None, help="The last lines of each part alone.")
@common
@click.pass_obj
def command(caller: Caller, /, session: str | None, parts: tuple[str, ...], follow: bool, tail: int | None) -> int:
    """What the parts of a session have logged: the host process, the bridge, the agent, the app.

    Environment values and tokens are never in these logs.
    """
    one = the_only(caller, session)
    return caller.wiring.logs(one, parts or PARTS[:3], follow, tail, caller.ui)


def the_only(caller: Caller, wanted: str | None) -> str:
    """The id of the session that is meant. Raises SpecError where that is none or several."""
    from bridge.cli.cmd_status import chosen
    from bridge.errors import SpecError

    found = chosen(caller.wiring.sessions(), wanted)
    if not found:
        raise SpecError("no session is running", hint="mbridge run docker/NAME IMAGE")
    if len(found) > 1:
        ids = ", ".join(f"{one.id} ({one.target})" for one in found)
        raise SpecError("several sessions are meant; which?", hint=f"name one of: {ids}")
    return found[0].id

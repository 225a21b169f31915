"""`mbridge down [SESSION | --all]`: undo, also after kill -9 of everything; twice is fine."""

from __future__ import annotations

import click

from bridge.cli.main import Caller
from bridge.cli.options import Command, common, complete_session
from bridge.errors import SpecError

EXAMPLES = """\
  mbridge down              the only session there is
  mbridge down kqzwtb       this one
  mbridge down --all        all of yours on this machine
"""


@click.command("down", cls=Command, examples=EXAMPLES)
@click.argument("names", metavar="[SESSION…]", nargs=-1, shell_complete=complete_session)
@click.option("--all", "everything", is_flag=True, help="Every session of yours, and what is left of dead ones.")
@common
@click.pass_obj
def command(caller: Caller, /, names: tuple[str, ...], everything: bool) -> int:
    """End sessions and undo all that they changed: containers, networks, agents, files.

    Works after kill -9 and after a reboot too. To end what has ended already, or nothing, is fine.
    """
    if names and everything:
        raise SpecError("--all goes without names of sessions")
    running = caller.wiring.sessions()
    if not names and not everything and len(running) > 1:
        ids = ", ".join(f"{one.id} ({one.target})" for one in running)
        raise SpecError("several sessions are running; which?", hint=f"mbridge down --all, or one of: {ids}")
    wanted = [one.id for one in running if not names or any(name in (one.id, one.app) for name in names)]
    for name in names:  # it may have ended by itself, or by another `down`: no mistake
        if not any(name in (one.id, one.app) for one in running):
            wanted.append(name)
    ended = caller.wiring.down(wanted, everything, caller.ui)
    if not ended:
        caller.ui.note(f"nothing to end{': no session is called ' + ' or '.join(names) if names else ''}")
    return 0

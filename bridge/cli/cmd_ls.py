"""`mbridge ls [KIND]`: what can be a target, and why something cannot."""

from __future__ import annotations

import click

from bridge.cli.main import Caller
from bridge.cli.options import Command, common, docker_context_option, json_option

EXAMPLES = """\
  mbridge ls                  all kinds
  mbridge ls compose          services of compose projects
  mbridge ls docker --json    for programs
"""
KINDS = ("docker", "compose")


@click.command("ls", cls=Command, examples=EXAMPLES)
@click.argument("kind", metavar="[KIND]", type=click.Choice(KINDS), required=False)
@docker_context_option
@json_option
@common
@click.pass_obj
def command(caller: Caller, /, kind: str | None, docker_context: str | None, as_json: bool) -> None:
    """What can be a target (KIND: docker or compose), and why something cannot."""
    listed = caller.wiring.targets(kind, docker_context)
    if as_json:
        caller.ui.json([{"target": one.target, "what": one.what, "state": one.state, "why_not": one.why_not} for one in listed])
        return
    rows = [(one.target, one.what, one.state, one.why_not or "") for one in listed]
    caller.ui.table(("TARGET", "IMAGE", "STATE", "WHY NOT"), rows, empty="the engine runs no container that could be a target; docker ps")

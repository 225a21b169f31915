"""`mbridge up`: what mbridge.yaml says; Ctrl-C is down, -d leaves it running."""

from __future__ import annotations

from typing import Any

import click

from bridge.cli.main import Caller
from bridge.cli.options import (
    Command,
    agent_options,
    common,
    complete_target,
    config_option,
    env_options,
    json_option,
    stacked,
    where_options,
)
from bridge.errors import SpecError

EXAMPLES = """\
  mbridge up                        all that mbridge.yaml describes, until Ctrl-C
  mbridge up orders                 one of its apps
  mbridge up docker/shop-api        the file's app beside another target
  mbridge up -d                     leave it running; prints the ids when it is ready
  mbridge up --dry-run              what would be done
"""


@click.command("up", cls=Command, examples=EXAMPLES)
@click.argument("names", metavar="[TARGET | APP…]", nargs=-1, shell_complete=complete_target)
@click.option("-d", "--detach", is_flag=True, help="Leave it running; print the sessions' ids when ready.")
@click.option("--dry-run", is_flag=True, help="Print the plan and change nothing.")
@stacked(where_options, agent_options, env_options, config_option, json_option)
@common
@click.pass_obj
def command(
    caller: Caller, /, names: tuple[str, ...], detach: bool, dry_run: bool, as_json: bool, config_file: str | None, **options: Any
) -> int:
    """Start what mbridge.yaml describes: `app.image`, or several under `apps:`, side by side.

    Each app is a session of its own, its output prefixed with its name where there are several. Ctrl-C ends them and undoes
    what they changed. A name with a slash is a target and replaces the file's; other names pick apps.
    """
    from bridge.cli import settings

    targets = [name for name in names if "/" in name or name == "targetless"]
    if len(targets) > 1:
        raise SpecError(f"several targets: {', '.join(targets)}", hint="each app names its own in mbridge.yaml, under apps:")
    if as_json and not (dry_run or detach):
        raise SpecError("--json goes with --dry-run or -d")
    if targets:
        options["target"] = targets[0]
    found = settings.load(caller.environ, config_file, options)
    wishes = settings.wishes(found, [name for name in names if name not in targets])
    if dry_run:
        from bridge.cli.planning import show

        return show(caller, wishes, as_json)
    if not detach:
        return caller.wiring.up(wishes, caller.ui)
    ids = caller.wiring.up_detached(wishes, caller.ui)
    if as_json:
        caller.ui.json(ids)
    else:
        for one in ids:
            caller.ui.say(one)
    return 0

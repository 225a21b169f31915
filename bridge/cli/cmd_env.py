"""`mbridge env TARGET`: the target's environment, less what would break programs of this machine."""

from __future__ import annotations

from typing import Any, cast

import click

from bridge.cli.main import Caller
from bridge.cli.options import Command, agent_options, common, config_option, env_options, stacked, target_argument, where_options

EXAMPLES = """\
  mbridge env docker/shop-api                                  as dotenv
  eval "$(mbridge env docker/shop-api --format shell)"         into this shell
  mbridge env compose/shop/api --format json --env-include 'PG*'
"""
FORMS = ("dotenv", "json", "shell", "compose")  # as model/environ.py, which --help must not import


@click.command("env", cls=Command, examples=EXAMPLES)
@target_argument()
@click.option("--format", "form", type=click.Choice(FORMS), default="dotenv", show_default=True, help="How it is written.")
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@stacked(env_options, where_options, agent_options, config_option)
@common
@click.pass_obj
def command(caller: Caller, /, target: str, form: str, as_json: bool, config_file: str | None, **options: Any) -> None:
    """Print the environment of TARGET's own process, secrets and config references resolved.

    Left out by default: PATH, HOME, and what would redirect programs of this machine (LD_*, GIT_*, *_PROXY, …).
    """
    from bridge.cli import settings
    from bridge.model.environ import Form, choose, parse_environ, render

    wish = settings.target_wish(caller.environ, config_file, target, options)
    chosen = choose(parse_environ(caller.wiring.environ(wish, caller.ui)), wish.env)
    caller.ui.write(render(chosen, cast(Form, "json" if as_json else form)).encode())

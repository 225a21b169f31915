"""`mbridge config show|check|schema`: the settings, and where each value came from."""

from __future__ import annotations

from typing import Any

import click

from bridge.cli.main import Caller
from bridge.cli.options import Command, agent_options, common, config_option, env_options, json_option, stacked, where_options

EXAMPLES = """\
  mbridge config show                       every value and its origin: flag, MBRIDGE_*, file and line, or default
  mbridge config show --via exec            as `run` with that flag would see it
  mbridge config check                      all faults of mbridge.yaml at once
  mbridge config schema > schema.json       for an editor
"""


@click.group("config", epilog=f"\b\nExamples:\n{EXAMPLES}")
@common
def command() -> None:
    """Show or check the settings. A flag beats MBRIDGE_* beats mbridge.yaml beats the default."""


@command.command("show", cls=Command, examples="  mbridge config show\n  mbridge config show --all --json\n")
@click.option("--all", "everything", is_flag=True, help="Defaults too.")
@stacked(where_options, agent_options, env_options, config_option, json_option)
@common
@click.pass_obj
def show(caller: Caller, /, everything: bool, as_json: bool, config_file: str | None, **options: Any) -> None:
    """Show every value that is set, and where it came from."""
    from bridge.cli import settings

    values = settings.with_origins(settings.load(caller.environ, config_file, options))
    chosen = [one for one in values if everything or one.origin != "default"]
    if as_json:
        caller.ui.json({one.key: {"value": one.value, "origin": one.origin} for one in chosen})
        return
    rows = [(one.key, settings.as_text(one.value), one.origin) for one in chosen]
    caller.ui.table(("KEY", "VALUE", "FROM"), rows, empty="nothing is set; all values are defaults: mbridge config show --all")


@command.command("check", cls=Command, examples="  mbridge config check\n  mbridge config check --config other.yaml\n")
@config_option
@common
@click.pass_obj
def check(caller: Caller, /, config_file: str | None) -> None:
    """Name all faults of mbridge.yaml at once.

    Each with its line; exit code 2 where there is one.
    """
    from bridge.cli import settings
    from bridge.errors import SpecError

    found = settings.load(caller.environ, config_file, {})
    if found.path is None:
        raise SpecError("there is no mbridge.yaml here", hint="mbridge init TARGET writes one; --config FILE names another")
    count = len(settings.wishes(found, ()))
    caller.ui.note(f"{found.path} is fine: {count} app{'s' if count > 1 else ''}")


@command.command("schema", cls=Command, examples="  mbridge config schema > mbridge.schema.json\n")
@common
@click.pass_obj
def schema(caller: Caller) -> None:
    """Print the JSON Schema of mbridge.yaml."""
    from bridge.model.config_schema import schema as made

    caller.ui.json(made())

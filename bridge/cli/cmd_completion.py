"""`mbridge completion SHELL`: the script that a shell loads to complete commands, options, targets and sessions."""

from __future__ import annotations

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

from bridge.cli.main import Caller, cli
from bridge.cli.options import Command, common

EXAMPLES = """\
  source <(mbridge completion bash)                                       in ~/.bashrc
  source <(mbridge completion zsh)                                        in ~/.zshrc
  mbridge completion fish > ~/.config/fish/completions/mbridge.fish
"""
_KINDS: dict[str, type[ShellComplete]] = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}


@click.command("completion", cls=Command, examples=EXAMPLES)
@click.argument("shell", type=click.Choice(list(_KINDS)))
@common
@click.pass_obj
def command(caller: Caller, /, shell: str) -> None:
    """Print the completion script of bash, zsh or fish.

    Targets and sessions are completed too, by asking the engine when you press Tab.
    """
    kind = _KINDS[shell](cli, {}, "mbridge", "_MBRIDGE_COMPLETE")
    # Not `kind.source()`: that runs a bash to learn its version, and bash need not be on this machine.
    caller.ui.say(kind.source_template % kind.source_vars())

"""Writes docs/commands.md from the commands' own help, so that it cannot say anything else: `.venv/bin/python docs/make_commands.py`."""

from __future__ import annotations

from pathlib import Path

import click

from bridge.cli.main import COMMANDS, cli

HEAD = """\
# Commands

Made by docs/make_commands.py from the commands' own help. `--help` after any of them shows the same.

`run` ends with the app's exit code, or 125 where mbridge itself failed before it. All other commands:

| exit | kind |
|---|---|
| 0 | done |
| 1 | anything else that went wrong |
| 2 | a flag, or a line of mbridge.yaml |
| 3 | this machine or its engine |
| 4 | the target's side |
| 5 | the link |
| 6 | a peer that breaks the protocol |
| 7 | something is left behind; the message names the command that removes it |
| 130 | Ctrl-C |
"""


def text() -> str:
    parts = [HEAD]
    root = click.Context(cli, info_name="mbridge", terminal_width=110, help_option_names=["-h", "--help"])
    for name in COMMANDS:
        command = cli.get_command(root, name)
        assert command is not None
        parts += _help(command, root, name)
    return "\n".join(parts)


def _help(command: click.Command, parent: click.Context, name: str) -> list[str]:
    context = click.Context(command, parent, info_name=name, terminal_width=110, max_content_width=110)
    parts = [f"\n## {context.command_path}\n\n```\n{command.get_help(context)}\n```" if parent.parent is None
             else f"\n### {context.command_path}\n\n```\n{command.get_help(context)}\n```"]  # fmt: skip
    if isinstance(command, click.Group):
        for below in command.list_commands(context):
            found = command.get_command(context, below)
            assert found is not None
            parts += _help(found, context, below)
    return parts


if __name__ == "__main__":
    Path(__file__).with_name("commands.md").write_text(text() + "\n")

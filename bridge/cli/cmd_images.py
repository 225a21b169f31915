"""`mbridge images`: the images of bridge and agent, built on the user's engine; no registry of ours is needed."""

from __future__ import annotations

from pathlib import Path

import click

from bridge.cli.main import Caller
from bridge.cli.options import Command, common, docker_context_option, json_option

EXAMPLES = """\
  mbridge images ls
  mbridge images build                                    before the first `run`, so that it starts at once
  mbridge images save mbridge.tar                         here, and on a machine without a network:
  mbridge images load mbridge.tar
  mbridge images push registry.example/team/mbridge       then agent.image in mbridge.yaml names what it prints
"""
WHICH = ("bridge", "agent")
_which = click.argument("which", metavar="[bridge|agent]…", nargs=-1, type=click.Choice(WHICH))


@click.group("images", epilog=f"\b\nExamples:\n{EXAMPLES}")
@common
def command() -> None:
    """The images of bridge and agent.

    They are built from this installation where they are absent, which takes a minute once; `run` and `up` do so by themselves.
    """


@command.command("ls", cls=Command, examples="  mbridge images ls --json\n")
@docker_context_option
@json_option
@common
@click.pass_obj
def listed(caller: Caller, /, docker_context: str | None, as_json: bool) -> None:
    """The images that this version uses, and whether the engine has them."""
    images = caller.wiring.images(docker_context)
    if as_json:
        caller.ui.json([{"which": one.which, "name": one.name, "present": one.present, "bytes": one.size} for one in images])
        return
    rows = [(one.which, one.name, f"{one.size / 1e6:.0f} MB" if one.present else "not built: mbridge images build") for one in images]
    caller.ui.table(("WHICH", "NAME", "SIZE"), rows, empty="no images")


@command.command("build", cls=Command, examples="  mbridge images build\n  mbridge images build agent --force\n")
@_which
@click.option("--force", is_flag=True, help="Also where the engine has them.")
@docker_context_option
@common
@click.pass_obj
def build(caller: Caller, /, which: tuple[str, ...], force: bool, docker_context: str | None) -> None:
    """Build what is absent."""
    for name in caller.wiring.build_images(which or WHICH, force, docker_context, caller.ui):
        caller.ui.say(name)


@command.command("save", cls=Command, examples="  mbridge images save mbridge.tar\n  mbridge images save agent.tar agent\n")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@_which
@docker_context_option
@common
@click.pass_obj
def save(caller: Caller, /, file: Path, which: tuple[str, ...], docker_context: str | None) -> None:
    """Write them to FILE, as `docker save` does."""
    caller.wiring.save_images(file, which or WHICH, docker_context, caller.ui)
    caller.ui.note(f"wrote {file}; elsewhere: mbridge images load {file}")


@command.command("load", cls=Command, examples="  mbridge images load mbridge.tar\n")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@docker_context_option
@common
@click.pass_obj
def load(caller: Caller, /, file: Path, docker_context: str | None) -> None:
    """Give the engine the images of FILE."""
    for name in caller.wiring.load_images(file, docker_context, caller.ui):
        caller.ui.say(name)


@command.command("push", cls=Command, examples="  mbridge images push registry.example/team/mbridge\n")
@click.argument("repository", metavar="REPOSITORY")
@_which
@docker_context_option
@common
@click.pass_obj
def push(caller: Caller, /, repository: str, which: tuple[str, ...], docker_context: str | None) -> None:
    """Push them to REPOSITORY-bridge and REPOSITORY-agent, with the engine's own credentials; prints the names."""
    for name in caller.wiring.push_images(repository, which or WHICH, docker_context, caller.ui):
        caller.ui.say(name)

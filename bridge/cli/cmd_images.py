"""`mbridge images`: the images of bridge and agent, built on the user's engine; no registry of ours is needed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from bridge.cli.main import Caller
from bridge.cli.options import Command, cluster_options, common, docker_context_option, json_option, stacked

EXAMPLES = """\
  mbridge images ls
  mbridge images build                                    before the first `run`, so that it starts at once
  mbridge images load                                     the agent's, into kind, k3d or minikube
  mbridge images push registry.example/team/mbridge       for other clusters: agent.image in mbridge.yaml names what it prints
  mbridge images save mbridge.tar                         here, and on a machine without a network:
  mbridge images load mbridge.tar
  mbridge images prune                                    those of earlier versions
"""
WHICH = ("bridge", "agent")
_REPOSITORY = re.compile(r"[A-Za-z0-9.-]+(:[0-9]+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+|[a-z0-9]+([._-]+[a-z0-9]+)*")
_which = click.argument("which", metavar="[bridge|agent]…", nargs=-1, type=click.Choice(WHICH))


@click.group("images", epilog=f"\b\nExamples:\n{EXAMPLES}")
@common
def command() -> None:
    """The images of bridge and agent.

    They are built from this installation where they are absent, which takes a minute once; `run` and `up` do so by themselves.
    """


@command.command("ls", cls=Command, short_help="What this version uses, and what is there.", examples="  mbridge images ls --json\n")
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
    if old := caller.wiring.prune_images(True, docker_context, caller.ui):
        caller.ui.note(f"{len(old)} more of other versions; mbridge images prune removes them")


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


LOAD_EXAMPLES = """\
  mbridge images load                     into the cluster of the kubeconfig's current context: kind, k3d, minikube
  mbridge images load --to kind:dev       into that one, whatever the kubeconfig says
  mbridge images load --command 'ssh node1 sudo ctr -n k8s.io images import -'        any other, node by node
  mbridge images load mbridge.tar         into the engine: what `images save` wrote
"""


@command.command("load", cls=Command, examples=LOAD_EXAMPLES, short_help="Bring the agent's into a cluster; or FILE's to the engine.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=False)
@click.option("--to", metavar="kind|k3d|minikube[:NAME]", help="This cluster, instead of the one that the context means.")
@click.option("--command", metavar="COMMAND", help="A shell command that brings the image from its stdin, as `docker save` writes it.")
@stacked(cluster_options, docker_context_option)
@common
@click.pass_obj
def load(caller: Caller, /, file: Path | None, to: str | None, command: str | None, docker_context: str | None, **options: Any) -> None:
    """Bring the agent's image into a cluster; or, with FILE, give the engine the images of it.

    Without FILE the image goes from the engine, which builds it where it is absent, by the cluster's own tool where that is installed,
    else into its nodes where they are containers of the engine.
    """
    from bridge.cli import settings
    from bridge.errors import SpecError

    if command is not None and not command.strip():
        raise SpecError("--command is empty", hint="mbridge images load --help shows one")
    if to and command:
        raise SpecError("--to and --command are two ways to one cluster: name one of them")
    if file is not None:
        if to or command or any(options.values()):
            raise SpecError(f"{file} goes into the engine; what goes into a cluster is the agent's image, without a file",
                            hint=f"mbridge images load {file}, then mbridge images load")  # fmt: skip
        for name in caller.wiring.load_images(file, docker_context, caller.ui):
            caller.ui.say(name)
        return
    where = settings.where(caller.environ, options | {"docker_context": docker_context})
    caller.ui.say(caller.wiring.load_into_cluster(to, command, where, caller.ui))


@command.command(
    "prune",
    cls=Command,
    short_help="Remove those of other versions.",
    examples="  mbridge images prune --dry-run\n  mbridge images prune\n",
)
@click.option("--dry-run", is_flag=True, help="Say which, and remove nothing.")
@docker_context_option
@common
@click.pass_obj
def prune(caller: Caller, /, dry_run: bool, docker_context: str | None) -> None:
    """Remove images of other versions of mbridge, and what was left of building them.

    An image that a container uses, running or not, stays; so does one to which you gave a name, and what this version uses.
    """
    gone = caller.wiring.prune_images(dry_run, docker_context, caller.ui)
    for what in gone:
        caller.ui.say(what)
    if not gone:
        caller.ui.note("nothing to remove: all that is there is this version's, or in use")
    elif dry_run:
        caller.ui.note(f"{len(gone)} in all; without --dry-run they are removed")


@command.command(
    "push", cls=Command, short_help="Push them to a registry.", examples="  mbridge images push registry.example/team/mbridge\n"
)
@click.argument("repository", metavar="REPOSITORY")
@_which
@docker_context_option
@common
@click.pass_obj
def push(caller: Caller, /, repository: str, which: tuple[str, ...], docker_context: str | None) -> None:
    """Push them to REPOSITORY-bridge and REPOSITORY-agent, with the engine's own credentials; prints the names."""
    if not _REPOSITORY.fullmatch(repository):
        from bridge.errors import SpecError

        raise SpecError(f"{repository!r} is no repository: HOST/PATH in lower case, without a tag",
                        hint="mbridge images push registry.example/team/mbridge")  # fmt: skip
    for name in caller.wiring.push_images(repository, which or WHICH, docker_context, caller.ui):
        caller.ui.say(name)

"""`mbridge run TARGET [options] IMAGE [COMMAND…]`: a new container in the target's network."""

from __future__ import annotations

import sys
from typing import Any

import click

from bridge.cli.main import Caller
from bridge.cli.options import (
    AppCommand,
    agent_options,
    common,
    config_option,
    env_options,
    json_option,
    stacked,
    target_argument,
    where_options,
)
from bridge.errors import SpecError

EXAMPLES = """\
  mbridge run docker/shop-api alpine wget -qO- http://db:8080/
  mbridge run compose/shop/api -v "$PWD:/src" -w /src python:3.12 python app.py
  mbridge run -it docker/shop-api -p 8000:8000 -e LOG_LEVEL=debug node:22 bash
  mbridge run --dry-run docker/shop-api alpine        what would be done
"""

docker_options = stacked(
    click.option("-p", "--publish", "ports", metavar="PORTS", multiple=True, help="Publish a port of the app on this machine."),
    click.option("-v", "--volume", "volumes", metavar="VOLUME", multiple=True, help="Mount a folder or volume; :ro, :z, :Z as in docker."),
    click.option("-e", "--env", metavar="NAME[=VALUE]", multiple=True, help="Set a variable, or pass the caller's own."),
    click.option("--env-file", "env_files", metavar="FILE", multiple=True, help="Set the variables of a file."),
    click.option("-w", "--workdir", metavar="FOLDER", help="Working directory in the container."),
    click.option("-u", "--user", metavar="USER[:GROUP]", help="User of the app."),
    click.option("-i", "--interactive", is_flag=True, help="Connect the app's stdin."),
    click.option("-t", "--tty", is_flag=True, help="Give the app a terminal."),
    click.option("--entrypoint", metavar="PROGRAM", help="Instead of the image's entry point."),
    click.option("--name", metavar="NAME", help="Name of the app's container."),
    click.option("--mount", "mounts", metavar="SPEC", multiple=True, help="type=bind|volume|tmpfs,source=…,target=…"),
    click.option("--tmpfs", metavar="PATH[:OPTIONS]", multiple=True, help="Mount a tmpfs."),
    click.option("--network", "networks", metavar="NETWORK", multiple=True, help="A network of the engine for the app's own side."),
    click.option("--add-host", "add_hosts", metavar="HOST:IP", multiple=True, help="A name of the app's own."),
    click.option("--cap-add", metavar="CAP", multiple=True, help="Give the app a capability."),
    click.option("--cap-drop", metavar="CAP", multiple=True, help="Take a capability away, or ALL."),
    click.option("--security-opt", metavar="OPTION", multiple=True, help="seccomp=FILE, no-new-privileges, …"),
    click.option("--read-only", is_flag=True, help="Read-only root file system."),
    click.option(
        "--pull", type=click.Choice(["always", "missing", "never"]), default="missing", show_default=True, help="When to pull IMAGE."
    ),
    click.option("--platform", metavar="OS/ARCH", help="Where the engine has several."),
    click.option("-m", "--memory", metavar="BYTES", help="Memory limit: 512m, 2g."),
    click.option("--cpus", metavar="NUMBER", help="Limit in CPUs: 1.5."),
    click.option("--gpus", metavar="REQUEST", help="all, a number, or device=…"),
    click.option("-l", "--label", "labels", metavar="NAME[=VALUE]", multiple=True, help="Label of the app's container."),
)


@click.command("run", cls=AppCommand, examples=EXAMPLES, options_metavar="[options]")
@target_argument()
@click.argument("image", metavar="IMAGE")
@click.argument("command", metavar="[COMMAND…]", nargs=-1, type=click.UNPROCESSED)
@docker_options
@where_options
@agent_options
@env_options
@config_option
@click.option("--dry-run", is_flag=True, help="Print the plan and change nothing.")
@json_option
@common
@click.pass_obj
def command(caller: Caller, /, target: str, image: str, config_file: str | None, dry_run: bool, as_json: bool, **options: Any) -> int:
    """Run a new container of IMAGE that has TARGET's network: its address, its DNS, its environment.

    Our options stand before or after TARGET; what follows IMAGE is the app's. The options from -p to --label mean what
    they mean in `docker run`. The exit code is the app's, or 125 where mbridge itself failed before it.
    """
    from bridge.cli import settings

    if options["interactive"] and options["tty"] and not sys.stdin.isatty():
        raise SpecError("stdin is no terminal, which -it needs", hint="leave -t away: mbridge run -i …")
    if as_json and not dry_run:
        raise SpecError("--json goes with --dry-run: the output of `run` is the app's")
    wish = settings.run_wish(caller.environ, config_file, target, image, options)
    if dry_run:
        from bridge.cli.planning import show

        return show(caller, [wish], as_json)
    return caller.wiring.run(wish, caller.ui)

"""`mbridge`: the entry point. Finds the command's file, and answers everything that goes wrong.

Theory of operation: the table below is all that `mbridge --help` needs; a command's file is imported when it is called,
and what that file needs from adapters is imported by wiring.py when it is used. So the help comes at once and
`bridge.cli` imports where pyroute2 does not.

Errors end here: a BridgeError by its kind's exit code, a fault of the command line by 2, both by 125 in `run`, whose
other exit codes are the app's. Anything else is a bug of ours: one line for the user, the traceback to a file.
"""

from __future__ import annotations

import difflib
import importlib
import io
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import bridge
from bridge.cli import ui as user
from bridge.errors import BridgeError

if TYPE_CHECKING:
    from bridge.cli.wiring import Wiring

# name -> (module, one line); in the order in which a newcomer meets them.
COMMANDS = {
    "run": ("cmd_run", "Run a new container in the target's network, as `docker run` would."),
    "up": ("cmd_up", "Start what mbridge.yaml describes; Ctrl-C ends it."),
    "down": ("cmd_down", "End sessions and undo all that they changed."),
    "status": ("cmd_status", "What is bridged, since when, and how it is doing."),
    "ls": ("cmd_ls", "What can be a target."),
    "env": ("cmd_env", "Print the target's environment."),
    "forward": ("cmd_forward", "Bring ports that the target reaches to this machine."),
    "logs": ("cmd_logs", "What a session's parts have logged."),
    "doctor": ("cmd_doctor", "Whether this machine and its engine have what is needed."),
    "init": ("cmd_init", "Write a first mbridge.yaml."),
    "config": ("cmd_config", "Show or check the settings and where each came from."),
    "images": ("cmd_images", "Build or move the images of bridge and agent."),
    "diagnose": ("cmd_diagnose", "Pack what a bug report needs, without secrets."),
    "completion": ("cmd_completion", "Print the completion script of a shell."),
}

EXIT_FAULT, EXIT_USAGE, EXIT_RUN, EXIT_INTERRUPTED = 1, 2, 125, 130
EXAMPLES = """\b
Examples:
  mbridge run docker/shop-api python:3.12 python -m http.server
  mbridge run compose/shop/api -v "$PWD:/src" -w /src node:22 npm start
  mbridge run deploy/orders -n shop -it python:3.12 bash
  mbridge ls                   what can be a target here
  mbridge status --watch       how the sessions are doing
  mbridge down --all           end them all
"""


def _wiring() -> Wiring:
    import logging

    from bridge.cli.wiring import Wiring

    # Without a handler of its own a logger's warnings go to stderr as they are, past cli/ui.py and into a raw terminal.
    logging.getLogger("bridge").addHandler(logging.NullHandler())
    return Wiring()


@dataclass
class Caller:
    """What `main` hands to each command (`@click.pass_obj`); the wiring is imported when a command first asks for it."""

    ui: user.Ui
    make_wiring: Callable[[], Wiring] = _wiring
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    command: str | None = None

    @cached_property
    def wiring(self) -> Wiring:
        return self.make_wiring()


class Commands(click.Group):
    """Commands by the table above, each imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"bridge.cli.{COMMANDS[cmd_name][0]}").command
        if not isinstance(command, click.Command):
            raise TypeError(f"{cmd_name} is no command")
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if not ctx.resilient_parsing and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], COMMANDS, n=1, cutoff=0.5)
            raise click.UsageError(f"no command {args[0]!r}" + (f"; did you mean {near[0]}?" if near else ""), ctx)
        name, command, rest = super().resolve_command(ctx, args)
        if isinstance(ctx.obj, Caller):
            ctx.obj.command = name
        return name, command, rest

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


def set_level(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    """Callback of --verbose and --quiet, which stand before or after the command."""
    if value and isinstance(ctx.obj, Caller):
        ctx.obj.ui.level = user.VERBOSE if param.name == "verbose" else user.QUIET
    if value and param.name == "verbose":
        import logging

        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s", stream=sys.stderr)


def verbosity(function: Callable[..., Any]) -> Callable[..., Any]:
    for name, text in (("quiet", "Errors and warnings only."), ("verbose", "Say more; logs of this process too.")):
        function = click.option(f"--{name}", is_flag=True, expose_value=False, callback=set_level, help=text)(function)
    return function


@click.group(cls=Commands, epilog=EXAMPLES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(bridge.__version__, message="mbridge %(version)s")
@verbosity
def cli() -> None:
    """Run your program on your machine as if it ran inside a container elsewhere: same address, same DNS, same environment.

    TARGET is docker/NAME, compose/PROJECT/SERVICE, or a pod or workload of Kubernetes: pod/NAME, deploy/NAME, and so on. Nothing is
    installed in it and it is not restarted.
    """


def main() -> None:
    """Console entry point."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal of another encoding must not make a tick a crash
    sys.exit(run(sys.argv[1:]))


def run(args: Sequence[str], caller: Caller | None = None) -> int:
    """Run one command line and return its exit code; nothing is raised."""
    caller = caller or Caller(user.Ui())
    ui = caller.ui
    try:
        result = cli.main(list(args), prog_name="mbridge", standalone_mode=False, obj=caller)
    except BridgeError as error:
        ui.fault(error)
        return _code(caller, error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        ui.say(error.format_message())
        return EXIT_USAGE
    except click.ClickException as error:
        ui.error(*_in_words(error))
        return _code(caller, EXIT_USAGE)
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED
    except SystemExit as ended:  # click's answer where nobody reads our stdout any more, and to a shell that completes
        return ended.code if isinstance(ended.code, int) else EXIT_FAULT
    except Exception as error:
        _confess(ui, error, args)
        return _code(caller, EXIT_FAULT)
    return result if isinstance(result, int) else 0


def _code(caller: Caller, code: int) -> int:
    return EXIT_RUN if caller.command == "run" else code


def _in_words(error: click.ClickException) -> tuple[str, str | None]:
    """click's errors in this program's words."""
    ctx = error.ctx if isinstance(error, click.UsageError) else None
    hint = f"{ctx.command_path} --help" if ctx else None
    match error:
        case click.NoSuchOption():
            near = f"; did you mean {' or '.join(sorted(error.possibilities))}?" if error.possibilities else ""
            return f"no option {error.option_name}{near}", hint
        case click.BadOptionUsage():
            return f"option {error.option_name}: {_lowered(error.message)}", hint
        case click.MissingParameter():
            name = error.param.make_metavar(ctx) if error.param and ctx else "an argument"
            return f"{name} is missing", hint
        case click.BadParameter():
            name = error.param.get_error_hint(ctx).strip("'") if error.param and ctx else ""
            return f"{name}: {_lowered(error.message)}" if name else _lowered(error.message), hint
    return _lowered(error.format_message()), hint


def _lowered(message: str) -> str:
    return (message[:1].lower() + message[1:]).removesuffix(".")


def _confess(ui: user.Ui, error: Exception, args: Sequence[str]) -> None:
    from bridge.cli import sessions

    trace = "".join(traceback.format_exception(error))
    command = args[0] if args and args[0] in COMMANDS else ""  # arguments may hold secrets (-e NAME=value)
    where: Path | None = None
    try:
        where = sessions.root() / "fault.log"
        where.write_text(f"mbridge {bridge.__version__} {command}, Python {sys.version.split()[0]}, {sys.platform}\n{trace}")
    except (OSError, BridgeError):
        where = None
    ui.error(
        f"this is a fault of mbridge itself: {type(error).__name__}: {error}",
        f"please report it with {where}, or the bundle that `mbridge diagnose` makes" if where else "please report it: mbridge diagnose",
    )
    if ui.level >= user.VERBOSE or where is None:
        for line in trace.splitlines():
            ui.warn(line)


if __name__ == "__main__":
    main()

"""Options that mean the same in every command, and how a command line is read that ends in the app's own words.

Theory of operation: `run` reads like `docker run`: our options stand before or after TARGET, and what follows IMAGE is
the app's, whatever it looks like. click can say "options anywhere" or "options first", not this; so `AppCommand` finds
TARGET and IMAGE itself and hands click the options, then `--`, then the rest as it was written.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from bridge.cli.main import Caller, verbosity

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

F = TypeVar("F", bound=Callable[..., Any])


class Command(click.Command):
    """A command whose examples are shown as they are written."""

    def __init__(self, name: str | None, *, examples: str, **kwargs: Any) -> None:
        super().__init__(name, epilog=f"\b\nExamples:\n{examples}", **kwargs)


class AppCommand(Command):
    """`[options] TARGET [options] IMAGE [COMMAND…]`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ours, rest = self._split(args)
        return super().parse_args(ctx, [*ours, "--", *rest] if rest else ours)

    def _split(self, args: Sequence[str]) -> tuple[list[str], list[str]]:
        """Our options with their values; TARGET, IMAGE and the app's words."""
        valued = {
            name for param in self.params if isinstance(param, click.Option) and not (param.is_flag or param.count) for name in param.opts
        }
        ours: list[str] = []
        rest: list[str] = []
        words = iter(args)
        for word in words:
            if word == "--":
                break
            if word == "-" or not word.startswith("-"):
                rest.append(word)
                if len(rest) == 2:
                    break
                continue
            ours.append(word)
            if _wants_next(word, valued):
                ours += [value for value in [next(words, None)] if value is not None]
        return ours, [*rest, *words]


def _wants_next(word: str, valued: set[str]) -> bool:
    """Whether the value of option `word` is the next word: `--name x` and `-p x`, not `--name=x`, `-px`, `-it`."""
    if word.startswith("--"):
        return word in valued
    for place, letter in enumerate(word[1:], start=1):
        if f"-{letter}" in valued:
            return place == len(word) - 1
    return False


def complete_target(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Targets that are there now; silent where nobody can be asked. A cluster is asked for the kind that was begun alone."""
    from click.shell_completion import CompletionItem

    from bridge.cli.looking import Where

    caller = ctx.find_object(Caller)
    kind, slash, _ = incomplete.partition("/")
    given = {name: ctx.params.get(name) for name in ("docker_context", "namespace", "context", "kubeconfig")}
    found: list[CompletionItem] = []
    for one in [kind] if slash else ["docker", "compose"]:
        with contextlib.suppress(Exception):  # an entry point of its own: a shell must not be given a traceback to insert
            if caller:
                listed = caller.wiring.targets(one, Where(**given), caller.ui)
                found += [CompletionItem(item.target, help=item.what) for item in listed if item.target.startswith(incomplete)]
    return found


def complete_session(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    caller = ctx.find_object(Caller)
    with contextlib.suppress(Exception):
        if caller:
            return [CompletionItem(s.id, help=s.target) for s in caller.wiring.sessions() if s.id.startswith(incomplete)]
    return []


def target_argument(required: bool = True) -> Callable[[F], F]:
    return click.argument("target", metavar="TARGET" if required else "[TARGET]", required=required, shell_complete=complete_target)


def session_argument(function: F) -> F:
    return click.argument("session", metavar="[SESSION]", required=False, shell_complete=complete_session)(function)


def json_option(function: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")(function)


def docker_context_option(function: F) -> F:
    return click.option("--docker-context", metavar="NAME", help="The engine, as `docker context ls` names it.")(function)


def config_option(function: F) -> F:
    return click.option("--config", "config_file", metavar="FILE", type=click.Path(dir_okay=False), help="Instead of ./mbridge.yaml.")(
        function
    )


def stacked(*options: Callable[[Any], Any]) -> Callable[[F], F]:
    """Several decorators as one, in the order in which the help shows them."""

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


cluster_options = stacked(
    click.option("--context", metavar="NAME", help="Context of the kubeconfig."),
    click.option("--kubeconfig", metavar="FILE", help="Instead of $KUBECONFIG or ~/.kube/config."),
)
_namespace_option = click.option("-n", "--namespace", metavar="NAME", help="Namespace of the target.")
place_options = stacked(_namespace_option, cluster_options, docker_context_option)
where_options = stacked(
    _namespace_option,
    click.option("-c", "--container", metavar="NAME", help="Container of the target, where it has several."),
    cluster_options,
    docker_context_option,
)
agent_options = stacked(
    click.option(
        "--via",
        metavar="auto|direct|port-forward|exec",
        help="What carries the link; auto tries the fastest first, and gives TCP to the agent itself where app and target are on one "
        "engine.",
    ),
    click.option("--agent", metavar="auto|ephemeral|pod", help="Where the agent runs."),
    click.option("--agent-image", metavar="IMAGE", help="Instead of the agent image that is built here."),
    click.option("--yes-host-network", is_flag=True, default=None, help="Go on where the target shares its host's network."),
)
env_options = stacked(
    click.option("--env-include", metavar="GLOB", multiple=True, help="Variables of the target to take that are left out by default."),
    click.option("--env-exclude", metavar="GLOB", multiple=True, help="Variables of the target to leave out."),
    click.option("--env-set", metavar="NAME=VALUE", multiple=True, help="Set on top of the target's environment."),
)
common = verbosity

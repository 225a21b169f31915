"""`mbridge ls [KIND]`: what can be a target, and why something cannot."""

from __future__ import annotations

import difflib
from typing import Any

import click

from bridge.cli.main import Caller
from bridge.cli.options import Command, common, json_option, place_options, stacked
from bridge.errors import SpecError
from bridge.model.target import KUBE_KINDS

EXAMPLES = """\
  mbridge ls                  containers, compose services, and what the kubeconfig's namespace holds
  mbridge ls compose          services of compose projects
  mbridge ls deploy -n shop   deployments of a namespace
  mbridge ls docker --json    for programs
"""
KINDS = ("docker", "compose", *KUBE_KINDS)
_ALIASES = {alias: kind for kind, aliases in KUBE_KINDS.items() for alias in aliases}


class _Kind(click.Choice[str]):
    """A kind by its short name or, as for kubectl, by its long one or its plural."""

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        word = value.lower()
        kind = _ALIASES.get(word, word)
        if kind in KINDS:
            return kind
        if "/" in word:
            raise SpecError(f"{value!r} is a target, and ls lists all of a kind", hint=f"mbridge doctor {value} looks at one")
        near = difflib.get_close_matches(word, (*KINDS, *_ALIASES), 1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise SpecError(f"{value!r} is no kind of target{meant}", hint=f"kinds are {', '.join(KINDS)}")


@click.command("ls", cls=Command, examples=EXAMPLES)
@click.argument("kind", metavar="[KIND]", type=_Kind(KINDS), required=False)
@stacked(place_options, json_option)
@common
@click.pass_obj
def command(caller: Caller, /, kind: str | None, as_json: bool, **options: Any) -> None:
    """What can be a target, and why something cannot.

    KIND is docker, compose, or one of Kubernetes': pod, deploy, sts, ds, rs, job, cronjob, svc, rollout.
    """
    from bridge.cli import settings

    listed = caller.wiring.targets(kind, settings.where(caller.environ, options), caller.ui)
    if as_json:
        caller.ui.json([{"target": one.target, "what": one.what, "state": one.state, "why_not": one.why_not} for one in listed])
        return
    rows = [(one.target, one.what, one.state, one.why_not or "") for one in listed]
    caller.ui.table(("TARGET", "IMAGE", "STATE", "WHY NOT"), rows, empty=_nothing(kind))


def _nothing(kind: str | None) -> str:
    if kind in KUBE_KINDS:
        return f"no {kind} in this namespace; mbridge ls {kind} -n NAME looks into another"
    return "nothing here can be a target; docker ps shows what runs"

"""`mbridge ls [KIND]`: what can be a target, and why something cannot."""

from __future__ import annotations

from typing import Any

import click

from bridge.cli.main import Caller
from bridge.cli.options import Command, common, json_option, stacked, where_options

EXAMPLES = """\
  mbridge ls                  containers, compose services, and what the kubeconfig's namespace holds
  mbridge ls compose          services of compose projects
  mbridge ls deploy -n shop   deployments of a namespace
  mbridge ls docker --json    for programs
"""
KINDS = ("docker", "compose", "pod", "deploy", "sts", "ds", "rs", "job", "cronjob", "svc", "rollout")


@click.command("ls", cls=Command, examples=EXAMPLES)
@click.argument("kind", metavar="[KIND]", type=click.Choice(KINDS), required=False)
@stacked(where_options, json_option)
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
    caller.ui.table(("TARGET", "IMAGE", "STATE", "WHY NOT"), rows, empty="nothing here can be a target; docker ps shows what runs")

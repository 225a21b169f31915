"""`mbridge doctor [TARGET]`: whether this machine, its engine and its kernel have what is needed, and what to do where not.

Each check is a line with a verdict: ✓ there, ! missing but done without (what is lost stands beside it), ✗ needed and
missing. The kernel is not asked for its version: a throwaway bridge container tries each feature for real.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click

from bridge.cli.looking import Where
from bridge.cli.main import Caller
from bridge.cli.options import Command, agent_options, common, config_option, json_option, stacked, target_argument, where_options
from bridge.cli.ui import printable

if TYPE_CHECKING:
    from bridge.model.wish import SessionWish

EXAMPLES = """\
  mbridge doctor                       this machine and its engine
  mbridge doctor docker/shop-api       and whether that can be a target
  mbridge doctor deploy/orders -n shop    and whether you may do in that namespace what it needs
  mbridge doctor deploy/orders -n shop --role | kubectl apply -f -      the rights that it needs
  mbridge doctor -n shop               the same for targets of any kind
  mbridge doctor --json                for programs and bug reports
"""
EXIT_LACKS = 3


@dataclass(frozen=True, slots=True)
class Check:
    """`good`: True, False (needed and missing), None (missing, done without); `hint` is what to do."""

    name: str
    good: bool | None
    what: str
    hint: str | None = None


@click.command("doctor", cls=Command, examples=EXAMPLES)
@target_argument(required=False)
@click.option("--role", is_flag=True, help="Print the Role to ask an administrator for, and look at nothing.")
@stacked(where_options, agent_options, config_option, json_option)
@common
@click.pass_obj
def command(caller: Caller, /, target: str | None, role: bool, as_json: bool, config_file: str | None, **options: Any) -> int:
    """Check the engine, the kernel's features and, where named, TARGET and this user's rights in its namespace.

    Nothing is changed: what is tried is tried in a throwaway container. Exit code 3 where something needed is missing.
    """
    from bridge.cli import settings

    wish = settings.target_wish(caller.environ, config_file, target, options) if target else None
    if wish is not None:
        where = Where(wish.docker_context, wish.namespace, wish.context, wish.kubeconfig)
    elif role or any(options[name] for name in ("namespace", "context", "kubeconfig")):
        where = settings.where(caller.environ, options)
    else:  # of the machine alone: a file that cannot be read, and `config check` tells of, keeps nobody from it
        where = Where(options["docker_context"])
    if role:
        return _role(caller, wish, where)
    checks: list[Check] = []
    for check in caller.wiring.checks(wish, where, caller.ui):
        checks.append(check)
        if not as_json:
            caller.ui.say(_line(caller, check))
    if as_json:
        caller.ui.json([asdict(check) for check in checks])
    bad = [check for check in checks if check.good is False]
    if not as_json:
        caller.ui.note(f"missing: {', '.join(check.name for check in bad)}" if bad else "all that is needed is here")
    return EXIT_LACKS if bad else 0


def _role(caller: Caller, wish: SessionWish | None, where: Where) -> int:
    from bridge.errors import SpecError
    from bridge.model import rights
    from bridge.model.target import ComposeTarget, DockerTarget

    if wish and isinstance(wish.target, DockerTarget | ComposeTarget):
        raise SpecError(f"{wish.target} needs no Role: it is not in a cluster", hint=f"mbridge doctor {wish.target}")
    wanted = rights.needed(wish.target, wish.agent_kind) if wish else rights.needed(None)
    namespace = caller.wiring.namespace(where)
    caller.ui.say(rights.role(wanted, namespace))
    caller.ui.note(f"to give it: kubectl create rolebinding mbridge --role=mbridge --user=NAME -n {namespace}")
    return 0


def _line(caller: Caller, check: Check) -> str:
    line = f"{caller.ui.mark(check.good)} {check.name:<11} {printable(check.what)}"
    return line + (f"\n{' ' * 14}→ {printable(check.hint)}" if check.hint and check.good is not True else "")


def kernel_checks(probe: Mapping[str, Any]) -> Iterator[Check]:
    """What `python -m bridge.sidecar probe` printed, in words."""
    tun, nft, ping = probe.get("tun"), probe.get("nft"), probe.get("ping")
    yield Check("tun", tun is True, "a tun device can be made" if tun is True else f"no tun device: {tun}",
                "sudo modprobe tun; in a virtual machine or container, pass /dev/net/tun on")  # fmt: skip
    yield Check("nftables", nft is True, "rules can be set" if nft is True else f"no rules: {nft}",
                "sudo modprobe nf_tables nft_redir nft_reject_inet nft_ct")  # fmt: skip
    holder = probe.get("nfqueue")
    if holder:
        yield Check("nfqueue", True, f"a connection's first packet can be held, by {holder}: connect() tells the truth")
    else:
        yield Check("nfqueue", None, "a refused connection is accepted and then reset, instead of ECONNREFUSED",
                    "sudo modprobe nfnetlink_queue nft_queue")  # fmt: skip
    ipv6 = probe.get("ipv6") is True
    yield Check("ipv6", True if ipv6 else None, "there" if ipv6 else "IPv6 addresses of the target will not be reachable",
                "enable IPv6 in the kernel: sysctl net.ipv6.conf.all.disable_ipv6")  # fmt: skip
    yield Check("ping", True if ping is True else None,
                "unprivileged ICMP echo is allowed" if ping is True else f"ping of the target's neighbours gets no answer: {ping}",
                "sudo sysctl -w net.ipv4.ping_group_range='0 2147483647'")  # fmt: skip
    settings = probe.get("settings", True)
    yield Check("settings", True if settings is True else None,
                "the engine sets what the session's network needs" if settings is True else str(settings),
                "the engine must heed HostConfig.Sysctls")  # fmt: skip

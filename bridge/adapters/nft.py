"""Netfilter rules of the session's netns: who is held, who is redirected, what is refused.

Theory of operation: routing has decided the verdict (adapters/netlink.py), so these rules look at little but `oifname TUN`.
The whole table is one nft transaction, made anew by each bridge. It has no owner: it must outlive a bridge that dies, for
without it the SYNs of CLUSTER flows would leave the queue (facts in docs/design/001-spine.md).

    output   -151 reply_out   replies to connections that came in by -p: back the way they came
             -150 hold        SYN on the tun → queue (nft, else iptables: some kernels lack one of the two)
             -120 refuse      the queue's marks become a reset or an ICMP error; other protocols are refused
             -110 out         DNS → resolver, TCP on the tun → listener: before Docker's own nat (-100)
               10 unjudged    nothing leaves by a device that the bridge has not looked at: a network may have been joined just now
    input     -10 closed      the listeners serve redirected packets only: nobody can use them as a proxy
"""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bridge.errors import KernelLacks, MissingCapability

log = logging.getLogger(__name__)

TABLE, HOLD_TABLE = "mbridge", "mbridge_hold"
Hold = Literal["nft", "iptables"]

_TIMEOUT_S = 10
_LOOPBACK = "LOOPBACK"  # stands for the family's own match


@dataclass(frozen=True, slots=True)
class Redirects:
    """Where the bridge listens. `nameservers`: (address asked, port of its resolver socket); `devices`: as in `judge`."""

    tun: str
    tcp_port: int
    nameservers: tuple[tuple[str, int], ...]
    loopback: tuple[int, ...]  # ports of the target's loopback that stand for the app's own
    mark_self: int
    mark_reply: int
    marks: tuple[int, int, int]  # refuse, host unreachable, net unreachable
    devices: tuple[int, ...]


def ruleset(redirects: Redirects) -> str:
    """The table as nft reads it (nft(8)); a table of that name that stands already is replaced in the same transaction."""
    r = redirects
    refuse, host_unreachable, net_unreachable = r.marks
    dns_ports = _listed([port for _, port in r.nameservers])
    dns = "\n".join(
        f"    {_family(address)} daddr {address} {proto} dport 53 redirect to :{port}"
        for address, port in r.nameservers
        for proto in ("udp", "tcp")
    )
    loopback = f'    oifname "lo" {_LOOPBACK} tcp dport {{ {_listed(r.loopback)} }} redirect to :{r.tcp_port}' if r.loopback else ""
    judged = f"elements = {{ {_listed(r.devices)} }}" if r.devices else ""
    refusals = (("tcp", "reject with tcp reset"), ("udp", "reject"))
    closed_dns = "\n".join(f"    {proto} dport {{ {dns_ports} }} ct status & dnat == 0 {how}" for proto, how in refusals if dns_ports)
    return f"""
table inet {TABLE}
delete table inet {TABLE}
table inet {TABLE} {{
  chain came_in {{
    type filter hook prerouting priority -150; policy accept;
    iifname != {{ "lo", "{r.tun}" }} ct state new ct mark set {r.mark_reply:#x}
  }}
  chain reply_out {{
    type route hook output priority -151; policy accept;
    ct direction reply ct mark {r.mark_reply:#x} meta mark set {r.mark_reply:#x}
  }}
  chain refuse {{
    type filter hook output priority -120; policy accept;
    meta mark {refuse:#x} meta l4proto tcp reject with tcp reset
    meta mark {host_unreachable:#x} reject with icmpx type host-unreachable
    meta mark {net_unreachable:#x} reject with icmpx type no-route
    oifname "lo" accept
    meta l4proto igmp drop
    meta l4proto != {{ tcp, udp, icmp, icmpv6 }} reject with icmpx type admin-prohibited
  }}
  chain out {{
    type nat hook output priority -110; policy accept;
    meta mark {r.mark_self:#x} accept
{dns}
{loopback.replace(_LOOPBACK, "ip daddr 127.0.0.1")}
{loopback.replace(_LOOPBACK, "ip6 daddr ::1")}
    oifname "{r.tun}" meta l4proto tcp redirect to :{r.tcp_port}
  }}
  set judged {{
    type iface_index; {judged}
  }}
  chain unjudged {{
    type filter hook output priority 10; policy accept;
    oifname {{ "lo", "{r.tun}" }} accept
    meta mark {{ {r.mark_self:#x}, {r.mark_reply:#x} }} accept
    meta oif != @judged drop
  }}
  chain closed {{
    type filter hook input priority -10; policy accept;
    tcp dport {r.tcp_port} ct status & dnat == 0 reject with tcp reset
{closed_dns}
  }}
}}
"""


def apply(redirects: Redirects) -> None:
    """Put the table in place, whole or not at all."""
    _run(["nft", "-f", "-"], ruleset(redirects))


def judge(devices: Sequence[int]) -> None:
    """These devices of the app's, by index, have the rules that their networks need: packets may leave by them."""
    if devices:
        _run(["nft", "-f", "-"], f"add element inet {TABLE} judged {{ {_listed(devices)} }}\n")


def hold_ruleset(tun: str, queue: int, loopback: tuple[int, ...] = ()) -> str:
    """The nft form of the queue's rules. A verdict's mark keeps a SYN from being held again."""
    first_syn = f"tcp flags & (syn|ack|rst|fin) == syn meta mark 0 queue num {queue}"
    own = ("ip daddr 127.0.0.1", "ip6 daddr ::1")  # not the app's other addresses, whose traffic takes lo as well
    mapped = "".join(f'    oifname "lo" {to} tcp dport {{ {_listed(loopback)} }} {first_syn}\n' for to in own if loopback)
    return f"""
table inet {HOLD_TABLE}
delete table inet {HOLD_TABLE}
table inet {HOLD_TABLE} {{
  chain hold {{
    type filter hook output priority -150; policy accept;
    oifname "{tun}" {first_syn}
{mapped}  }}
}}
"""


def hold_syns(tun: str, queue: int, loopback: tuple[int, ...] = ()) -> Hold | None:
    """Send the first SYN of each CLUSTER flow to `queue`; how it was done, or None where the kernel has neither form."""
    try:
        _run(["nft", "-f", "-"], hold_ruleset(tun, queue, loopback))
        return "nft"
    except KernelLacks as exc:
        log.debug("= no nft queue here: %s", exc.message)
    try:
        for command, own in (("iptables-restore", "127.0.0.1"), ("ip6tables-restore", "::1")):
            # the netns is the session's own: the mangle table's OUTPUT chain holds nothing but these rules
            held = f"--syn -m mark --mark 0 -j NFQUEUE --queue-num {queue}"
            mapped = "".join(f"-A OUTPUT -o lo -d {own} -p tcp --dport {port} {held}\n" for port in loopback)
            _run([command, "--noflush", "--wait", "5"], f"*mangle\n-F OUTPUT\n-A OUTPUT -o {tun} -p tcp {held}\n{mapped}COMMIT\n")
        return "iptables"
    except KernelLacks as exc:
        log.debug("= no iptables NFQUEUE here: %s", exc.message)
        return None


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(str(number) for number in numbers)


def _family(address: str) -> str:
    return "ip6" if ":" in address else "ip"


def _run(command: Sequence[str], text: str) -> None:
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except FileNotFoundError as exc:
        raise KernelLacks(f"{command[0]} is not installed", hint="use the bridge image as it is built") from exc
    except subprocess.TimeoutExpired as exc:
        raise KernelLacks(f"{command[0]} did not end in {_TIMEOUT_S} s") from exc
    if done.returncode:
        first = (done.stderr.strip() or "failed").splitlines()[0][:200]
        if "Operation not permitted" in done.stderr:
            raise MissingCapability(f"{command[0]}: {first}", hint="the bridge needs NET_ADMIN")
        raise KernelLacks(f"{command[0]}: {first}", hint="modules nf_tables, nf_conntrack, nft_redir, nft_reject_inet")

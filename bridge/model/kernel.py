"""Settings of the session's network namespace that the design leans on: written into pause's creation, looked at by `doctor` and
by the bridge when it wires, because an engine may leave them out, and a default be another one some day.

Limits: names as sysctl(8) has them. Those of IPv6 are absent where the kernel has no IPv6, which is no fault.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Setting:
    """`without`: what goes wrong where it has another value, in the user's words."""

    name: str
    value: str
    without: str

    @property
    def path(self) -> str:
        return f"/proc/sys/{self.name.replace('.', '/')}"


_TWO_OWNERS = "a neighbour on the app's network may take the app for the target"
_NO_IPV6 = "the target's IPv6 address cannot be had"
_NO_REFUSAL = "a refused connection times out"

SETTINGS = (
    # The target's address lives on our tun, and the session's netns may share a layer-2 network with the live target: never
    # answer ARP for it there.
    Setting("net.ipv4.conf.all.arp_ignore", "1", _TWO_OWNERS),
    Setting("net.ipv4.conf.all.arp_announce", "2", _TWO_OWNERS),
    # Loose, because replies to `-p` come in by another device than routes say.
    Setting("net.ipv4.conf.all.rp_filter", "2", "published ports (-p) may get no answer"),
    # The engine turns IPv6 off where the network has none; the target's IPv6 address on our tun would be refused (EACCES).
    Setting("net.ipv6.conf.all.disable_ipv6", "0", _NO_IPV6),
    Setting("net.ipv6.conf.default.disable_ipv6", "0", _NO_IPV6),
    # A reset made for a SYN with our mark must not carry that mark, or the rule that made it refuses it as well.
    Setting("net.ipv4.fwmark_reflect", "0", _NO_REFUSAL),
    Setting("net.ipv6.fwmark_reflect", "0", _NO_REFUSAL),
    # Nor must a connection that the listener accepts inherit the mark of its SYN.
    Setting("net.ipv4.tcp_fwmark_accept", "0", "answers on accepted connections may leave by another way"),
)


def unmet(read: Callable[[str], str | None]) -> list[str]:
    """What each setting that is not as it should be costs; `read(path)` gives a file's text, None where there is none."""
    found = []
    for setting in SETTINGS:
        value = read(setting.path)
        if value is not None and value.strip() != setting.value:
            found.append(f"{setting.name} is {value.strip()} here instead of {setting.value}: {setting.without}")
    return found

"""Values that cross between our processes: what the host tells the bridge, what the agent tells about its target.

All of them travel as JSON objects with these field names (docs/design/001-spine.md, "The door"). Unknown fields are ignored: a
neighbour in version may say more.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from ipaddress import ip_interface
from typing import Any, Self

from bridge.errors import RemoteProtocolError
from bridge.model.fields import an_object, maybe_text, text, texts


@dataclass(frozen=True, slots=True)
class Facts:
    """The target's network identity, as the agent sees it from inside.

    `addresses`: CIDR of its interfaces, IPv4 first ("172.18.0.3/16"); loopback and link-local left out. `ping`: True, or why
    ICMP echo cannot be served. `warnings`: what the user should know ("no IPv6 in the target").
    """

    hostname: str
    addresses: tuple[str, ...]
    resolv_conf: str
    hosts: str
    ping: bool | str = True
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Checked field by field: the agent is as trustworthy as its target. Raises RemoteProtocolError."""
        data = an_object(value, "facts")
        told = {name: text(data, name, "facts") for name in ("hostname", "resolv_conf", "hosts")}
        addresses = texts(data, "addresses", "facts")
        try:
            for address in addresses:
                ip_interface(address)
        except ValueError as exc:
            raise RemoteProtocolError("facts: an address is none") from exc
        ping = data.get("ping", True)
        if not isinstance(ping, bool):
            ping = text(data, "ping", "facts")
        return cls(**told, addresses=addresses, ping=ping, warnings=texts(data, "warnings", "facts"))


@dataclass(frozen=True, slots=True)
class BridgeConfig:
    """All that a bridge is told. `rules` are mappings as in mbridge.yaml ({"to": "10.0.0.0/8:443", "verdict": "direct"});
    `names` are container names on the app's own networks; `engine_resolv_conf` is the netns' original one, once it is known."""

    session: str
    target: str
    private_key: str  # OpenSSH format, ed25519; never in an environment variable or a label
    host_key: str  # the agent's, "ssh-ed25519 AAAA…"
    agent_id: str  # 16 hex digits
    rules: tuple[dict[str, Any], ...] = ()
    loopback: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    engine_resolv_conf: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Raises RemoteProtocolError."""
        data = an_object(value, "configure")
        rules = data.get("rules") or ()
        loopback = data.get("loopback") or ()
        if not isinstance(rules, list | tuple) or not isinstance(loopback, list | tuple):
            raise RemoteProtocolError("configure: rules or loopback ports are no list")
        if not all(isinstance(rule, dict) for rule in rules) or not all(type(port) is int and 0 < port < 65536 for port in loopback):
            raise RemoteProtocolError("configure: rules or loopback ports of another type")
        return cls(
            **{name: text(data, name, "configure") for name in ("session", "target", "private_key", "host_key", "agent_id")},
            rules=tuple(rules),
            loopback=tuple(loopback),
            names=texts(data, "names", "configure"),
            engine_resolv_conf=maybe_text(data, "engine_resolv_conf", "configure"),
        )


@dataclass(frozen=True, slots=True)
class AgentIdentity:
    """A running agent: `host` is where its TCP port can be dialled from the developer's machine, if anywhere."""

    agent_id: str
    host_key: str
    port: int
    name: str  # of its container, as the user can look it up
    host: str | None = None
    reused: bool = False


@dataclass(frozen=True, slots=True)
class TargetFound:
    """A target that was looked up: `text` as the user named it, `where` what it is now ("container shop-api-1", "pod orders-x")."""

    text: str
    where: str
    uid: str  # changes when the target is another one
    host_network: bool = False
    hostname: str | None = None
    networks: tuple[str, ...] = ()

"""UDP and ICMP echo of the app: packets of the tun on one side, associations on the agent's sockets on the other.

Theory of operation: the kernel routes every CLUSTER packet that is not TCP into the tun. A UDP packet belongs to the
association of its source (address, port), as a socket would (RFC 4787: endpoint-independent mapping); the agent has one
socket for each. What comes back is built into a packet whose source is the peer that really answered. An echo request
carries a token under which its reply finds the app again.

Limits: 4,096 associations and as many echoes under way; the oldest go first. Datagrams are dropped, not kept, while the
link is down, as a network would. Packets of other protocols get "protocol unreachable" (RFC 792, RFC 4443).
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from ipaddress import ip_address, ip_network

from bridge.protocol import packets, udp

log = logging.getLogger(__name__)

_MAX_ASSOCIATIONS = 4096
_MAX_ECHOES = 4096
_MAX_JUDGED = 4096

Source = tuple[str, int]


class Datagrams:
    """Feed it packets of the tun (`on_packet`) and messages of the agent (`on_message`)."""

    def __init__(self, write: Callable[[bytes], None], send: Callable[[udp.Message], None], app_networks: Sequence[str]) -> None:
        self._write = write
        self._send = send
        self._by_source: OrderedDict[Source, int] = OrderedDict()
        self._by_id: dict[int, Source] = {}
        self._echoes: OrderedDict[int, tuple[str, str]] = OrderedDict()
        self._judged: dict[str, bool] = {}
        self.app_networks(app_networks)
        self._fragments = packets.Fragments()
        self._next = 1
        self.warned = 0

    @property
    def open_associations(self) -> int:
        return len(self._by_source)

    def on_packet(self, packet: bytes | memoryview) -> None:
        """A packet that the app sent to the cluster."""
        whole = self._fragments.whole(bytes(packet))
        if whole is None:
            return
        parsed = packets.parse(whole)
        match parsed:
            case packets.Udp():
                self._send(
                    udp.Datagram(
                        self._association(parsed.source, parsed.source_port), parsed.destination, parsed.destination_port, parsed.data
                    )
                )
            case packets.Echo():
                token = self._number()
                self._echoes[token] = (parsed.source, parsed.destination)
                if len(self._echoes) > _MAX_ECHOES:
                    self._echoes.popitem(last=False)
                self._send(udp.Echo(token, parsed.destination, parsed.ident, parsed.sequence, parsed.data))
            case packets.Other() if parsed.protocol not in _SILENT:
                answer = packets.build_protocol_unreachable(whole)
                if answer is not None:
                    self._write(answer)
            case _:
                pass

    def on_message(self, message: udp.Message) -> None:
        """What the agent's sockets received. The agent is not trusted: only open associations get anything."""
        match message:
            case udp.Datagram(association, address, port, data):
                source = self._by_id.get(association)
                if source is not None and self._may_speak(address) and _same_family(address, source[0]):
                    self._write(packets.build_udp(address, port, source[0], source[1], data))
            case udp.Unreachable(association, address, port, errno_name):
                source = self._by_id.get(association)
                if source is not None and self._may_speak(address) and _same_family(address, source[0]):
                    asked = packets.build_udp(source[0], source[1], address, port, b"")
                    code = packets.UNREACHABLE_CODES.get(errno_name, packets.UNREACHABLE_CODES["ECONNREFUSED"])
                    self._write(packets.build_unreachable(asked, address, code))
            case udp.EchoReply(token, address, ident, sequence, data):
                pair = self._echoes.pop(token, None)
                if pair is not None and pair[1] == address:
                    self._write(packets.build_echo_reply(address, pair[0], ident, sequence, data))
            case udp.Forget(association):
                source = self._by_id.pop(association, None)
                if source is not None:
                    self._by_source.pop(source, None)
            case _:
                log.debug("! the agent sent what only the bridge may send: %s", type(message).__name__)

    def app_networks(self, networks: Sequence[str]) -> None:
        """The app's own networks are these now."""
        self._app_networks = [ip_network(network) for network in networks]
        self._judged.clear()

    def forget_all(self) -> None:
        """The agent is a new one: it knows none of our associations."""
        self._by_source.clear()
        self._by_id.clear()
        self._echoes.clear()

    def _association(self, address: str, port: int) -> int:
        source = (address, port)
        known = self._by_source.get(source)
        if known is not None:
            self._by_source.move_to_end(source)
            return known
        number = self._number()
        self._by_source[source] = number
        self._by_id[number] = source
        log.debug("= association %d udp app %s:%d", number, address, port)
        if len(self._by_source) > _MAX_ASSOCIATIONS:
            _, oldest = self._by_source.popitem(last=False)
            self._by_id.pop(oldest, None)
            self._send(udp.Forget(oldest))
        return number

    def _number(self) -> int:
        number, self._next = self._next, self._next % 0xFFFFFFFF + 1
        return number

    def _may_speak(self, address: str) -> bool:
        """A claimed peer in loopback, multicast or the app's own networks is a lie of the agent's."""
        known = self._judged.get(address)
        if known is None:
            peer = ip_address(address)
            known = not (peer.is_loopback or peer.is_multicast or peer.is_unspecified) and not any(
                peer.version == network.version and peer in network for network in self._app_networks
            )
            if len(self._judged) >= _MAX_JUDGED:
                self._judged.clear()
            self._judged[address] = known
        return known


_TCP, _ICMP, _ICMPV6, _IGMP, _HOP_BY_HOP = 6, 1, 58, 2, 0
# a late TCP segment gets nothing here: its flow has been redirected; ICMP errors are never answered by ICMP errors
_SILENT = frozenset({_TCP, _ICMP, _ICMPV6, _IGMP, _HOP_BY_HOP})


def _same_family(one: str, other: str) -> bool:
    return (":" in one) == (":" in other)

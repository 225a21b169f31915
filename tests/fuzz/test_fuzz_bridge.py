"""What comes from outside, at length: packets of the app, datagrams and door lines of a peer, netlink messages.

The same properties as the unit tests', with many more examples: nothing but the declared error, nothing unbounded.
"""

from __future__ import annotations

import contextlib
import json
import struct
from ipaddress import ip_network

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge.engine.datagrams import Datagrams
from bridge.errors import RemoteProtocolError
from bridge.model.rules import KEEP_S, Route, RuleSet, parse_rule
from bridge.protocol import door, handing, nfqueue, packets, udp
from bridge.protocol.dns import names_in_hosts

LONG = settings(max_examples=3000, deadline=None, suppress_health_check=[HealthCheck.too_slow])

u16 = st.integers(0, 0xFFFF)
ends = st.sampled_from([("10.0.3.7", "10.0.3.9"), ("fd00::7", "fd00::9")])
ports, payload = st.tuples(u16, u16), st.binary(max_size=200)
datagrams = st.builds(lambda pair, two, data: packets.build_udp(pair[0], two[0], pair[1], two[1], data), ends, ports, payload)


def flipped(packet: bytes, places: list[tuple[int, int]], end: int) -> bytes:
    damaged = bytearray(packet)
    for place, value in places:
        damaged[place % len(damaged)] = value
    return bytes(damaged[: len(damaged) - end % (len(damaged) + 1)])


damage = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6)
damaged_packets = st.builds(flipped, datagrams, damage, st.integers(0, 300))


@LONG
@given(st.lists(st.one_of(damaged_packets, st.binary(max_size=300)), max_size=8), st.lists(st.binary(max_size=80), max_size=8))
def test_neither_the_apps_packets_nor_the_agents_messages_break_the_datagrams(app: list[bytes], agent: list[bytes]) -> None:
    written: list[bytes] = []
    sent: list[udp.Message] = []
    engine = Datagrams(written.append, sent.append, ["172.18.0.0/16"])
    for packet in app:
        engine.on_packet(packet)
    for message in sent:
        assert udp.decode(udp.encode(message)) == message
    for body in agent:
        with contextlib.suppress(RemoteProtocolError):
            engine.on_message(udp.decode(body))
    for packet in written:
        assert packets.parse(packet) is not None


@LONG
@given(st.binary(max_size=300))
def test_netlink_messages(data: bytes) -> None:
    nfqueue.parse(data)


@LONG
@given(st.binary(max_size=200), st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), max_size=4))
def test_netlink_messages_of_the_right_shape(payload: bytes, places: list[tuple[int, int]]) -> None:
    attributes = struct.pack("=HH", 11, 1) + struct.pack("!IHB", 7, 0x800, 3) + b"\0"
    attributes += struct.pack("=HH", 4 + len(payload), 10) + payload
    message = struct.pack("=IHHII", 20 + len(attributes), 0x300, 0, 0, 0) + bytes(4) + attributes
    for found in nfqueue.parse(flipped(message, places, 0)):
        assert isinstance(found, int | nfqueue.HeldSyn | nfqueue.QueueError)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = ("id", "why", "final", "host_key", "agent_id", "names", "avoid", "facts", "engine_resolv_conf", "link", "rules", "loopback")
TYPES = ("configure", "carrier-failed", "agent", "names", "dial", "ready", "status", "failed", "stop", "other")


@LONG
@given(st.sampled_from(TYPES), st.dictionaries(st.sampled_from(KEYS), json_values))
def test_door_lines(kind: str, fields: dict[str, object]) -> None:
    with contextlib.suppress(RemoteProtocolError):
        message = door.decode(json.dumps({**fields, "type": kind}).encode())
        assert message is None or door.decode(door.encode(message)) == message


@LONG
@given(st.binary(max_size=4000), st.lists(st.integers(1, 200), max_size=30))
def test_lines_come_whole_however_they_are_cut(stream: bytes, sizes: list[int]) -> None:
    reader, lines, at = door.LineReader(), [], 0
    for size in [*sizes, len(stream)]:
        lines += reader.feed(stream[at : at + size])
        at += size
    assert lines == stream.split(b"\n")[:-1]


words = st.sampled_from(["10.0.0.7", "fd00::7", "fe80::1%eth0", "127.0.0.1", "a.example", "b", "A.Example.", "#", "\n", "\t", "%", "1.2.3"])
hosts_files = st.lists(st.one_of(words, st.text(max_size=4)), max_size=40).map(" ".join)
RULES = ({"to": "*.example", "verdict": "deny"}, {"to": "b:1", "verdict": "direct"}, {"to": "a.*", "verdict": "cluster"})


@LONG
@given(st.lists(hosts_files, max_size=4))
def test_rules_have_routes_for_single_addresses_of_any_hosts_file_and_forget_them_all(files: list[str]) -> None:
    rules = RuleSet(tuple(parse_rule(rule) for rule in RULES))
    standing: set[Route] = set()
    for text in files:
        standing |= set(rules.pin(names_in_hosts(text), 0))
    assert all(ip_network(route.network).num_addresses == 1 for route in standing)
    rules.pin({}, 0)
    assert standing <= set(rules.expire(KEEP_S))


kinds = st.sampled_from([b"", b"H", b"D", b"O", b"R", b"T", b"A", b"E"])


@LONG
@given(st.builds(bytes.__add__, kinds, st.binary(max_size=handing.MAX_PACKET)))
def test_packets_of_handing(packet: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        message = handing.decode(packet)
        written = handing.encode(message)
        assert len(written) <= handing.MAX_PACKET
        assert handing.decode(written) == message

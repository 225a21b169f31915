"""The door's messages: each survives the wire, and a stranger's line never raises anything but RemoteProtocolError."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.errors import LocalProtocolError, RemoteProtocolError
from bridge.model.facts import BridgeConfig, Facts
from bridge.protocol import door

FACTS = Facts("orders-1", ("10.0.3.7/24", "fd00::7/64"), "nameserver 127.0.0.11\n", "10.0.3.7 orders-1\n", "no ping socket", ("slow",))
RULE = {"to": "10.0.0.0/8", "verdict": "direct"}
CONFIG = BridgeConfig("abcdef", "docker/orders", "KEY", "ssh-ed25519 AAAA", "00" * 8, (RULE,), (9092,), ("db",))
MESSAGES: list[door.Message] = [
    door.Configure(CONFIG),
    door.CarrierFailed(3, "refused", final=True),
    door.Agent("ssh-ed25519 BBBB", "11" * 8),
    door.Names(("db", "cache")),
    door.Stop(),
    door.Dial(4, ("direct",)),
    door.Ready(FACTS, "nameserver 10.0.0.2\n"),
    door.Status(door.LinkStatus("connected", 1764300000.5, "direct"), ("no IPv6",), "iptables", 3, 9, 1),
    door.Status(door.LinkStatus("reconnecting", 1764300000.0, None, "the carrier ended")),
    door.Status(door.LinkStatus("connected", 1764300000.0, "direct", None, handed=True)),
    door.Failed("KernelLacks", "no tun", "modprobe tun"),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_every_message_survives_the_wire(message: door.Message) -> None:
    line = door.encode(message)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert door.decode(line) == message


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_missing_field_is_told_not_guessed(message: door.Message) -> None:
    whole = json.loads(door.encode(message))
    if message in (door.Stop(), MESSAGES[3]):
        return  # nothing to miss: no names means none
    for name in [name for name in whole if name not in ("type", "avoid", "final", "hint", "warnings", "holder", "flows")]:
        if isinstance(message, door.Configure) and name in ("rules", "loopback", "names", "engine_resolv_conf"):
            continue
        if isinstance(message, door.Status) and name != "link":
            continue
        with pytest.raises(RemoteProtocolError):
            door.decode(json.dumps({key: value for key, value in whole.items() if key != name}).encode())


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_newer_half_may_say_more(message: door.Message) -> None:
    whole = json.loads(door.encode(message)) | {"since": {"another": ["release"]}}
    assert door.decode(json.dumps(whole).encode()) == message


def test_a_newer_half_may_say_what_nobody_knows() -> None:
    assert door.decode(b'{"type": "sing", "song": 4}') is None


scalars = st.sampled_from([None, True, 0, -1, 1.5, "", "connected", "10.0.0.0/8"])
json_values = scalars | st.lists(scalars, max_size=2) | st.dictionaries(st.sampled_from(["state", "since", "hostname", "to"]), scalars)
KEYS = ["id", "why", "host_key", "agent_id", "names", "avoid", "facts", "engine_resolv_conf", "link", "warnings", "rules", "loopback"]
KEYS += ["session", "target", "private_key", "error", "message", "hint", "flows"]
TYPES = ["configure", "carrier-failed", "agent", "names", "dial", "ready", "status", "failed"]


@given(st.sampled_from(TYPES), st.dictionaries(st.sampled_from(KEYS), json_values))
def test_wrong_types_are_the_peers_fault(kind: str, fields: dict[str, object]) -> None:
    with contextlib.suppress(RemoteProtocolError):
        door.decode(json.dumps({**fields, "type": kind}).encode())


@given(st.binary(max_size=200))
def test_any_line_is_a_message_or_the_peers_fault(line: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        door.decode(line)


@given(st.lists(st.integers(1, 40)))
def test_lines_are_found_however_they_are_cut(sizes: list[int]) -> None:
    stream = b"".join(door.encode(message) for message in MESSAGES)
    reader, lines, at = door.LineReader(), [], 0
    for size in [*sizes, len(stream)]:
        lines += reader.feed(stream[at : at + size])
        at += size
    assert [door.decode(line) for line in lines] == MESSAGES


def test_an_endless_line_is_refused() -> None:
    reader = door.LineReader()
    for _ in range(10):
        assert reader.feed(bytes(100_000)) == []
    with pytest.raises(RemoteProtocolError):
        reader.feed(bytes(100_000))


def test_a_message_too_long_for_the_door_is_our_fault() -> None:
    with pytest.raises(LocalProtocolError):
        door.encode(door.Names(("x" * door.MAX_LINE_BYTES,)))

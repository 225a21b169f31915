"""Packets: what is built is understood again, has checksums that the kernel accepts, and rubbish is never an exception."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.protocol import packets

u16 = st.integers(0, 0xFFFF)
pairs = st.one_of(
    st.tuples(st.ip_addresses(v=4), st.ip_addresses(v=4)),
    st.tuples(st.ip_addresses(v=6), st.ip_addresses(v=6)),
).map(lambda pair: (str(pair[0]), str(pair[1])))


def ones_complement_sum(data: bytes) -> int:
    """RFC 1071 as it is written, word by word: 0xffff when the checksum inside is right."""
    total = sum(struct.unpack(f"!{len(data) // 2 + len(data) % 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def pseudo(source: str, destination: str, protocol: int, length: int) -> bytes:
    one, other = ip_address(source).packed, ip_address(destination).packed
    return one + other + (struct.pack("!HH", protocol, length) if len(one) == 4 else struct.pack("!II", length, protocol))


def payload_of(packet: bytes) -> bytes:
    return packet[20:] if packet[0] >> 4 == 4 else packet[40:]


@given(pairs, u16, u16, st.binary(max_size=300))
def test_a_datagram_that_was_built_is_understood_again(pair: tuple[str, str], source: int, destination: int, data: bytes) -> None:
    packet = packets.build_udp(pair[0], source, pair[1], destination, data)
    assert packets.parse(packet) == packets.Udp(pair[0], source, pair[1], destination, data)


@given(pairs, u16, u16, st.binary(max_size=300))
def test_checksums_are_those_of_rfc_1071(pair: tuple[str, str], source: int, destination: int, data: bytes) -> None:
    packet = packets.build_udp(pair[0], source, pair[1], destination, data)
    if packet[0] >> 4 == 4:
        assert ones_complement_sum(packet[:20]) == 0xFFFF
    udp = payload_of(packet)
    assert udp[6:8] != b"\0\0"
    assert ones_complement_sum(pseudo(*pair, 17, len(udp)) + udp) == 0xFFFF


@given(pairs, u16, u16, st.binary(max_size=100))
def test_an_echo_reply_answers_its_request(pair: tuple[str, str], ident: int, sequence: int, data: bytes) -> None:
    packet = packets.build_echo_reply(*pair, ident, sequence, data)
    icmp = payload_of(packet)
    six = ":" in pair[0]
    assert icmp[0] == (129 if six else 0)
    assert icmp[4:] == struct.pack("!HH", ident, sequence) + data
    assert ones_complement_sum((pseudo(*pair, 58, len(icmp)) if six else b"") + icmp) == 0xFFFF
    request = bytearray(packet)
    request[len(packet) - len(icmp)] = 128 if six else 8
    assert packets.parse(bytes(request)) == packets.Echo(*pair, ident, sequence, data)


@pytest.mark.parametrize(("errno_name", "four", "six"), [("ECONNREFUSED", 3, 4), ("EHOSTUNREACH", 1, 3), ("ENETUNREACH", 0, 0)])
def test_an_error_quotes_the_packet_it_is_about(errno_name: str, four: int, six: int) -> None:
    for app, peer, code in (("10.0.0.7", "10.0.0.9", four), ("fd00::7", "fd00::9", six)):
        asked = packets.build_udp(app, 4000, peer, 53, b"question")
        error = packets.build_unreachable(asked, peer, packets.UNREACHABLE_CODES[errno_name])
        icmp = payload_of(error)
        assert icmp[:2] == bytes([3 if ":" not in app else 1, code])
        assert icmp[8:] == asked
        assert packets.parse(error) == packets.Other(peer, app, 1 if ":" not in app else 58)


def test_a_protocol_that_is_not_ours_is_answered_by_its_own_destination() -> None:
    sctp = bytearray(packets.build_udp("10.0.0.7", 1, "10.0.0.9", 2, b"x" * 40))
    sctp[9] = 132
    error = packets.build_protocol_unreachable(bytes(sctp))
    assert error is not None
    assert packets.parse(error) == packets.Other("10.0.0.9", "10.0.0.7", 1)
    assert error[20:22] == b"\x03\x02"


@pytest.mark.parametrize("destination", ["224.0.0.1", "255.255.255.255", "ff02::1"])
def test_nobody_answers_for_many(destination: str) -> None:
    source = "fd00::7" if ":" in destination else "10.0.0.7"
    packet = bytearray(packets.build_udp(source, 1, destination, 2, b""))
    packet[6 if ":" in destination else 9] = 132
    assert packets.build_protocol_unreachable(bytes(packet)) is None


def test_the_largest_datagram_of_ipv4_is_one_packet() -> None:
    packet = packets.build_udp("10.0.0.7", 1, "10.0.0.9", 2, bytes(65507))
    assert len(packet) == 65535
    assert packets.parse(packet) == packets.Udp("10.0.0.7", 1, "10.0.0.9", 2, bytes(65507))


def test_a_fragment_is_not_taken_for_a_datagram() -> None:
    packet = bytearray(packets.build_udp("10.0.0.7", 1, "10.0.0.9", 2, b"hello"))
    packet[6] |= 0x20  # more fragments
    assert packets.parse(bytes(packet)) is None


def in_pieces(packet: bytes, size: int, ident: int) -> list[bytes]:
    """An IPv6 packet as RFC 8200 4.5 cuts it."""
    payload, found = packet[40:], []
    for at in range(0, len(payload), size):
        piece, more = payload[at : at + size], at + size < len(payload)
        found.append(
            packet[:4]
            + struct.pack("!HBB", 8 + len(piece), 44, 64)
            + packet[8:40]
            + struct.pack("!BBHI", packet[6], 0, at | more, ident)
            + piece
        )
    return found


@given(st.integers(1, 40), st.binary(min_size=1, max_size=900))
def test_an_ipv6_datagram_in_pieces_is_put_together(eighths: int, data: bytes) -> None:
    packet = packets.build_udp("fd00::7", 1, "fd00::9", 2, data)
    fragments = packets.Fragments()
    *first, last = in_pieces(packet, eighths * 8, 9)
    assert [fragments.whole(piece) for piece in first] == [None] * len(first)
    assert fragments.whole(last) == packet


def test_pieces_of_two_datagrams_do_not_mix_and_a_gap_loses_the_datagram() -> None:
    one, other = (packets.build_udp("fd00::7", 1, "fd00::9", 2, bytes([n]) * 40) for n in (1, 2))
    fragments = packets.Fragments()
    pieces = [piece for pair in zip(in_pieces(one, 24, 1), in_pieces(other, 24, 2), strict=True) for piece in pair]
    assert [fragments.whole(piece) for piece in pieces] == [None, None, one, other]
    first, second, third = in_pieces(packets.build_udp("fd00::7", 1, "fd00::9", 2, bytes(50)), 24, 3)
    assert fragments.whole(first) is None
    assert fragments.whole(third) is None
    assert fragments.whole(second) is None


def test_empty_pieces_are_not_kept() -> None:
    fragments = packets.Fragments()
    empty = in_pieces(packets.build_udp("fd00::7", 1, "fd00::9", 2, bytes(40)), 24, 1)[0][:48]
    empty = empty[:4] + struct.pack("!H", 8) + empty[6:]
    for _ in range(1000):
        assert fragments.whole(empty) is None
    assert sum(map(len, fragments._pieces.values())) == 0


@given(st.lists(st.binary(min_size=8, max_size=60), max_size=40))
def test_rubbish_in_pieces_is_harmless_and_bounded(tails: list[bytes]) -> None:
    fragments = packets.Fragments()
    head = packets.build_udp("fd00::7", 1, "fd00::9", 2, b"")[:4]
    for tail in tails:
        fragments.whole(head + struct.pack("!HBB", len(tail), 44, 64) + bytes(32) + tail)
    assert len(fragments._pieces) <= 16


@given(st.binary(max_size=120))
def test_rubbish_is_no_packet_or_harmless(data: bytes) -> None:
    packets.parse(data)
    packets.build_protocol_unreachable(data)


@given(pairs, st.binary(max_size=60), st.data())
def test_a_packet_damaged_anywhere_is_harmless(pair: tuple[str, str], data: bytes, draw: st.DataObject) -> None:
    packet = bytearray(packets.build_udp(pair[0], 1, pair[1], 2, data))
    packet[draw.draw(st.integers(0, len(packet) - 1))] = draw.draw(st.integers(0, 255))
    cut = bytes(packet[: draw.draw(st.integers(0, len(packet)))])
    found = packets.parse(cut)
    packets.build_protocol_unreachable(cut)
    if isinstance(found, packets.Udp):
        assert len(found.data) <= len(cut)

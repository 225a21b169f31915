"""UDP messages: what goes in comes out; what is malformed is the peer's fault, never an exception of Python's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.errors import LocalProtocolError, RemoteProtocolError
from bridge.protocol import udp

u16, u32 = st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF)
address = st.ip_addresses().map(str)
data = st.binary(max_size=2000)
messages = st.one_of(
    st.builds(udp.Datagram, u32, address, u16, data),
    st.builds(udp.Unreachable, u32, address, u16, st.sampled_from(["ECONNREFUSED", "EHOSTUNREACH", "EMSGSIZE"])),
    st.builds(udp.Echo, u32, address, u16, u16, data),
    st.builds(udp.EchoReply, u32, address, u16, u16, data),
    st.builds(udp.Forget, u32),
)


@given(messages)
def test_every_message_survives_the_wire(message: udp.Message) -> None:
    assert udp.decode(udp.encode(message)) == message


def test_the_largest_datagram_of_udp_passes() -> None:
    message = udp.Datagram(7, "10.0.0.1", 53, bytes(65507))
    assert udp.decode(udp.encode(message)) == message
    assert len(udp.encode(message)) <= udp.MAX_MESSAGE_BYTES


@given(st.binary(max_size=64))
def test_any_bytes_are_a_message_or_the_peers_fault(body: bytes) -> None:
    try:
        message = udp.decode(body)
    except RemoteProtocolError:
        return
    assert udp.encode(message) == body


@given(messages, st.data())
def test_a_message_cut_short_is_never_taken_for_another_peer(message: udp.Message, draw: st.DataObject) -> None:
    whole = udp.encode(message)
    part = whole[: draw.draw(st.integers(0, len(whole) - 1))]
    try:
        found = udp.decode(part)
    except RemoteProtocolError:
        return
    assert type(found) is type(message)
    assert getattr(found, "address", None) == getattr(message, "address", None)


def test_an_impossible_address_is_our_own_fault() -> None:
    with pytest.raises(LocalProtocolError):
        udp.encode(udp.Datagram(1, "not-an-address", 1, b""))
    with pytest.raises(LocalProtocolError):
        udp.encode(udp.Datagram(1, "10.0.0.1", 1, bytes(65536)))


@pytest.mark.parametrize("name", [b"", b"A" * 33, b"E-X", "EÄ".encode()])
def test_a_name_that_is_no_errnos_is_refused(name: bytes) -> None:
    right = udp.encode(udp.Unreachable(1, "10.0.0.1", 1, "ECONNREFUSED"))
    with pytest.raises(RemoteProtocolError, match="name"):
        udp.decode(right.removesuffix(b"ECONNREFUSED") + name)

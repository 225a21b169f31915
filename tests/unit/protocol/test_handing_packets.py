"""Packets of handing: what one side writes the other reads, and nothing else gets through."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.errors import RemoteProtocolError
from bridge.protocol import handing
from bridge.protocol.handing import MAX_PACKET, TOKEN_BYTES, Abort, Dial, Ended, Hello, Opened, Refused, Take

numbers = st.integers(0, 2**64 - 1)
addresses = st.ip_addresses().map(str)
words = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=255)
messages = st.one_of(
    st.builds(Hello, st.binary(min_size=TOKEN_BYTES, max_size=TOKEN_BYTES)),
    st.builds(Dial, numbers, addresses, st.integers(0, 65535)),
    st.builds(Opened, numbers),
    st.builds(Refused, numbers, st.sampled_from(["ECONNREFUSED", "ENETUNREACH", "E2BIG"])),
    st.builds(Take, numbers),
    st.builds(Abort, numbers),
    st.builds(Ended, numbers, numbers, numbers, words),
)


@given(messages)
def test_what_is_written_is_read_and_fits_a_packet(message: handing.Message) -> None:
    packet = handing.encode(message)
    assert len(packet) <= MAX_PACKET
    assert handing.decode(packet) == message


@given(st.builds(bytes.__add__, st.sampled_from([b"", b"H", b"D", b"O", b"R", b"T", b"A", b"E"]), st.binary(max_size=300)))
def test_any_other_bytes_are_refused_by_name_or_a_message_that_can_be_written(packet: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        message = handing.decode(packet)
        assert handing.decode(handing.encode(message)) == message


@given(messages, st.integers(0, 40))
def test_a_packet_that_was_cut_never_passes_for_another_flows(message: handing.Message, size: int) -> None:
    packet = handing.encode(message)
    with contextlib.suppress(RemoteProtocolError):
        read = handing.decode(packet[:size])
        if isinstance(message, Hello) or isinstance(read, Hello):
            assert read == message
        else:
            assert (type(read), read.number) == (type(message), message.number)


LENGTHS = [(b"", 0), (b"X", 8), (b"O", 7), (b"O", 9), (b"T", 0), (b"T", 12), (b"A", 4), (b"H", 31), (b"H", 33), (b"D", 9), (b"E", 23)]


@pytest.mark.parametrize(("kind", "size"), LENGTHS)
def test_a_packet_of_another_length_or_kind_is_refused(kind: bytes, size: int) -> None:
    with pytest.raises(RemoteProtocolError):
        handing.decode(kind + bytes(size))


HEADS = {"dial": b"D" + bytes(10), "refused": b"R" + bytes(8), "ended": b"E" + bytes(24)}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())
def test_texts_are_of_1_to_255_bytes_and_utf_8(head: bytes) -> None:
    for right in (b"x", b"x" * 255):
        handing.decode(head + right)
    for wrong in (b"", b"x" * 256, b"\xff"):
        with pytest.raises(RemoteProtocolError):
            handing.decode(head + wrong)


def test_a_text_for_the_log_is_cut_between_characters_and_holds_none_that_move_a_cursor() -> None:
    read = handing.decode(handing.encode(Ended(1, 2, 3, "RESET \x1b[2J" + "é" * 200)))
    assert isinstance(read, Ended)
    assert read.how.startswith("RESET ?[2Jé")
    assert read.how.endswith("é")

"""SPDY of a port-forward, against frames written by hand after the draft, and against itself cut anywhere."""

from __future__ import annotations

import itertools
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.errors import RemoteProtocolError
from bridge.protocol.spdy import PortForward, dictionary

SYN_REPLY, RST_STREAM, SETTINGS, PING, GOAWAY = 2, 3, 4, 6, 7


def control(kind: int, body: bytes, flags: int = 0) -> bytes:
    return struct.pack("!HHI", 0x8003, kind, flags << 24 | len(body)) + body


def data(stream: int, body: bytes, flags: int = 0) -> bytes:
    return struct.pack("!II", stream, flags << 24 | len(body)) + body


def heard(pieces: list[bytes], wire: PortForward | None = None) -> list[tuple[str, bytes]]:
    """What `pieces` tell; data and words that follow each other are joined."""
    wire = wire or PortForward(5432)
    parts: list[tuple[str, bytes]] = []
    for piece in pieces:
        for part in wire.feed(memoryview(piece), True):
            if parts and parts[-1][0] == part.kind:
                parts[-1] = (part.kind, parts[-1][1] + bytes(part.body))
            else:
                parts.append((part.kind, bytes(part.body)))
    return parts


def test_the_dictionary_is_the_drafts() -> None:
    assert (len(dictionary()), zlib.adler32(dictionary())) == (1423, 0xE3C6A7C2)  # which every zlib stream of SPDY/3 names


def test_it_opens_an_error_stream_that_it_ends_and_a_data_stream() -> None:
    opening = PortForward(5432).opening
    unpacker = zlib.decompressobj(zdict=dictionary())
    streams = []
    while opening:
        version, kind, rest = struct.unpack_from("!HHI", opening)
        body, opening = opening[8 : 8 + (rest & 0xFFFFFF)], opening[8 + (rest & 0xFFFFFF) :]
        block = unpacker.decompress(body[10:])
        words = []
        at = 4
        while at < len(block):
            size = int.from_bytes(block[at : at + 4], "big")
            words.append(block[at + 4 : at + 4 + size].decode())
            at += 4 + size
        assert int.from_bytes(block[:4], "big") * 2 == len(words)
        streams.append((version, kind, rest >> 24, int.from_bytes(body[:4], "big"), dict(zip(words[::2], words[1::2], strict=True))))
    assert streams == [
        (0x8003, 1, 1, 1, {"port": "5432", "requestid": "0", "streamtype": "error"}),
        (0x8003, 1, 0, 3, {"port": "5432", "requestid": "0", "streamtype": "data"}),
    ]


def test_what_is_sent_is_a_data_frame_of_the_data_stream() -> None:
    wire = PortForward(5432)
    assert wire.head(70_000) + bytes(70_000) == data(3, bytes(70_000))
    assert wire.ending == data(3, b"", flags=1)


def test_data_words_and_the_end_are_told_apart() -> None:
    said = [control(SYN_REPLY, bytes(40)), data(3, b"hello"), control(SETTINGS, bytes(12)), data(1, b"why", flags=1), data(3, b"", flags=1)]
    assert heard(said) == [("data", b"hello"), ("error", b"why"), ("end", b"")]


def test_a_port_that_refuses_ends_its_data_before_it_says_why() -> None:
    assert heard([data(3, b"bye", flags=1)]) == [("data", b"bye")]
    assert heard([data(3, b"", flags=1), data(1, b"connection refused"), data(1, b"", flags=1)]) == [
        ("error", b"connection refused"),
        ("end", b""),
    ]


@pytest.mark.parametrize(
    "frames",
    [
        [control(RST_STREAM, struct.pack("!II", 3, 5))],
        [control(GOAWAY, bytes(8))],
        [control(SYN_REPLY, struct.pack("!I", 3), flags=1), control(RST_STREAM, struct.pack("!II", 1, 5))],
    ],
)
def test_other_ways_to_end(frames: list[bytes]) -> None:
    assert heard(frames) == [("end", b"")]
    assert heard(frames[1:]) == []


def test_a_ping_of_the_servers_is_answered_with_itself() -> None:
    ping = control(PING, struct.pack("!I", 2))
    assert heard([ping]) == [("answer", ping)]
    assert heard([control(PING, struct.pack("!I", 1))]) == []  # an answer to one of ours, of which there is none


@pytest.mark.parametrize("frame", [struct.pack("!HHI", 0x8002, 6, 4), struct.pack("!HHI", 0x8003, 2, 1 << 20)])
def test_another_version_and_an_endless_control_frame_are_refused(frame: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        heard([frame])


FRAMES = st.one_of(
    st.builds(data, st.sampled_from([1, 3, 5]), st.binary(max_size=40)),
    st.builds(control, st.sampled_from([SYN_REPLY, SETTINGS, 8, 9]), st.binary(min_size=4, max_size=40)),
    st.builds(lambda number: control(PING, struct.pack("!I", number)), st.integers(0, 100)),
)


@given(st.lists(FRAMES, max_size=8), st.lists(st.integers(0, 400), max_size=12))
def test_it_does_not_matter_where_messages_are_cut(frames: list[bytes], cuts: list[int]) -> None:
    whole = b"".join(frames)
    places = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    pieces = [whole[begin:end] for begin, end in itertools.pairwise(places)]
    assert heard(pieces) == heard([whole])

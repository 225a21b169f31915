"""Whatever an API server, or something in its place, puts into a carrier's WebSocket: parts or a RemoteProtocolError, in bounded memory."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.errors import RemoteProtocolError
from bridge.protocol import wsframes
from bridge.protocol.channels import Channels, Wire
from bridge.protocol.spdy import PortForward

WIRES = [lambda: PortForward(80), lambda: Channels(0, frozenset({1}), skip=2), lambda: Channels(1, frozenset({2, 3}))]
FIRST = st.sampled_from([0x82, 0x02, 0x80, 0x89, 0x88])
SERVER = st.one_of(
    st.binary(max_size=64),
    st.builds(lambda first, body: bytes((first, len(body))) + body, FIRST, st.binary(max_size=100)),
    st.builds(
        lambda kind, flags, body: struct.pack("!BBHHI", 0x82, 8 + len(body), 0x8003, kind, flags << 24 | len(body)) + body,
        st.integers(0, 12), st.integers(0, 255), st.binary(max_size=100),
    ),
)  # fmt: skip


@pytest.mark.parametrize("make", WIRES)
@given(said=st.lists(SERVER, max_size=12), cut=st.integers(1, 40))
def test_anything_in_a_carriers_websocket(make, said: list[bytes], cut: int) -> None:
    wire: Wire = make()
    decoder = wsframes.Decoder()
    stream = b"".join(said)
    told = 0
    with contextlib.suppress(RemoteProtocolError):
        for at in range(0, len(stream), cut):
            for piece in decoder.feed(stream[at : at + cut]):
                if piece.kind == "data":
                    told += sum(len(part.body) for part in wire.feed(piece.body, piece.start))
    assert told <= len(stream)

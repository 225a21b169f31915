"""asyncssh's connection with a short path for the bytes of channels.

Theory of operation: asyncssh does what needs care and happens once: versions, key exchange, host key, authentication, rekeying,
disconnects. Once that is done, nearly every packet belongs to a channel, and three habits of asyncssh cost more than the
encryption itself: an empty IGNORE packet before each packet (a defence of CBC ciphers, of no use with AES-GCM), a log call per
packet, and several slices of the whole input per packet. Here packets of open channels are sealed and opened in one call each,
and handed to `Channel` objects of ours (channel.py). Every other packet takes asyncssh's own path, in order: the cipher's state is
shared (`Gcm` counts invocations for both).

    data_received -> whole packets -> Gcm.open -> channel packet?  yes: Channel.receive(type, body)
                                                                   no:  asyncssh's _recv_packet, with the plain text in hand

The transport's pause_writing stops all channels; resume_writing lets them go on in turn, one packet each.

Limits: leans on asyncssh's private parts, so requirements pin its version, and a test drives both paths against asyncssh's own.
Only aes128-gcm@openssh.com (RFC 5647): the packet's length is in clear, so whole packets can be cut out before decryption.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import asyncssh
from asyncssh.constants import MSG_CHANNEL_OPEN, MSG_CHANNEL_OPEN_CONFIRMATION, MSG_KEX_LAST
from asyncssh.encryption import Encryption, GCMEncryption
from asyncssh.misc import MACError, ProtocolError
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bridge.adapters.ssh.windows import Windows

if TYPE_CHECKING:
    from asyncssh.connection import SSHConnection

    from bridge.adapters.ssh.channel import Channel
else:
    SSHConnection = object

PACKET_BYTES = 256 << 10
CIPHER = "aes128-gcm@openssh.com"
_TAG, _HEADER, _BLOCK = 16, 4, 16
_MOST_OVERHEAD = 1024
_CHANNEL_FIRST, _CHANNEL_LAST = MSG_CHANNEL_OPEN_CONFIRMATION, 100  # RFC 4250, 4.1.2: CHANNEL_OPEN itself (90) is the connection's
_PADDING = [bytes(size) for size in range(_BLOCK + 4)]


class Gcm(Encryption):
    """AES-GCM of one direction, RFC 5647 with OpenSSH's names: 4 fixed bytes and a 64-bit counter make the nonce."""

    def __init__(self, stock: GCMEncryption) -> None:
        cipher = stock._cipher
        self._aead = AESGCM(cipher._key)
        self._fixed = cipher._iv[:4]
        self._count = int.from_bytes(cipher._iv[4:], "big")
        self.opened: bytes | None = None  # plain text of the packet that asyncssh is about to "decrypt"

    def _nonce(self) -> bytes:
        count = self._count
        self._count = (count + 1) & 0xFFFFFFFFFFFFFFFF
        return self._fixed + count.to_bytes(8, "big")

    def seal(self, head: bytes, body: bytes | memoryview) -> bytearray:
        """A whole packet whose payload is head + body."""
        size = len(head) + len(body)
        padding = -(size + 1) % _BLOCK
        if padding < 4:
            padding += _BLOCK
        length = size + 1 + padding
        packet = bytearray(_HEADER + length + _TAG)
        header = length.to_bytes(4, "big")
        packet[:_HEADER] = header
        plain = b"".join((padding.to_bytes(1, "big"), head, body, _PADDING[padding]))
        self._aead.encrypt_into(self._nonce(), plain, header, memoryview(packet)[_HEADER:])
        return packet

    def open(self, packet: memoryview, scratch: bytearray) -> memoryview:
        """The payload of a whole packet; it lives in `scratch`. Raises MACError."""
        size = len(packet) - _HEADER - _TAG
        try:
            self._aead.decrypt_into(self._nonce(), packet[_HEADER:], packet[:_HEADER], memoryview(scratch)[:size])
        except InvalidTag:
            raise MACError("MAC verification failed") from None
        padding = scratch[0]
        if padding >= size:
            raise ProtocolError("padding longer than its packet")
        return memoryview(scratch)[: size - padding]

    # asyncssh's own path

    def encrypt_packet(self, seq: int, header: bytes, packet: bytes) -> tuple[bytes, bytes]:
        sealed = self._aead.encrypt(self._nonce(), packet, header)
        return header + sealed, b""

    def decrypt_header(self, seq: int, first_block: bytes, header_len: int) -> tuple[bytes, bytes]:
        return first_block, first_block[:header_len]

    def decrypt_packet(self, seq: int, first: bytes, rest: bytes, header_len: int, mac: bytes) -> bytes | None:
        opened, self.opened = self.opened, None
        if opened is not None:
            return opened
        try:
            return self._aead.decrypt(self._nonce(), first[header_len:] + rest + mac, first[:header_len])
        except InvalidTag:
            return None


class FastPath(SSHConnection):
    """Mixed into asyncssh's client and server connections. `windows` bounds what all channels may have under way."""

    windows: Windows
    takes_views = True  # of its transport: nothing is kept past `data_received`

    def prepare(self, windows: Windows) -> None:
        """Before connection_made."""
        self.windows = windows
        self.write_paused = False
        self._held = bytearray()
        self._scratch = bytearray(0)
        self._in_turn: deque[Channel] = deque()
        self._update_recv_pktlen(PACKET_BYTES + _MOST_OVERHEAD)

    def send_newkeys(self, k: bytes, h: bytes) -> None:
        super().send_newkeys(k, h)
        if isinstance(self._send_encryption, GCMEncryption):
            self._send_encryption = Gcm(self._send_encryption)
        if isinstance(self._next_recv_encryption, GCMEncryption):
            self._next_recv_encryption = Gcm(self._next_recv_encryption)

    def fail(self, why: str) -> None:
        """The far side breaks the rules: end this connection, saying why."""
        if self._transport is not None:
            exc = ProtocolError(why)
            self._send_disconnect(exc.code, exc.reason, exc.lang)
            self._force_close(exc)

    # sending

    def send_packet(self, pkttype: int, *args: bytes, handler: Any = None) -> None:
        cipher = self._send_encryption
        if (
            pkttype > MSG_KEX_LAST
            and self._kex_complete
            and self._auth_complete
            and type(cipher) is Gcm
            and self._rekey_bytes_sent < self._rekey_bytes
        ):
            self._put(cipher.seal(pkttype.to_bytes(1, "big"), b"".join(args)))
        else:
            super().send_packet(pkttype, *args, handler=handler)

    def send_later(self, pkttype: int, *args: bytes) -> None:
        """The same for what nobody waits for: it goes out with the next packet, within some milliseconds at the latest."""
        cipher = self._send_encryption
        if self._kex_complete and self._auth_complete and type(cipher) is Gcm and self._rekey_bytes_sent < self._rekey_bytes:
            self._put(cipher.seal(pkttype.to_bytes(1, "big"), b"".join(args)), later=True)
        else:
            super().send_packet(pkttype, *args)

    def send_data(self, head: bytes, data: bytes | memoryview) -> None:
        """One CHANNEL_DATA packet; `head` is all of its payload up to the data."""
        cipher = self._send_encryption
        if self._kex_complete and type(cipher) is Gcm and self._rekey_bytes_sent < self._rekey_bytes:
            self._put(cipher.seal(head, data))
        else:
            super().send_packet(head[0], head[1:] + bytes(data))

    def _put(self, packet: bytearray, later: bool = False) -> None:
        self._rekey_bytes_sent += len(packet)
        self._send_seq = (self._send_seq + 1) & 0xFFFFFFFF
        transport: Any = self._transport
        if transport is not None:
            (getattr(transport, "write_later", transport.write) if later else transport.write)(packet)

    def pause_writing(self) -> None:
        self.write_paused = True

    def resume_writing(self) -> None:
        self.write_paused = False
        in_turn = self._in_turn
        while in_turn and not self.write_paused:
            channel = in_turn.popleft()
            if channel.send_one():
                in_turn.append(channel)

    def wait_turn(self, channel: Channel) -> None:
        """`channel` has bytes to send as soon as the transport takes some."""
        self._in_turn.append(channel)

    # receiving

    def data_received(self, data: bytes | memoryview, datatype: Any = None) -> None:
        if type(self._recv_encryption) is not Gcm or self._inpbuf or self._recv_handler != self._recv_pkthdr:
            super().data_received(bytes(data))
            return
        try:
            self._take_packets(data)
        except asyncssh.DisconnectError as exc:
            self._send_disconnect(exc.code, exc.reason, exc.lang)
            self._force_close(exc)
        except Exception:  # as asyncssh does: what a peer can provoke must close its connection and nothing else
            self.internal_error()

    def _take_packets(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        if self._held:
            view = self._complete_held(view)
        while len(view) >= _HEADER:
            size = self._whole_size(view)
            if len(view) < size:
                break
            rest = view[size:]
            self._take_packet(view[:size])
            view = rest
            if self._transport is None:
                return
            if self._inpbuf or self._recv_handler != self._recv_pkthdr:  # asyncssh still works on that packet
                self._inpbuf += bytes(view)
                return
        if view:
            self._held += view

    def _complete_held(self, view: memoryview) -> memoryview:
        """Add to the packet that came in part; what is left of `view`."""
        held = self._held
        if len(held) < _HEADER:
            missing = min(_HEADER - len(held), len(view))
            held += view[:missing]
            view = view[missing:]
            if len(held) < _HEADER:
                return view
        missing = self._whole_size(held) - len(held)
        held += view[:missing]
        if missing > len(view):
            return view[len(view) :]
        packet, self._held = held, bytearray()
        rest = view[missing:]
        self._take_packet(memoryview(packet))
        if self._transport is None:
            return rest[:0]
        if self._inpbuf or self._recv_handler != self._recv_pkthdr:
            self._inpbuf += bytes(rest)
            return rest[:0]
        return rest

    def take_open(self, body: memoryview) -> bool:
        """A request for a channel: True if it is dealt with, else asyncssh's own path gets it."""
        return False

    def _whole_size(self, start: bytes | bytearray | memoryview) -> int:
        length = int.from_bytes(start[:_HEADER], "big")
        if length > self._max_recv_pktlen or length < _BLOCK:
            raise ProtocolError("packet of an impossible size")
        return _HEADER + length + _TAG

    def _take_packet(self, packet: memoryview) -> None:
        cipher = self._recv_encryption
        assert type(cipher) is Gcm
        if len(packet) > len(self._scratch):
            self._scratch = bytearray(max(len(packet), 4096))
        payload = cipher.open(packet, self._scratch)
        kind = payload[1]
        if _CHANNEL_FIRST <= kind <= _CHANNEL_LAST and self._auth_final and len(payload) >= 6:
            channel: Any = self._channels.get(int.from_bytes(payload[2:6], "big"))
            if channel is None:
                raise ProtocolError("packet for a channel that is not open")
            self._recv_seq = (self._recv_seq + 1) & 0xFFFFFFFF
            channel.receive(kind, payload[6:])
            return
        if kind == MSG_CHANNEL_OPEN and self._auth_final and self.take_open(payload[2:]):
            self._recv_seq = (self._recv_seq + 1) & 0xFFFFFFFF
            return
        cipher.opened = bytes(memoryview(self._scratch)[: len(packet) - _HEADER - _TAG])
        self._packet = bytes(packet[: self._recv_blocksize])
        self._pktlen = len(packet) - _HEADER - _TAG
        self._inpbuf = bytes(packet[self._recv_blocksize :])
        self._recv_handler = self._recv_packet
        self._recv_data()

"""The agent's side of SSH: one client key, one user, direct-tcpip channels and three subsystems. All else is refused.

There is no shell, exec, pty, environment, agent or X11 forwarding, and no listener on request: asyncssh's handlers for opening
channels are replaced by those two, its global requests refuse by default.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

import asyncssh
from asyncssh.constants import OPEN_ADMINISTRATIVELY_PROHIBITED, OPEN_RESOURCE_SHORTAGE
from asyncssh.packet import SSHPacket, String

from bridge.adapters.ssh.channel import Channel
from bridge.adapters.ssh.client import _NEVER_BYTES, USER, Startable
from bridge.adapters.ssh.connection import CIPHER, FastPath
from bridge.adapters.ssh.windows import AGENT_LIMIT, Windows

_LOGIN_S = 30
_MOST_NAME = 255
_MOST_CHANNELS = 8192  # services have closer bounds of their own
_DIRECT = String(b"direct-tcpip")

_windows = Windows(AGENT_LIMIT)


class Services(Protocol):
    """What the agent does for the one who holds the key."""

    def dial(self, channel: Channel, address: str, port: int) -> None:
        """Sees that `channel.accept()` or `channel.refuse(errno_name)` follows, sooner or later."""

    def subsystem(self, channel: Channel, name: str) -> bool:
        """Serve this channel as `name`; False: not known. Attach to the channel within the call."""

    def connected(self) -> None:
        """The client has proven its key."""

    def lost(self) -> None:
        """The connection is over; its channels have been told."""


class _Owner(asyncssh.SSHServer):
    def __init__(self, client_key: asyncssh.SSHKey, services: Services) -> None:
        self._client_key = client_key
        self._services = services

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return username == USER and key == self._client_key

    def auth_completed(self) -> None:
        self._services.connected()

    def connection_lost(self, exc: Exception | None) -> None:
        self._services.lost()


class _Connection(FastPath, asyncssh.SSHServerConnection):
    services: Services

    def take_open(self, body: memoryview) -> bool:
        if body[: len(_DIRECT)] != _DIRECT:
            return False
        packet = SSHPacket(bytes(body[len(_DIRECT) :]))
        far_number, far_window, far_packet = packet.get_uint32(), packet.get_uint32(), packet.get_uint32()
        try:
            channel, dial = self._process_direct_tcpip_open(packet)
        except asyncssh.ChannelOpenError as exc:
            self.send_channel_open_failure(far_number, exc.code, exc.reason, exc.lang)
        else:
            channel.process_open(far_number, far_window, far_packet, dial)
        return True

    def _process_direct_tcpip_open(self, packet: SSHPacket) -> Any:
        address, port = packet.get_string(), packet.get_uint32()
        packet.get_string()
        packet.get_uint32()
        packet.check_end()
        try:
            name = address.decode("ascii")
        except UnicodeDecodeError:
            raise asyncssh.ChannelOpenError(OPEN_ADMINISTRATIVELY_PROHIBITED, "EINVAL") from None
        if not 0 < port < 65536 or not 0 < len(name) <= _MOST_NAME:
            raise asyncssh.ChannelOpenError(OPEN_ADMINISTRATIVELY_PROHIBITED, "EINVAL")
        return self._new_channel(), lambda channel: self.services.dial(channel, name, port)

    def _process_session_open(self, packet: SSHPacket) -> Any:
        packet.check_end()
        return self._new_channel(), lambda channel: channel.accept(_Requests(channel, self.services))

    def _new_channel(self) -> Channel:
        if len(self._channels) >= _MOST_CHANNELS:
            raise asyncssh.ChannelOpenError(OPEN_RESOURCE_SHORTAGE, "ENOBUFS")
        return Channel(self)


class _Requests:
    """Requests of one session channel: one subsystem, once."""

    def __init__(self, channel: Channel, services: Services) -> None:
        self._channel = channel
        self._services = services
        self._used = False

    def __call__(self, name: bytes, packet: SSHPacket) -> bool:
        if name != b"subsystem" or self._used:
            return False
        subsystem = packet.get_string().decode("ascii", "replace")
        packet.check_end()
        self._used = self._services.subsystem(self._channel, subsystem)
        return self._used


def serve_ssh(
    transport: Startable, *, host_key: asyncssh.SSHKey, client_key: asyncssh.SSHKey, services: Services, windows: Windows | None = None
) -> asyncssh.SSHServerConnection:
    """Speak SSH on `transport` from now on."""
    options = asyncssh.SSHServerConnectionOptions(
        server_factory=lambda: _Owner(client_key, services),
        config=None,
        server_host_keys=[host_key],
        encryption_algs=[CIPHER],
        kex_algs=["curve25519-sha256"],
        compression_algs=None,
        password_auth=False,
        kbdint_auth=False,
        host_based_auth=False,
        gss_host=None,
        allow_pty=False,
        agent_forwarding=False,
        x11_forwarding=False,
        allow_scp=False,
        rekey_bytes=_NEVER_BYTES,
        rekey_seconds=0,
        keepalive_interval=0,
        login_timeout=_LOGIN_S,
    )
    connection = _Connection(asyncio.get_running_loop(), options)
    connection.services = services
    connection.prepare(windows or _windows)
    transport.start(connection)
    return connection

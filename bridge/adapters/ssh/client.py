"""The bridge's side of one SSH connection to the agent, over a transport that someone else carries (adapters/resumable.py).

Order: `connect_ssh` returns when the agent has proven its pinned host key and has accepted ours. `open_control` exchanges Hello
and refuses another major version; `agree_secret` gives the stream below the secret by which a cut carrier is taken up again.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Protocol

import asyncssh
from asyncssh.packet import String, UInt32

import bridge
from bridge.adapters.ssh.channel import Channel
from bridge.adapters.ssh.connection import CIPHER, FastPath
from bridge.adapters.ssh.messages import Messages
from bridge.adapters.ssh.windows import BRIDGE_LIMIT, Windows
from bridge.errors import HostKeyMismatch, KeyRefused, LinkError, LinkLost
from bridge.model.fields import printable
from bridge.protocol import control, udp
from bridge.protocol.control import FlowRefused

USER = "mbridge"
_CONNECT_S = 30.0
_ANSWER_S = 20.0
_NEVER_BYTES = 1 << 40  # rekeying: far below GCM's limits, and beyond what one link carries in a working day

# Both end the session, which is undone then, and its place uses that agent no more (needs.Place.distrust_agent), whose life may be longer.
_ANEW = "start the session again: it makes another agent"
_HOST_KEY_HINT = f"{_ANEW}; if this comes again, something in the target answers in the agent's place: do not use this target"
_KEY_HINT = f"{_ANEW}; if that refuses too, the key files are no pair: rm ${{XDG_STATE_HOME:-~/.local/state}}/mbridge/id_ed25519*"

_windows = Windows(BRIDGE_LIMIT)  # one link per process: its connections share one bound


class Startable(Protocol):
    """A transport that begins to feed a protocol when told (ResumableTransport)."""

    def start(self, protocol: asyncio.Protocol) -> None:
        """Calls `connection_made` with itself, then `data_received` as bytes come: as memoryviews where it `takes_views`."""


class _Connection(FastPath, asyncssh.SSHClientConnection):
    """asyncssh's client connection with our channels."""


class _Owner(asyncssh.SSHClient):
    def __init__(self, on_lost: Callable[[Exception | None], None]) -> None:
        self._on_lost = on_lost

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_lost(exc)


async def connect_ssh(transport: Startable, *, private_key: str, host_key: str, windows: Windows | None = None) -> SshConnection:
    """Raises HostKeyMismatch, KeyRefused, LinkLost (try again)."""
    loop = asyncio.get_running_loop()
    closed: asyncio.Future[str] = loop.create_future()

    def lost(exc: Exception | None) -> None:
        if not closed.done():
            closed.set_result(printable(str(exc)) if exc else "closed")

    options = asyncssh.SSHClientConnectionOptions(
        client_factory=lambda: _Owner(lost),
        config=None,
        host="agent",  # for known_hosts and messages alone
        port=22,
        username=USER,
        client_keys=[asyncssh.import_private_key(private_key)],
        known_hosts=([asyncssh.import_public_key(host_key)], [], []),
        server_host_key_algs=["ssh-ed25519"],
        encryption_algs=[CIPHER],
        kex_algs=["curve25519-sha256"],
        compression_algs=None,
        agent_path=None,
        preferred_auth=["publickey"],
        gss_host=None,
        x509_trusted_certs=None,
        rekey_bytes=_NEVER_BYTES,
        rekey_seconds=0,
        keepalive_interval=0,  # the stream below has its own
        login_timeout=0,
    )
    options.waiter = loop.create_future()
    connection = _Connection(loop, options, wait="auth")
    connection.prepare(windows or _windows)
    try:
        async with asyncio.timeout(_CONNECT_S):
            transport.start(connection)
            await options.waiter
    except asyncssh.HostKeyNotVerifiable as exc:
        raise HostKeyMismatch("the agent's host key is not the one in its log", hint=_HOST_KEY_HINT) from exc
    except asyncssh.PermissionDenied as exc:
        raise KeyRefused("the agent did not accept this user's key", hint=_KEY_HINT) from exc
    except TimeoutError as exc:
        connection.abort()
        raise LinkLost(f"the agent did not answer within {_CONNECT_S:.0f} s") from exc
    except (asyncssh.Error, OSError) as exc:
        raise LinkLost(f"no SSH connection with the agent: {printable(str(exc))}") from exc
    except BaseException:
        connection.abort()
        raise
    return SshConnection(connection, closed)


class SshConnection:
    """`closed` has the reason as its result once the connection is over; it never fails."""

    def __init__(self, connection: _Connection, closed: asyncio.Future[str]) -> None:
        self._connection = connection
        self.closed = closed

    async def open_flow(self, address: str, port: int, app: tuple[str, int]) -> Channel:
        """Have the agent dial. Raises FlowRefused with the dial's errno, LinkLost."""
        channel = self._channel()
        await channel.open(b"direct-tcpip", String(address) + UInt32(port) + String(app[0]) + UInt32(app[1]))
        return channel

    def begin_flow(
        self, address: str, port: int, app: tuple[str, int], answered: Callable[[Channel | FlowRefused | LinkLost], bool]
    ) -> bool:
        """The same without a task: `answered` is called once; its answer: whether anybody still wants the flow. False: link closed."""
        try:
            channel = Channel(self._connection)
        except asyncssh.ChannelOpenError:
            return False
        place = String(address) + UInt32(port) + String(app[0]) + UInt32(app[1])
        channel.begin(b"direct-tcpip", place, lambda fault: answered(channel if fault is None else fault))
        return True

    async def open_control(self, on_message: Callable[[control.Message], None]) -> ControlChannel:
        """Returns after both Hellos; `on_message` then gets all but the first. Raises VersionMismatch, LinkLost."""
        channel = await self._subsystem(control.SUBSYSTEM_CONTROL)
        opened = ControlChannel(channel, on_message)
        try:
            async with asyncio.timeout(_ANSWER_S):
                control.check_version(await opened.hello, "agent")
        except TimeoutError as exc:
            raise LinkLost("the agent accepted the link, but said no hello") from exc
        return opened

    async def open_udp(self, on_message: Callable[[udp.Message], None]) -> UdpChannel:
        return UdpChannel(await self._subsystem(control.SUBSYSTEM_UDP), on_message)

    async def agree_secret(self) -> bytes:
        """A fresh secret that the agent has confirmed to hold."""
        channel = await self._subsystem(control.SUBSYSTEM_SECRET)
        secret = os.urandom(control.SECRET_BYTES)
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        channel.attach(_OneAnswer(answer))
        channel.write(secret)
        try:
            async with asyncio.timeout(_ANSWER_S):
                if await answer != control.SECRET_TAKEN:
                    raise LinkLost("the agent did not take the secret of the stream")
        except TimeoutError as exc:
            raise LinkLost("the agent did not answer the secret of the stream") from exc
        finally:
            channel.abort()
        return secret

    def close(self) -> None:
        """Ends all channels; `closed` follows."""
        self._connection.abort()

    def _channel(self) -> Channel:
        try:
            return Channel(self._connection)
        except asyncssh.ChannelOpenError as exc:
            raise LinkLost("the link is closed") from exc

    async def _subsystem(self, name: str) -> Channel:
        channel = self._channel()
        try:
            await channel.open(b"session", b"")
            agreed = await channel.request(b"subsystem", String(name))
        except FlowRefused as exc:
            raise LinkError(f"the agent opens no session: {printable(str(exc))}") from exc
        if not agreed:
            channel.abort()
            raise LinkError(f"the agent knows no {name}", hint="use bridge and agent images of one release: mbridge images build")
        return channel


class _OneAnswer:
    """A sink that waits for one byte."""

    def __init__(self, answer: asyncio.Future[bytes]) -> None:
        self._answer = answer

    def on_data(self, data: bytes | memoryview) -> None:
        if not self._answer.done():
            self._answer.set_result(bytes(data))

    def on_eof(self) -> None:
        self.on_lost(True)

    def on_lost(self, reset: bool) -> None:
        if not self._answer.done():
            self._answer.set_result(b"")

    def on_writable(self, writable: bool) -> None:
        """32 bytes fit any window."""


class ControlChannel:
    """`send` control messages; `closed` is set when the channel is over."""

    def __init__(self, channel: Channel, on_message: Callable[[control.Message], None]) -> None:
        loop = asyncio.get_running_loop()
        self.hello: asyncio.Future[control.Hello] = loop.create_future()
        self.closed: asyncio.Future[None] = loop.create_future()
        self._on_message = on_message
        self._messages = Messages(channel, control.MAX_FRAME, self._on_body, self._on_lost)
        self.send(control.Hello(control.VERSION, bridge.__version__))

    def send(self, message: control.Message) -> None:
        self._messages.send(control.encode(message))

    def close(self) -> None:
        self._messages.close()
        self._on_lost()

    def _on_body(self, body: bytes) -> None:
        message = control.decode(body)
        if isinstance(message, control.Hello) and not self.hello.done():
            self.hello.set_result(message)
        elif message is not None:
            self._on_message(message)

    def _on_lost(self) -> None:
        if not self.closed.done():
            self.closed.set_result(None)
        if not self.hello.done():
            self.hello.set_exception(LinkLost("the agent closed the control channel"))
            self.hello.exception()  # retrieved: whoever waits gets it all the same, and nobody may


class UdpChannel:
    """UDP and ICMP echo. `send` drops where a network would."""

    def __init__(self, channel: Channel, on_message: Callable[[udp.Message], None]) -> None:
        self._on_message = on_message
        self._messages = Messages(channel, udp.MAX_MESSAGE_BYTES, self._on_body, lambda: None)
        self.dropped = 0

    def send(self, message: udp.Message) -> None:
        if not self._messages.send_or_drop(udp.encode(message)):
            self.dropped += 1

    def close(self) -> None:
        self._messages.close()

    def _on_body(self, body: bytes) -> None:
        self._on_message(udp.decode(body))

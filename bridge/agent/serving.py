"""The agent itself: carriers in, streams above them, SSH above these, services above that.

    listener, agent.sock ──carrier──> ResumableServer ──stream──> serve_ssh ──channels──> Services
                                                                                direct-tcpip     Dialler
                                                                                mbridge-udp      Associations, Echoes
                                                                                mbridge-control  Hello, Facts, Asking
                                                                                mbridge-secret   the stream's secret

Order at the start: oom_score_adj and PR_SET_DUMPABLE before the host key exists, so that no other process of our uid in the
target reads it from memory; the sockets; then the one line that the host CLI waits for.

Life: the agent ends when nobody who proved the key has had a carrier for `ttl_s`, 10/3 of it while flows are open; a stream that
lost its carrier waits for another as long. SIGTERM ends it at once: open flows are reset.

Limits: see each service; all connections together hold AGENT_LIMIT bytes of receive windows.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import resource
import signal
import socket
import sys
from pathlib import Path

import asyncssh

import bridge
from bridge.adapters.resumable import ResumableServer, ResumableTransport
from bridge.adapters.ssh.channel import Channel
from bridge.adapters.ssh.messages import Messages
from bridge.adapters.ssh.server import serve_ssh
from bridge.adapters.unix_listener import listen_at
from bridge.agent import inside
from bridge.agent.asking import PORT, Asking
from bridge.agent.datagrams import Associations
from bridge.agent.dialling import Dialler
from bridge.agent.echoes import Echoes
from bridge.agent.handing import Hand, accept_invitation
from bridge.engine.accepting import Accepting
from bridge.errors import BridgeError, RemoteProtocolError
from bridge.model.facts import Facts
from bridge.protocol import control, preamble, udp
from bridge.protocol.dns import parse_resolv_conf
from bridge.protocol.handing import SOCKET

log = logging.getLogger(__name__)

_BACKLOG = 64
_PR_SET_DUMPABLE = 4
_FLOWS_LIVE = 10 / 3  # 3 minutes become 10
_CHECKS = 20  # of its life per ttl


class Agent:
    """One agent. `async with` opens its sockets; `ended` is set when it has had no link for too long. ValueError: no public key."""

    def __init__(
        self,
        *,
        listen: str,
        client_key: str,
        ttl_s: float,
        socket_path: Path,
        etc: Path = Path("/etc"),
        dns_port: int = PORT,
        hand_path: Path = Path(SOCKET),
    ) -> None:
        self.agent_id = os.urandom(8).hex()
        self.port = 0
        self.ended = asyncio.Event()
        self._listen = listen
        self._client_key = asyncssh.import_public_key(client_key)
        self._ttl_s = ttl_s
        self._socket_path = socket_path
        self._etc = etc
        self.dns_port = dns_port
        self._hand_path = hand_path
        self._hand: Hand | None = None
        self._loop = asyncio.get_running_loop()
        self._host_key = asyncssh.generate_private_key("ssh-ed25519")
        self._preamble = preamble.encode(self.agent_id)
        self._sockets: list[socket.socket] = []
        self._accepting: list[Accepting] = []
        self._linked: set[Session] = set()
        self._idle_since = self._loop.time()
        self._check: asyncio.TimerHandle | None = None
        self.dialler = Dialler(self._loop, self._flows_changed)
        self._server: ResumableServer

    @property
    def host_key(self) -> str:
        algorithm, key = self._host_key.export_public_key().decode().split()[:2]
        return f"{algorithm} {key}"

    async def __aenter__(self) -> Agent:
        self._server = ResumableServer(self._on_stream, self._ttl_s, self._loop)
        tcp = _listener(self._listen)
        self.port = tcp.getsockname()[1]
        self._sockets.append(tcp)
        unix = _unix_listener(self._socket_path)
        if unix is not None:
            self._sockets.append(unix)
        for sock in self._sockets:
            accepting = Accepting(sock, self._on_carrier)
            accepting.start()
            self._accepting.append(accepting)
        self._check = self._loop.call_later(self._ttl_s / _CHECKS, self._check_life)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._check is not None:
            self._check.cancel()
        for accepting in self._accepting:
            accepting.stop()
        for sock in self._sockets:
            sock.close()
        if self._hand is not None:
            self._hand.close()
        for session in list(self._linked):
            session.close()
        self._server.close()
        with contextlib.suppress(OSError):
            self._socket_path.unlink()
        await asyncio.sleep(0)  # the last words of the streams are written by then

    def line(self) -> str:
        """What the host CLI reads from the log: docs/design/001-spine.md, "The agent's door"."""
        return f"mbridge-agent 1 {self.agent_id} {self.port} {self.host_key}"

    def facts(self) -> Facts:
        return inside.look(self._etc)

    def invited(self, token: bytes) -> None:
        """A bridge would hand its app's connections over; one that did so before has ended, or would not ask."""
        if self._hand is not None:
            self._hand.close()
        self._hand = accept_invitation(self.dialler, token, self._hand_path)

    def linked(self, session: Session) -> None:
        self._linked.add(session)

    def unlinked(self, session: Session) -> None:
        self._linked.discard(session)
        if not self._linked:
            self._idle_since = self._loop.time()

    def _on_carrier(self, sock: socket.socket, _: object) -> None:
        try:
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.send(self._preamble)  # 16 bytes always fit an empty buffer
        except OSError:
            sock.close()
            return
        self._server.accept(sock)

    def _on_stream(self, transport: ResumableTransport) -> None:
        session = Session(self, transport)
        serve_ssh(transport, host_key=self._host_key, client_key=self._client_key, services=session)

    def _flows_changed(self) -> None:
        self._server.linger_s = self._life_s()

    def _life_s(self) -> float:
        return self._ttl_s * (_FLOWS_LIVE if self.dialler.flows else 1)

    def _check_life(self) -> None:
        now = self._loop.time()
        if any(session.transport.attached for session in self._linked):
            self._idle_since = now
        elif now - self._idle_since >= self._life_s():
            log.info("no link for %.0f s: the agent ends", now - self._idle_since)
            self.ended.set()
        self._check = self._loop.call_later(self._ttl_s / _CHECKS, self._check_life)


class Session:
    """One SSH connection: the Services of adapters/ssh/server.py, and its transport's start."""

    def __init__(self, agent: Agent, transport: ResumableTransport) -> None:
        self.transport = transport
        self._agent = agent
        self._loop = asyncio.get_running_loop()

    def dial(self, channel: Channel, address: str, port: int) -> None:
        self._agent.dialler.dial(channel, address, port)

    def subsystem(self, channel: Channel, name: str) -> bool:
        match name:
            case control.SUBSYSTEM_CONTROL:
                _Control(self._agent, self._loop, channel)
            case control.SUBSYSTEM_UDP:
                _Datagrams(self._loop, channel)
            case control.SUBSYSTEM_SECRET:
                channel.attach(_Secret(self.transport, channel))
            case _:
                return False
        return True

    def connected(self) -> None:
        log.info("= link: a bridge has proven its key")
        self._agent.linked(self)

    def lost(self) -> None:
        log.info("x link: a connection with a bridge has ended")
        self._agent.unlinked(self)

    def close(self) -> None:
        self.transport.abort()


class _Control:
    def __init__(self, agent: Agent, loop: asyncio.AbstractEventLoop, channel: Channel) -> None:
        self._greeted = False
        self._nameservers: tuple[str, ...] = ()
        self._messages = Messages(channel, control.MAX_FRAME, self._on_body, self._on_lost)
        self._asking = Asking(loop, self._send, lambda: self._nameservers, agent.dns_port)
        self._agent = agent
        self._send(control.Hello(control.VERSION, bridge.__version__, ("dns", "udp", "icmp-echo", "hand")))

    def _on_body(self, body: bytes) -> None:
        message = control.decode(body)
        match message:
            case control.Hello() if not self._greeted:
                self._greet(message)
            case _ if not self._greeted:
                raise RemoteProtocolError("control: the bridge said no hello")
            case control.Ask():
                self._asking.on_ask(message)
            case control.Hand(token):
                self._agent.invited(token)
            case _:
                log.debug("! the bridge sent what only an agent says")

    def _greet(self, hello: control.Hello) -> None:
        try:
            control.check_version(hello, "bridge")
        except BridgeError as exc:
            log.warning("%s", exc.message)
            self._messages.end()
            return
        self._greeted = True
        facts = self._agent.facts()
        self._nameservers = parse_resolv_conf(facts.resolv_conf).nameservers
        self._send(control.FactsTold(facts))

    def _send(self, message: control.Message) -> None:
        self._messages.send(control.encode(message))

    def _on_lost(self) -> None:
        self._asking.close()


class _Datagrams:
    def __init__(self, loop: asyncio.AbstractEventLoop, channel: Channel) -> None:
        self._associations = Associations(loop, self._send)
        self._echoes = Echoes(loop, self._send)
        self._messages = Messages(channel, udp.MAX_MESSAGE_BYTES, self._on_body, self._on_lost)

    def _on_body(self, body: bytes) -> None:
        message = udp.decode(body)
        match message:
            case udp.Datagram():
                self._associations.on_datagram(message)
            case udp.Echo():
                self._echoes.on_echo(message)
            case udp.Forget():
                self._associations.on_forget(message)
            case _:
                raise RemoteProtocolError("udp: the bridge sent what only an agent says")

    def _send(self, message: udp.Message) -> None:
        self._messages.send_or_drop(udp.encode(message))

    def _on_lost(self) -> None:
        self._associations.close()
        self._echoes.close()


class _Secret:
    """A sink: 32 bytes in, one byte out."""

    def __init__(self, transport: ResumableTransport, channel: Channel) -> None:
        self._transport = transport
        self._channel = channel
        self._secret = b""

    def on_data(self, data: bytes | memoryview) -> None:
        self._secret += data
        if len(self._secret) == control.SECRET_BYTES:
            self._transport.set_secret(self._secret)
            self._channel.write(control.SECRET_TAKEN)
        elif len(self._secret) > control.SECRET_BYTES:
            self._channel.abort()

    def on_eof(self) -> None:
        self._channel.abort()

    def on_lost(self, reset: bool) -> None:
        """The client closes when it has its answer."""

    def on_writable(self, writable: bool) -> None:
        """One byte."""


def harden() -> None:
    """Before any secret exists."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a descriptor per flow and per association
    with contextlib.suppress(OSError):  # the kernel is to take us first, not the target; a read-only /proc is no reason to fail
        Path("/proc/self/oom_score_adj").write_text("1000")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "PR_SET_DUMPABLE")


async def serve(*, listen: str, client_key: str, ttl_s: float, socket_path: Path) -> int:
    """Until SIGTERM, SIGINT or the end of its life. Returns the exit code."""
    async with Agent(listen=listen, client_key=client_key, ttl_s=ttl_s, socket_path=socket_path) as agent:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, agent.ended.set)
        print(agent.line(), flush=True)
        gc.collect()
        gc.freeze()  # modules and keys stay: no collection needs to walk them while flows wait
        await agent.ended.wait()
    return 0


def _listener(listen: str) -> socket.socket:
    """A free port on every address of both families, or on the loopback's."""
    if listen == "loopback":
        places = [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
    else:
        places = [(socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")]
    for at, (family, address) in enumerate(places):
        try:
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        except OSError:  # a kernel without that family
            continue
        try:
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.bind((address, 0))
            sock.listen(_BACKLOG)
        except OSError:
            sock.close()
            if at + 1 == len(places):
                raise
        else:
            return sock
    raise OSError("neither IPv4 nor IPv6 here")


def _unix_listener(path: Path) -> socket.socket | None:
    """For carriers by exec. Without a writable folder there are none, and the other carriers do."""
    try:
        return listen_at(path, 0o600)
    except OSError as exc:
        log.warning("no carrier by exec: cannot listen at %s: %s", path, (exc.strerror or str(exc)).lower())
        return None


def configure_log() -> None:
    """To stderr: stdout belongs to the one line."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("asyncssh").setLevel(logging.WARNING)

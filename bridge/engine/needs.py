"""What the engine asks of the adapters, as narrow Protocols: entry points hand real ones in, tests hand in fakes.

Link        one agent, as the bridge sees it: flows, datagrams, DNS questions
Channel     one open TCP flow on the link
Place       where the target lives (Docker, Kubernetes, …): finds it, puts the agent beside it, brings carriers
Engine      the developer's own Docker engine: pause, bridge and app containers
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from bridge.engine.handing import HandedFlow
from bridge.errors import LinkError
from bridge.model.environ import Environ
from bridge.model.facts import AgentIdentity, TargetFound
from bridge.protocol import udp
from bridge.protocol.control import FlowRefused as FlowRefused  # the adapters raise it too, and may not import the engine

Via = Literal["direct", "exec", "port-forward"]


class Arrived(Protocol):
    """A connection of the app's at the bridge's listener; `address` and `port` are what the app dialled."""

    @property
    def sock(self) -> socket.socket: ...
    @property
    def app_addr(self) -> str: ...
    @property
    def app_port(self) -> int: ...
    @property
    def address(self) -> str: ...
    @property
    def port(self) -> int: ...


class Sink(Protocol):
    """What a channel tells its user. Nothing follows `on_lost`."""

    def on_data(self, data: bytes | memoryview) -> None:
        """Bytes from the cluster; the buffer is the caller's, valid during the call only."""

    def on_eof(self) -> None:
        """The responder has ended its side (FIN)."""

    def on_lost(self, reset: bool) -> None:
        """The channel is closed: in order, or by a reset of the far side or the link."""

    def on_writable(self, writable: bool) -> None:
        """The channel's window is full (False) or has room again (True)."""


class Channel(Protocol):
    """One open TCP flow. What came in before `attach` is kept (bounded by the window) and handed over then."""

    def attach(self, sink: Sink) -> None: ...
    def write(self, data: bytes | memoryview) -> None: ...
    def write_eof(self) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def close(self) -> None:
        """Both sides have ended."""

    def abort(self) -> None:
        """Reset: the far side gets a RST."""


Flow = Channel | HandedFlow  # dialled: its bytes pass here, or the app's connection is given away


class Link(Protocol):
    """One agent. While the link is down `open_flow` and `ask` wait; `send` drops."""

    on_datagram: Callable[[udp.Message], None]

    async def open_flow(self, address: str, port: int, app: tuple[str, int]) -> Channel:
        """Have the agent dial. Raises FlowRefused with the dial's errno, LinkError when the session ends."""
        ...

    def begin_flow(self, address: str, port: int, app: tuple[str, int], answered: Callable[[Flow | FlowRefused | LinkError], bool]) -> bool:
        """The same without a task of its own; False where the link is down: use `open_flow`, which waits.

        `answered` is called once: with LinkError when the connection was lost meanwhile, and another may do. It says whether
        anybody still wants the flow.
        """
        ...

    def send(self, message: udp.Message) -> None: ...

    async def ask(self, nameserver: str, query: bytes, over_tcp: bool) -> bytes:
        """Put one DNS message to `nameserver` from inside the target; the answer's bytes. Raises TimeoutError, LinkError."""
        ...


@dataclass(frozen=True, slots=True)
class TargetChange:
    """What became of the target: `gone` (stopped, deleted), `back` (same agent may live), `moved` (another pod or container)."""

    kind: Literal["gone", "back", "moved"]
    why: str


class Place(Protocol):
    """Where the target lives. One instance belongs to one session; blocking libraries run in threads inside it.

    `warnings` are what it does with less than was asked, as things are now; `on_warnings` is called when they change.
    """

    on_warnings: Callable[[], None]

    @property
    def warnings(self) -> tuple[str, ...]: ...

    async def find(self) -> TargetFound:
        """Look the target up. Raises TargetNotFound (nearest names), ClusterError, EngineUnavailable."""
        ...

    async def start_agent(self, public_key: str, progress: Callable[[str], None]) -> AgentIdentity:
        """Make (or reuse) the agent beside the target; read its first log line. Raises AgentFailed with its last log lines."""
        ...

    async def dial(self, agent: AgentIdentity, avoid: Sequence[str]) -> tuple[Via, socket.socket]:
        """Bring one carrier: a connected stream socket whose far end is the agent (preamble already checked).

        Where no descriptor reaches the agent (exec, port-forward) the adapter makes a socket pair and pumps the other end until
        either side ends. Raises LinkLost (try again), AgentFailed (the agent is gone: make it anew), ClusterError.
        """
        ...

    async def environ(self) -> Environ:
        """The target process's own environment; where nothing may read it what its engine was told, with a warning."""
        ...

    def watch(self) -> AsyncIterator[TargetChange]:
        """Changes of the target, until closed."""
        ...

    def distrust_agent(self) -> None:
        """It is not the agent that it was taken for (HostKeyMismatch, KeyRefused): no start uses it again."""
        ...

    async def close(self) -> None:
        """Give back what this process holds for the target, its carriers too; what was made there stays."""
        ...

    async def remove_agent(self) -> None:
        """End what start_agent made, absence is fine; and `close`."""
        ...

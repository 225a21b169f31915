"""Outgoing TCP: each CLUSTER flow of the app, from its held SYN to its end.

Theory of operation: the kernel holds the first SYN (SynHolder) and tells its four addresses. The agent is asked to dial;
its answer becomes the verdict, so that `connect()` in the app tells the truth. An accepted SYN is redirected to the bridge's
listener, where it finds the open channel by the same four addresses, and the byte pump takes over. The kernel may have given
it another source port meanwhile (an older connection from that port to elsewhere is still known to conntrack, and both were
redirected to one listener): then it takes a channel to the same destination whose own arrival is still awaited.

    SYN held ──dial──> opened ──accept──> arrived at the listener ──join──> both ends closed
       │                  └─ not there within 2 s: the channel is closed
       └─ refused: the errno · no answer: held until the app gives up (130 s at most)

When the target's address changes, what goes on from the old one is refused or reset before the address goes (`leave`): the kernel
would deliver nothing to it any more, and the app would wait for its own time-outs.

Where the kernel cannot hold, a connection arrives unannounced: it is accepted first, dialled then, and reset on failure.

Limits: 16,384 flows being opened at once. While the link is down dials wait inside `link.open_flow`, so SYNs stay held.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection
from typing import Generic, Protocol, TypeVar

from bridge.engine.handing import HandedFlow
from bridge.engine.needs import Arrived, Channel, Flow, FlowRefused, Link
from bridge.engine.relay import join
from bridge.errors import LinkError
from bridge.protocol.nfqueue import HeldSyn

log = logging.getLogger(__name__)

HOLD_S = 130.0  # longer than connect()'s own 127 s (tcp_syn_retries 6, tcp(7))
ARRIVE_S = 2.0
LEFT_S = 1.0
_MAX_OPENING = 16384
_MOVED = "EHOSTUNREACH"  # to a connect() from an address that the session is losing

Key = tuple[str, int, str, int]
_K = TypeVar("_K")


class SynHolder(Protocol):
    """What ends a hold; each SYN gets exactly one of these."""

    def accept(self, packet_id: int) -> None: ...
    def refuse(self, packet_id: int, errno_name: str) -> None: ...
    def drop(self, packet_id: int) -> None: ...


class _Limit(Generic[_K]):
    """`expire(key)` for each that was added and is not discarded `after_s` later. One timer serves all: they are due in their order."""

    def __init__(self, loop: asyncio.AbstractEventLoop, after_s: float, expire: Callable[[_K], None]) -> None:
        self._loop = loop
        self._after_s = after_s
        self._expire = expire
        self._due: dict[_K, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, key: _K) -> None:
        self._due[key] = at = self._loop.time() + self._after_s
        if self._timer is None:
            self._timer = self._loop.call_at(at, self._fire)

    def discard(self, key: _K) -> None:
        self._due.pop(key, None)

    def all(self) -> list[_K]:
        return list(self._due)

    def _fire(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._due:
            key, at = next(iter(self._due.items()))
            if at > now:
                self._timer = self._loop.call_at(at, self._fire)
                return
            del self._due[key]
            self._expire(key)


class _Hold:
    """A SYN being held while the agent dials, without a task: most connections of most apps are short."""

    __slots__ = ("_key", "_outgoing", "_over", "_packet_id")

    def __init__(self, outgoing: Outgoing, key: Key, packet_id: int) -> None:
        self._outgoing = outgoing
        self._key = key
        self._packet_id = packet_id
        self._over = False

    def answered(self, answer: Flow | FlowRefused | LinkError) -> bool:
        if self._over:
            return False
        self._over = True
        self._outgoing.hold_ended(self)
        if isinstance(answer, FlowRefused):
            self._outgoing.refused(self._key, self._packet_id, answer.errno_name)
        elif isinstance(answer, LinkError):
            self._outgoing.wait_for_link(self._key, self._packet_id)
        else:
            self._outgoing.opened(self._key, self._packet_id, answer)
        return True

    def leave(self, addresses: Collection[str]) -> None:
        """Refused, if it comes from one of these."""
        if self._key[0] in addresses:
            self._over = True
            self._outgoing.hold_ended(self)
            self._outgoing.refused(self._key, self._packet_id, _MOVED)

    def give_up(self) -> None:
        self._over = True
        self._outgoing.given_up(self._key, self._packet_id)


class Outgoing:
    """Feed it held SYNs (`on_syn`) and accepted connections (`on_arrival`)."""

    def __init__(
        self,
        link: Link,
        group: asyncio.TaskGroup,
        holder: SynHolder | None,
        reset: Callable[[Arrived], None],
        bypass: frozenset[tuple[str, int]] = frozenset(),
    ) -> None:
        self._link = link
        self._group = group
        self._holder = holder
        self._reset = reset
        self.bypass = bypass
        self._opening: set[Key] = set()
        self._opened: dict[Key, Flow] = {}
        self._waiting: dict[Key, int] = {}  # held while the link is down, and their packets
        self._joined: dict[int, tuple[str, Callable[[str], None]]] = {}  # by its number, a flow's app address and what resets it
        self._awaited: dict[tuple[str, str, int], dict[Key, None]] = {}  # destination → keys of _opened, oldest first
        self._loop = asyncio.get_running_loop()
        self._holds: _Limit[_Hold] = _Limit(self._loop, HOLD_S, _Hold.give_up)
        self._arrivals: _Limit[Key] = _Limit(self._loop, ARRIVE_S, self._expire)
        self._flow_ended = asyncio.Event()
        self.flows = 0
        self.opened_ever = 0

    def on_syn(self, syn: HeldSyn) -> None:
        """The kernel holds a SYN; its verdict comes when the agent has dialled."""
        assert self._holder is not None
        if (syn.address, syn.port) in self.bypass:  # DNS over TCP: another chain redirects it to the resolver
            self._holder.accept(syn.packet_id)
            return
        key = (syn.app_addr, syn.app_port, syn.address, syn.port)
        if key in self._opening or len(self._opening) >= _MAX_OPENING:  # sent again meanwhile, or too many: it comes again
            self._holder.drop(syn.packet_id)
            return
        self._opening.add(key)
        hold = _Hold(self, key, syn.packet_id)
        self._holds.add(hold)
        if not self._link.begin_flow(syn.address, syn.port, key[:2], hold.answered):
            self._holds.discard(hold)
            self.wait_for_link(key, syn.packet_id)

    def on_arrival(self, arrival: Arrived) -> None:
        """A redirected connection reached the listener."""
        key = (arrival.app_addr, arrival.app_port, arrival.address, arrival.port)
        channel = self._claim(key)
        if channel is not None:
            self._join(key, arrival, channel)
        elif self._holder is None and len(self._opening) < _MAX_OPENING:
            self._opening.add(key)
            self._group.create_task(self._open_unheld(key, arrival), name="flow-dial")
        else:
            self._reset(arrival)  # nobody's SYN was held for it

    def leave(self, addresses: Collection[str]) -> None:
        """The session's netns is about to lose these of its addresses."""
        for hold in self._holds.all():
            hold.leave(addresses)
        for key, packet_id in list(self._waiting.items()):
            if key[0] in addresses:
                del self._waiting[key]
                self.refused(key, packet_id, _MOVED)
        for key in [key for key in self._opened if key[0] in addresses]:
            self._expire(key)
        for app_addr, reset in list(self._joined.values()):
            if app_addr in addresses:
                reset("as the target has another address")

    async def until_left(self, addresses: Collection[str]) -> None:
        """Until all that `leave` has reset is, for what was handed over the agent does it; at most LEFT_S."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEFT_S):
                while any(app_addr in addresses for app_addr, _ in self._joined.values()):
                    self._flow_ended.clear()
                    await self._flow_ended.wait()

    async def _open_held(self, key: Key, packet_id: int) -> None:
        app_addr, app_port, address, port = key
        answer: Channel | str | None = None  # the flow, an errno, or that there is no answer
        try:
            async with asyncio.timeout(HOLD_S):
                answer = await self._link.open_flow(address, port, (app_addr, app_port))
        except FlowRefused as refused:
            answer = refused.errno_name
        except (TimeoutError, LinkError):
            pass
        except BaseException:
            self._opening.discard(key)
            self._waiting.pop(key, None)
            raise
        if self._waiting.get(key) != packet_id:  # the address was left meanwhile
            if answer is not None and not isinstance(answer, str):
                answer.abort()
            return
        del self._waiting[key]
        if answer is None:
            self.given_up(key, packet_id)
        elif isinstance(answer, str):
            self.refused(key, packet_id, answer)
        else:
            self.opened(key, packet_id, answer)

    # What became of a hold

    def hold_ended(self, hold: _Hold) -> None:
        self._holds.discard(hold)

    def wait_for_link(self, key: Key, packet_id: int) -> None:
        self._waiting[key] = packet_id
        self._group.create_task(self._open_held(key, packet_id), name="flow-dial")

    def refused(self, key: Key, packet_id: int, errno_name: str) -> None:
        assert self._holder is not None
        self._opening.discard(key)
        log.debug("! flow tcp app %s:%d -> %s:%d: %s", *key, errno_name)
        self._holder.refuse(packet_id, errno_name)

    def given_up(self, key: Key, packet_id: int) -> None:
        assert self._holder is not None
        self._opening.discard(key)
        self._holder.drop(packet_id)

    def opened(self, key: Key, packet_id: int, channel: Flow) -> None:
        assert self._holder is not None
        self._holder.accept(packet_id)  # first: the app waits for it
        self._opening.discard(key)
        stale = self._take(key)
        if stale is not None:
            stale.abort()
        app_addr, _, address, port = key
        self._opened[key] = channel
        self._arrivals.add(key)
        self._awaited.setdefault((app_addr, address, port), {})[key] = None

    def _claim(self, key: Key) -> Flow | None:
        """The channel that an arrival may take: its own, else the oldest to the same destination that nobody has claimed."""
        exact = self._take(key)
        if exact is not None:
            return exact
        app_addr, _, address, port = key
        awaited = self._awaited.get((app_addr, address, port))
        return self._take(next(iter(awaited))) if awaited else None

    def _take(self, key: Key) -> Flow | None:
        channel = self._opened.pop(key, None)
        if channel is not None:
            self._arrivals.discard(key)
            app_addr, _, address, port = key
            awaited = self._awaited[(app_addr, address, port)]
            del awaited[key]
            if not awaited:
                del self._awaited[(app_addr, address, port)]
        return channel

    async def _open_unheld(self, key: Key, arrival: Arrived) -> None:
        app_addr, app_port, address, port = key
        try:
            async with asyncio.timeout(HOLD_S):
                channel = await self._link.open_flow(address, port, (app_addr, app_port))
        except (FlowRefused, TimeoutError, LinkError) as exc:
            log.debug("! flow tcp app %s:%d -> %s:%d: %s", *key, exc)
            self._reset(arrival)
            return
        finally:
            self._opening.discard(key)
        self._join(key, arrival, channel)

    def _join(self, key: Key, arrival: Arrived, channel: Flow) -> None:
        self.flows += 1
        self.opened_ever += 1
        debug = log.isEnabledFor(logging.DEBUG)
        number = self.opened_ever
        if debug:
            log.debug("= flow %d tcp app %s:%d -> %s:%d OPEN", number, *key)

        over = False

        def ended(sent: int, received: int, how: str) -> None:
            nonlocal over
            over = True
            self._joined.pop(number, None)
            self._flow_ended.set()
            self.flows -= 1
            if debug:
                log.debug("x flow %d tcp app %s:%d -> %s:%d %s, %d bytes out, %d in", number, *key, how, sent, received)

        sock = arrival.sock
        reset = channel.take(sock, ended) if isinstance(channel, HandedFlow) else join(self._loop, sock, channel, ended)
        if not over:
            self._joined[number] = key[0], reset

    def _expire(self, key: Key) -> None:
        channel = self._take(key)
        if channel is not None:
            log.debug("x flow tcp app %s:%d -> %s:%d: the app did not wait for it", *key)
            channel.abort()

"""The way back: carriers that stand in for a better kind make way for it, and no flow is cut.

Theory of operation: a place that brought a carrier of a lesser kind says so here. While such stand-ins last, the better kind is tried,
ever more rarely, once for all of them. When it works, there is a new carrier for each stand-in *before* that one is ended: the bridge
misses its carriers, asks for others and is handed these (`take`); bytes that were under way go again (protocol/stream.py).

    stand-in ──wait──> try ──fails──> twice the wait, try …        try ──works──> ready for `take`, stand-ins ended

What ends before it has proven itself is avoided by the bridge (engine/connection.py), so no stand-in is ended earlier. The waits grow
on where the better kind was gone back to and did not hold: a way that answers and then breaks is not taken again and again.

Limits: a try is a dial, and in a cluster one request: two in the first minute, in the end one in 2.5 to 5 minutes. What the user has
no right to is tried once in ten minutes, since rights may change. A try proves no more than that the agent answers.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bridge.engine.connection import STEADY_S
from bridge.engine.needs import Via
from bridge.errors import BridgeError, Forbidden
from bridge.model.facts import AgentIdentity
from bridge.protocol.backoff import Backoff

log = logging.getLogger(__name__)

FIRST_S, LAST_S = 20.0, 300.0  # of the waits, each less up to half
FORBIDDEN_S = 600.0
PROVEN_S = 2 * STEADY_S  # the bridge counts from when it has the carrier, we from when it was made
HELD_S = 600.0  # a better carrier that lasted as long is no reason to wait longer the next time
_Ready = tuple[AgentIdentity, Via, socket.socket]


@dataclass(frozen=True, slots=True, eq=False)
class _StandIn:
    agent: AgentIdentity
    since: float
    end: Callable[[], Any]


class WayBack:
    """Of one place. `dial` brings a carrier of the better kind, or raises BridgeError, OSError."""

    def __init__(
        self, dial: Callable[[AgentIdentity], Awaitable[tuple[Via, socket.socket]]], random: Callable[[], float] = random.random
    ) -> None:
        self._dial = dial
        self._backoff = Backoff(random, FIRST_S, LAST_S)
        self._forbidden = False
        self._standing: list[_StandIn] = []  # oldest first
        self._ready: list[_Ready] = []
        self._trying: asyncio.Task[None] | None = None
        self._back_at = -math.inf

    def stands_in(self, agent: AgentIdentity, ended: asyncio.Future[Any], end: Callable[[], Any], why: BaseException | None) -> None:
        """A carrier to `agent` is of a lesser kind, until `ended`; `end()` ends it. `why`: what the better kind failed with just now."""
        loop = asyncio.get_running_loop()
        if not self._standing:
            self._forbidden = isinstance(why, Forbidden)
            if loop.time() - self._back_at > HELD_S:
                self._backoff.reset()
        one = _StandIn(agent, loop.time(), end)
        self._standing.append(one)
        ended.add_done_callback(lambda _: self._on_ended(one))
        if self._trying is None:
            self._trying = loop.create_task(self._until_back(), name="way-back")

    def keep(self, agent: AgentIdentity, via: Via, carrier: socket.socket) -> None:
        """A carrier that was made before it is asked for."""
        self._ready.append((agent, via, carrier))

    def take(self, agent: AgentIdentity, avoid: Sequence[str]) -> tuple[Via, socket.socket] | None:
        """One that is ready; what is ready for nobody is closed."""
        while self._ready:
            of, via, carrier = self._ready.pop(0)
            if of.agent_id == agent.agent_id and via not in avoid and _is_open(carrier):
                return via, carrier
            carrier.close()
        return None

    def drop(self) -> None:
        """Close what is ready."""
        _close(self._ready)

    def close(self) -> None:
        """Try no more; stand-ins live on."""
        if self._trying is not None:
            self._trying.cancel()
        self.drop()

    async def _until_back(self) -> None:
        while self._standing:
            await asyncio.sleep(FORBIDDEN_S if self._forbidden else self._backoff.wait_s())
            await asyncio.sleep(max(0.0, PROVEN_S - self._age_s(self._standing[-1])))
            await self._try([one for one in self._standing if self._age_s(one) >= PROVEN_S])
        self._trying = None

    async def _try(self, proven: Sequence[_StandIn]) -> None:
        made: list[_Ready] = []
        try:
            for one in proven:
                made.append((one.agent, *await self._dial(one.agent)))
        except BaseException as exc:
            _close(made)
            if not isinstance(exc, BridgeError | OSError):  # a TimeoutError is an OSError
                raise
            log.debug("! the way back: %s", exc)
            self._forbidden = isinstance(exc, Forbidden)
            return
        for one, ready in zip(proven, made, strict=True):
            if one not in self._standing:  # it ended meanwhile, and the bridge has another
                _close([ready])
                continue
            log.info("= agent %s can be reached by %s again: a carrier makes way", one.agent.name, ready[1])
            self._back_at = asyncio.get_running_loop().time()
            self._standing.remove(one)
            self._ready.append(ready)
            one.end()

    def _age_s(self, one: _StandIn) -> float:
        return asyncio.get_running_loop().time() - one.since

    def _on_ended(self, one: _StandIn) -> None:
        if one in self._standing:
            self._standing.remove(one)
            if not self._standing and self._trying is not None:
                self._trying.cancel()
                self._trying = None


def _is_open(carrier: socket.socket) -> bool:
    """An agent says nothing before it is spoken to: all that can be read is its end."""
    try:
        carrier.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def _close(carriers: list[_Ready]) -> None:
    for _, _, carrier in carriers:
        carrier.close()
    carriers.clear()

"""The agent of one session while it lives: dialled, and made anew where it ended. Whoever needs its carriers, a bridge or a forward.

    a dial finds the agent ended   made anew, once for all dials that wait for it
    the target ends                dials fail with that reason until it is back
    the target has moved           the agent is made anew beside it at once, not when a dial fails

What no other try can help is raised, and ends the session: a HostKeyMismatch at any time (someone in the target speaks in the agent's
place), a Forbidden or VersionMismatch while nothing has worked yet (a session that has begun may see that mended).
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence

from bridge.engine.needs import Place, TargetChange, Via
from bridge.engine.up import untorn
from bridge.errors import AgentFailed, BridgeError, Forbidden, HostKeyMismatch, LinkLost, VersionMismatch
from bridge.model.facts import AgentIdentity

log = logging.getLogger(__name__)


class KeptAgent:
    """`identity` is the agent as it is now; `on_new` is called with each that is made. `gone`: why the target is away, if it is."""

    def __init__(self, place: Place, identity: AgentIdentity, public_key: str, on_new: Callable[[AgentIdentity], Awaitable[None]]) -> None:
        self.identity = identity
        self.gone: str | None = None
        self._place, self._public_key, self._on_new = place, public_key, on_new
        self._remaking = asyncio.Lock()

    async def dial(self, avoid: Sequence[str], *, first: bool) -> tuple[Via, socket.socket] | str:
        """A carrier, or why there is none just now. `first`: nothing has worked yet."""
        agent = self.identity
        try:
            if self.gone is not None:
                raise LinkLost(self.gone)
            return await self._place.dial(agent, avoid)
        except HostKeyMismatch:
            raise
        except AgentFailed as error:
            failed = await self._remake(agent)
            return error.message if failed is None else f"{error.message}; {failed.message}"
        except BridgeError as error:
            if first and isinstance(error, Forbidden | VersionMismatch):
                raise
            return error.message
        except OSError as error:
            return error.strerror or str(error)

    async def follow(self, on_change: Callable[[TargetChange], None] = lambda change: None) -> None:
        """Follow the target, until cancelled."""
        async for change in self._place.watch():
            log.info("= target %s: %s", change.kind, change.why)
            self.gone = change.why if change.kind == "gone" else None
            on_change(change)
            if change.kind == "moved" and (failed := await self._remake(self.identity)) is not None:
                log.warning("! the agent cannot be made anew: %s", failed.message)

    async def _remake(self, broken: AgentIdentity) -> BridgeError | None:
        """A new agent in place of `broken`, unless another task has made it meanwhile; or why there is none: the next dial tries again."""
        async with self._remaking:
            if self.identity is not broken:
                return None
            try:
                self.identity = await untorn(self._place.start_agent(self._public_key, log.info), "make agent anew")
            except HostKeyMismatch:
                raise
            except BridgeError as error:
                return error
            await self._on_new(self.identity)
            return None

"""Routes of names that no answer has named for long: taken away, again and again until they are gone.

Theory of operation: of an address's rules those that open go first (DIRECT), then those that close (CLUSTER, DENY). The first failure
ends the turn, so a rule that closes is never away while one that opens stands behind it. What was not taken away is given back to the
rules, which name it again at the next turn, unless an answer wants it by then.

What a failure means: rules that close stand longer, which closes more; a DIRECT that stands longer leads to an address that was the
user's own choice until now. Neither is a reason to end the bridge, which would reset all flows and leave the very same rules.

Limits: all of a turn is one call. The kernel must hear of it before it hears of what is learned meanwhile, or a rule that has just
become wanted again would be taken away.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from bridge.errors import BridgeError
from bridge.model.rules import Route, RuleSet, Verdict

log = logging.getLogger(__name__)

EVERY_S = 30.0


async def expire(rules: RuleSet, forget: Callable[[Sequence[Route]], Awaitable[None]], now: Callable[[], float]) -> None:
    """Until cancelled. `forget` takes routes away in their order, and tolerates absence; it may stop at any of them."""
    while True:
        await asyncio.sleep(EVERY_S)
        gone = sorted(rules.expire(now()), key=lambda route: route.verdict is not Verdict.DIRECT)
        try:
            await forget(gone)
        except (BridgeError, OSError) as exc:
            log.warning("! routes of names that have expired stand: %s; again in %.0f s", exc, EVERY_S)
            rules.keep(gone, now())

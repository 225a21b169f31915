"""What undoes a session that nobody serves any more: its plan; where that is damaged, the labels of what it made.

Theory of operation: the plan names every step, and the undo of a step tolerates absence. A plan can still be lost: a full disk,
an editor, a later mbridge's form. Then all that bears the session's label goes, on the developer's own engine and on whatever
engine or cluster the remains of the plan name.

Limits: without the plan's `place` an agent in a cluster, or on another engine than the developer's, is not found; it ends by
itself when nobody speaks to it (`agent.ttl`).
"""

from __future__ import annotations

import os

from bridge.adapters.docker.endpoint import Endpoint, find_endpoint
from bridge.adapters.docker.engine import Engine
from bridge.cli import places
from bridge.cli.sessions import Say, SessionFolder, all_sessions, owner
from bridge.cli.world import World, leftovers, world_of
from bridge.engine import up
from bridge.errors import BridgeError, CleanupError, SpecError
from bridge.model import plan as plans
from bridge.model.plan import Plan


async def undo(folder: SessionFolder, say: Say) -> str | None:
    """Undo what `folder`'s plan says. Raises CleanupError with what is left.

    Returns None, or what was damaged: then what bears the session's label has been removed instead.
    """
    try:
        plan = folder.plan()
        world = world_of(plan) if plan is not None else None
    except SpecError as exc:
        say("removing what bears its label")
        try:
            await _undo_by_labels(folder)
        except BridgeError as failed:
            raise CleanupError(f"{exc.message}, and what bears its label cannot be removed: {failed.message}", hint=failed.hint) from failed
        return f"{exc.message}; what bore its label was removed"
    if plan is not None and world is not None:
        await _undo_steps(plan, world, say)
    return None


async def _undo_steps(plan: Plan, world: World, say: Say) -> None:
    say(f"undoing {len(plan.steps)} steps")
    failures = await up.undo(plan.steps, world)
    if failures:
        raise up.what_is_left(plan.session, failures)
    if plan.engine:  # an engine finishes what a process asked for just before it was killed
        await _remove_labelled(Endpoint.from_json(plan.engine), plan.session)


async def _undo_by_labels(folder: SessionFolder) -> None:
    text = folder.plan_text() or ""
    engine, place = plans.salvaged(text, "engine"), plans.salvaged(text, "place")
    await _remove_labelled(_endpoint(engine), folder.id)
    if place is not None:
        try:
            found = places.place_again(place, folder.id)
        except SpecError:
            return
        await found.remove_agent()


def _endpoint(salvaged: plans.Json | None) -> Endpoint:
    try:
        return Endpoint.from_json(salvaged or {})
    except SpecError:
        return find_endpoint(None, os.environ)


async def _remove_labelled(endpoint: Endpoint, session: str) -> None:
    for _, remove in await leftovers(Engine(endpoint), f"mbridge.session={session}"):
        await remove()


async def sweep(say: Say) -> None:
    """What bears our label on the developer's engine and belongs to no session that we know (its folder was lost)."""
    left = await leftovers(await places.own_engine(), f"mbridge.owner={owner()}")
    known = {folder.id for folder in all_sessions()}  # only now: a folder is there before what bears its session's label
    for session, remove in left:
        if session not in known:
            say(f"removing what {f'session {session}' if session else 'a command'} left")
            await remove()

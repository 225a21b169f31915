"""A `forward` from its agent to its undo: a session like any other, without containers on this side.

It has a folder, a journal and a status, so `mbridge status` shows it and `mbridge down` undoes it after a kill -9.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import replace

from bridge.adapters.resumable import ResumableTransport
from bridge.adapters.ssh import connect_ssh
from bridge.cli import forwarding, places, session_log, sessions
from bridge.cli.cmd_forward import Forward
from bridge.cli.kept_agent import KeptAgent
from bridge.cli.several import ended_by_signals
from bridge.cli.ui import Ui
from bridge.cli.world import World
from bridge.engine import up
from bridge.engine.needs import Place
from bridge.engine.supervisor import Supervisor
from bridge.errors import HostKeyMismatch, KeyRefused
from bridge.model.facts import AgentIdentity
from bridge.model.plan import Agent, Op, Plan
from bridge.model.session import SessionStatus, State
from bridge.model.wish import SessionWish
from bridge.protocol.door import LinkStatus


async def forward(wish: SessionWish, forwards: Sequence[Forward], ui: Ui) -> int:
    """Forward until a signal; 0 then. Raises BridgeError, CleanupError with what is left."""
    listeners = [forwarding.listen(one) for one in forwards]
    folder = sessions.new()
    place = places.place_of(wish, folder.id)
    with ui.step("target") as step:
        step.done((await place.find()).where)
    plan = Plan(folder.id, str(wish.target), "forward", "", {}, places.to_json(wish), (Agent(str(wish.target)),))
    private_key, public_key = sessions.key_pair()
    made: list[Op] = []
    async with ended_by_signals():
        with folder.lock(), session_log.to_file(folder.log):
            folder.save(plan)
            world = World(folder.id, None, place, public_key)
            try:
                with ui.step("agent") as step:
                    world.progress = step.now
                    await up.apply(plan.steps, world, made)
                    assert world.agent is not None  # the step brought it
                    step.done(world.agent.name)
                link = _Linked(folder, wish, place, world.agent, private_key, public_key, listeners, ui)
                await forwarding.until_ended(link.run(), link.serve)
            except (HostKeyMismatch, KeyRefused):
                place.distrust_agent()
                raise
            finally:
                failures = await up.undo(made, world)
                if not failures:
                    folder.forget()
            if failures:
                raise up.what_is_left(folder.id, failures)
    return 0


class _Linked:
    """The link of one forward and what its supervisor asks of this process."""

    def __init__(
        self,
        folder: sessions.SessionFolder,
        wish: SessionWish,
        place: Place,
        agent: AgentIdentity,
        private_key: str,
        public_key: str,
        listeners: Sequence[forwarding.Listener],
        ui: Ui,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._folder, self._place, self._listeners, self._ui = folder, place, listeners, ui
        self._agent = KeptAgent(place, agent, public_key, self._on_new_agent)
        self._dials = asyncio.TaskGroup()
        self._served = False  # there was a link
        ports = tuple(str(one.forward) for one in listeners)
        self._status = SessionStatus(
            folder.id, str(wish.target), State.STARTING, sessions.now(), agent=agent.name, ports=ports, app="forward"
        )
        self._on_warnings()
        place.on_warnings = self._on_warnings
        self.supervisor = Supervisor(
            private_key=private_key,
            host_key=agent.host_key,
            agent_id=agent.agent_id,
            dial=self._dial,
            on_status=self._on_status,
            make_transport=lambda: ResumableTransport.client(loop),
            connect_ssh=connect_ssh,
            now=time.time,
            random=random.random,
        )

    async def run(self) -> None:
        """Keep the link up. Raises what no other attempt can help."""
        async with self._dials:
            await self.supervisor.run()

    async def serve(self) -> None:
        """Until cancelled; stops the link in order, so that the agent need not wait for anybody."""
        try:
            with self._ui.step("link") as step:
                facts = await self.supervisor.facts()
                self._served = True
                step.done(f"{', '.join(facts.addresses) or 'no address'} of {facts.hostname}")
            for listener in self._listeners:
                self._ui.say(str(listener.forward))
            async with asyncio.TaskGroup() as group:
                group.create_task(self._agent.follow(), name="target")
                group.create_task(forwarding.serve(self._listeners, self.supervisor), name="forwards")
        finally:
            await self.supervisor.stop()

    def _dial(self, number: int, avoid: Sequence[str]) -> None:
        self._dials.create_task(self._bring(number, avoid), name=f"dial-{number}")

    async def _bring(self, number: int, avoid: Sequence[str]) -> None:
        dialled = await self._agent.dial(avoid, first=not self._served)
        if isinstance(dialled, str):
            self.supervisor.carrier_failed(number, dialled, False)
        else:
            via, sock = dialled
            self.supervisor.carrier(number, via, (sock.detach(),))

    async def _on_new_agent(self, agent: AgentIdentity) -> None:
        self.supervisor.agent_changed(agent.host_key, agent.agent_id)

    def _on_status(self, told: LinkStatus) -> None:
        state = State.READY if told.state == "connected" else State.STARTING if told.state == "connecting" else State.RECONNECTING
        self._status = replace(self._status, link=sessions.link_status(told), agent=self._agent.identity.name)
        if state is not self._status.state:
            self._status = self._status.changed(state, sessions.now(), told.why)
        self._folder.write_status(self._status)

    def _on_warnings(self) -> None:
        self._status = sessions.with_warnings(self._status, self._place.warnings, self._ui.warn)
        self._folder.write_status(self._status)

"""A link without an app: `mbridge forward` brings ports of what the target reaches to this machine.

Theory of operation: the same agent and the same supervised link as of a session, with both ends of it here instead of in a bridge's
container: dials are answered by the place, whose descriptors go straight to the supervisor. The only change to the world is the
agent, and it is in the journal like any other: `mbridge down` ends a visit whose process was killed.

    a connection to listen_host:listen_port here ── open_flow(host, port) ──> the target's namespace

A refused dial resets the connection, which is the nearest thing that its program can see: it was accepted already.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import signal
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

from bridge.cli import places, sessions
from bridge.cli.hosting import Teller
from bridge.cli.world import World
from bridge.engine import relay, up
from bridge.engine.needs import FlowRefused, Place
from bridge.engine.supervisor import Supervisor
from bridge.errors import AgentFailed, BridgeError, HostError
from bridge.model.facts import AgentIdentity
from bridge.model.plan import Agent, Op, Plan
from bridge.model.session import LinkStatus, SessionStatus, State
from bridge.model.wish import SessionWish
from bridge.protocol import door as wire

log = logging.getLogger(__name__)

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER of 0: close sends a RST (socket(7))
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Forward(Protocol):
    """`listen_host:listen_port` here is `host:port` as the target sees it; listen_port 0 is any free one."""

    @property
    def listen_host(self) -> str: ...
    @property
    def listen_port(self) -> int: ...
    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...


async def forward(wish: SessionWish, forwards: Sequence[Forward], ui: Teller) -> int:
    """Serve until a signal; its exit code (130 for Ctrl-C). Raises BridgeError."""
    listeners = [_listen(one) for one in forwards]  # before the agent: a port in use must cost nothing
    ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    loop = asyncio.get_running_loop()
    try:
        for number in _ENDING:
            loop.add_signal_handler(number, _end, ended, 128 + number)
        async with _link(wish, ui, ended) as link:
            for one, listener in zip(forwards, listeners, strict=True):
                ui.note(f"{one.listen_host}:{listener.getsockname()[1]} is {one.host}:{one.port} of {wish.target}")
                link.serve(listener, one)
            return await ended
    except asyncio.CancelledError:
        if ended.done() and not ended.cancelled() and ended.exception() is None:
            return ended.result()
        raise
    finally:
        for number in _ENDING:
            loop.remove_signal_handler(number)
        for listener in listeners:
            listener.close()


class _Link:
    """One supervised link, its far end beside the target, its near end in this process."""

    def __init__(self, place: Place, public_key: str, private_key: str, agent: AgentIdentity, group: asyncio.TaskGroup, tell: Tell) -> None:
        from bridge.adapters.resumable import ResumableTransport
        from bridge.adapters.ssh import connect_ssh

        self._place, self._public_key, self._agent, self._group = place, public_key, agent, group
        self._loop = asyncio.get_running_loop()
        self._remaking = asyncio.Lock()
        self.supervisor = Supervisor(
            private_key=private_key,
            host_key=agent.host_key,
            agent_id=agent.agent_id,
            dial=lambda number, avoid: _keep(group.create_task(self._dial(number, avoid), name=f"dial-{number}")),
            on_status=tell,
            make_transport=lambda: ResumableTransport.client(self._loop),
            connect_ssh=connect_ssh,
            now=time.time,
            random=random.random,
        )

    def serve(self, listener: socket.socket, wanted: Forward) -> None:
        self._group.create_task(self._accept(listener, wanted), name=f"forward-{wanted.port}")

    async def _accept(self, listener: socket.socket, wanted: Forward) -> None:
        while True:
            sock, address = await self._loop.sock_accept(listener)
            self._group.create_task(self._open(sock, (address[0], address[1]), wanted), name="forwarded-flow")

    async def _open(self, sock: socket.socket, caller: tuple[str, int], wanted: Forward) -> None:
        try:
            channel = await self.supervisor.open_flow(wanted.host, wanted.port, caller)
        except (FlowRefused, BridgeError) as exc:
            log.info("! forward to %s:%d: %s", wanted.host, wanted.port, exc)
            with sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            return
        except BaseException:
            sock.close()
            raise
        relay.join(self._loop, sock, channel, lambda sent, received, how: log.debug("x forward: %d out, %d in, %s", sent, received, how))

    async def _dial(self, number: int, avoid: Sequence[str]) -> None:
        agent = self._agent
        try:
            via, carrier = await self._place.dial(agent, avoid)
        except AgentFailed as exc:
            why = exc.message
            with contextlib.suppress(BridgeError):
                await self._remake(agent)
        except BridgeError as exc:
            why = exc.message
        else:
            self.supervisor.carrier(number, via, [carrier.detach()])
            return
        self.supervisor.carrier_failed(number, why, False)

    async def watch(self) -> None:
        async for change in self._place.watch():
            log.info("= target %s: %s", change.kind, change.why)
            if change.kind == "moved":
                with contextlib.suppress(BridgeError):  # the next dial tries again
                    await self._remake(self._agent)

    async def _remake(self, broken: AgentIdentity) -> None:
        async with self._remaking:
            if self._agent is broken:
                self._agent = await up.untorn(self._place.start_agent(self._public_key, log.info), "make agent anew")
                self.supervisor.agent_changed(self._agent.host_key, self._agent.agent_id)


Tell = Callable[[wire.LinkStatus], None]


@contextlib.asynccontextmanager
async def _link(wish: SessionWish, ui: Teller, ended: asyncio.Future[int]) -> AsyncIterator[_Link]:
    """Find, journal, agent, link; undone at the end. `ended` interrupts the start too."""
    folder = sessions.new()
    place = places.place_of(wish, folder.id)
    with ui.step("target") as step:
        found = await place.find()
        step.done(found.where)
    private_key, public_key = sessions.key_pair()
    status = SessionStatus(folder.id, str(wish.target), State.STARTING, sessions.now())
    steps: tuple[Op, ...] = (Agent(str(wish.target)),)
    made: list[Op] = []
    world = World(folder.id, None, place, public_key)
    main = asyncio.current_task()
    assert main is not None
    ended.add_done_callback(lambda _: main.cancel())
    with folder.lock():
        try:
            folder.save(Plan(folder.id, str(wish.target), "forward", "", {}, places.to_json(wish), steps))
            folder.write_status(status)
            with ui.step("agent") as step:
                await up.apply(steps, world, made)
                assert world.agent is not None  # the step brought it
                step.done(world.agent.name)
            async with asyncio.TaskGroup() as group:

                def tell(link: wire.LinkStatus) -> None:
                    state = State.READY if link.state == "connected" else State.RECONNECTING
                    words = LinkStatus(link.via, "up" if link.state == "connected" else "connecting", sessions.now())
                    folder.write_status(SessionStatus(folder.id, str(wish.target), state, sessions.now(), link.why, words, status.agent))

                link = _Link(place, public_key, private_key, world.agent, group, tell)
                running = group.create_task(link.supervisor.run(), name="link")
                watching = group.create_task(link.watch(), name="target")
                with ui.step("link"):
                    await link.supervisor.facts()
                try:
                    yield link
                finally:
                    await link.supervisor.stop()
                    for task in (running, watching):
                        task.cancel()
        except BaseExceptionGroup as exc:
            raise next((one for one in exc.exceptions if isinstance(one, BridgeError)), exc.exceptions[0]) from exc
        finally:
            failures = await up.undo(made, world)
            if failures:
                raise up.what_is_left(folder.id, failures)
            folder.forget()


def _listen(wanted: Forward) -> socket.socket:
    family = socket.AF_INET6 if ":" in wanted.listen_host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((wanted.listen_host, wanted.listen_port))
        sock.listen(128)
    except OSError as exc:
        sock.close()
        said = f"cannot listen on {wanted.listen_host}:{wanted.listen_port}: {(exc.strerror or str(exc)).lower()}"
        raise HostError(said, hint="another port on this side: HERE:HOST:PORT, 0 for any free one") from exc
    return sock


def _end(ended: asyncio.Future[int], code: int) -> None:
    if not ended.done():
        ended.set_result(code)


def _keep(_: asyncio.Task[None]) -> None:
    """The task group holds it."""

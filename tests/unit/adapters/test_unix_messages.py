"""Messages with descriptors over a real socket pair: whole, in order, and no descriptor left anywhere."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import uvloop

from bridge.adapters import unix_messages
from bridge.adapters.unix_messages import UnixMessages

FDS = Path("/proc/self/fd")
Play = Callable[[Callable[["Pair"], Awaitable[None]]], None]


class End:
    """One end, and what it was told."""

    def __init__(self, sock: socket.socket, *, takes_fds: bool = False) -> None:
        self.heard: list[bytes] = []
        self.fds: list[int | None] = []
        self.lost: list[str] = []
        self.changed = asyncio.Event()
        self.then: Callable[[], None] = lambda: None  # at each message
        self.messages = UnixMessages(sock, self.on_message, self.on_lost, most_bytes=512, takes_fds=takes_fds)

    def on_message(self, message: bytes, fd: int | None) -> None:
        self.heard.append(message)
        self.fds.append(fd)
        self.changed.set()
        self.then()

    def on_lost(self, why: str) -> None:
        self.lost.append(why)
        self.changed.set()

    async def until(self, fact: Callable[[End], bool]) -> None:
        async with asyncio.timeout(10):
            while not fact(self):
                self.changed.clear()
                await self.changed.wait()


class Pair:
    """Our end, which is tested, and the far one as a bare socket or, by `far`, as another of ours."""

    def __init__(self) -> None:
        ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.near = End(ours)
        self.near.messages.start()

    def far(self, *, takes_fds: bool = True) -> End:
        end = End(self.theirs, takes_fds=takes_fds)
        end.messages.start()
        return end


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def play(request: pytest.FixtureRequest) -> Play:
    """Runs a scenario; whatever it did, its descriptors are given back by the end of it, and no callback has failed."""

    def run(scenario: Callable[[Pair], Awaitable[None]]) -> None:
        async def main() -> None:
            faults: list[object] = []
            asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
            await asyncio.get_running_loop().run_in_executor(None, bool)  # what the loop itself opens is open
            before = len(os.listdir(FDS))
            pair = Pair()
            async with asyncio.timeout(30):
                await scenario(pair)
            pair.near.messages.close()
            pair.theirs.close()
            await asyncio.sleep(0)
            assert len(os.listdir(FDS)) == before
            assert faults == []

        request.param(main())

    return run


def pipe() -> tuple[int, int]:
    """A descriptor to give away, and the pipe's other end: it reads the end when nobody holds the given one."""
    ours, given = os.pipe()
    os.set_blocking(ours, False)
    return given, ours


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_messages_come_whole_and_in_order_however_late_the_peer_reads(play: Play) -> None:
    async def scenario(pair: Pair) -> None:
        wanted = [bytes([number % 256]) * (1 + number % 500) for number in range(3000)]
        for message in wanted:
            pair.near.messages.send(message)
        assert pair.near.lost == []
        first = [pair.theirs.recv(512) for _ in range(100)]  # there is room again, for what has waited longest
        pair.near.messages.send(b"the last")
        far = pair.far()
        await far.until(lambda end: len(end.heard) == 2901)
        assert [*first, *far.heard] == [*wanted, b"the last"]
        pair.near.messages.send(b"and one that need not wait")
        await far.until(lambda end: len(end.heard) == 2902)
        far.messages.close()

    play(scenario)


def test_a_descriptor_arrives_working_with_its_own_message_and_the_senders_is_closed(play: Play) -> None:
    async def scenario(pair: Pair) -> None:
        far = pair.far()
        given, reads = pipe()
        pair.near.messages.send(b"before")
        pair.near.messages.send(b"with it", given)
        pair.near.messages.send(b"after")
        await far.until(lambda end: len(end.heard) == 3)
        assert [fd is not None for fd in far.fds] == [False, True, False]
        arrived = far.fds[1]
        assert arrived is not None
        assert not os.get_inheritable(arrived)
        os.write(arrived, b"works")
        assert os.read(reads, 100) == b"works"
        os.close(arrived)
        assert os.read(reads, 100) == b"", "nobody else holds it"
        os.close(reads)
        far.messages.close()

    play(scenario)


def test_a_descriptor_that_had_to_wait_arrives_with_its_message(play: Play) -> None:
    async def scenario(pair: Pair) -> None:
        for number in range(1000):
            pair.near.messages.send(number.to_bytes(2, "big") * 200)
        given, reads = pipe()
        pair.near.messages.send(b"with it", given)
        assert is_open(given), "it cannot have gone yet"
        far = pair.far()
        await far.until(lambda end: end.heard[-1:] == [b"with it"])
        assert far.fds[:-1] == [None] * 1000
        arrived = far.fds[-1]
        assert arrived is not None
        os.close(arrived)
        assert os.read(reads, 100) == b""
        os.close(reads)
        far.messages.close()

    play(scenario)


def test_descriptors_of_messages_that_never_went_are_closed_with_it(play: Play) -> None:
    async def scenario(pair: Pair) -> None:
        for _ in range(1000):
            pair.near.messages.send(bytes(400))
        pipes = [pipe() for _ in range(3)]
        for given, _ in pipes:
            pair.near.messages.send(b"with it", given)
        pair.near.messages.close()
        pair.near.messages.close()
        for _, reads in pipes:
            assert os.read(reads, 100) == b""
            os.close(reads)
        given, reads = pipe()
        pair.near.messages.send(b"too late", given)
        assert os.read(reads, 100) == b""
        os.close(reads)
        assert pair.near.lost == [], "who closes is told nothing"

    play(scenario)


def test_a_peer_that_reads_nothing_is_cut_off_once_and_all_descriptors_are_closed(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unix_messages, "MOST_KEPT", 100)

    async def scenario(pair: Pair) -> None:
        pipes: list[int] = []
        while not pair.near.lost:
            given, reads = pipe()
            pipes.append(reads)
            pair.near.messages.send(bytes(400), given)
            assert len(pipes) < 5000
        assert pair.near.lost == ["it does not read"]
        pair.near.messages.send(b"more")
        pair.theirs.close()  # what is on its way is the kernel's to close
        for reads in pipes:
            assert os.read(reads, 1) == b""
            os.close(reads)
        assert pair.near.lost == ["it does not read"]

    play(scenario)


def test_the_peers_end_is_told_once_after_all_that_it_said(play: Play) -> None:
    async def scenario(pair: Pair) -> None:
        pair.theirs.send(b"last words")
        pair.theirs.close()
        await pair.near.until(lambda end: bool(end.lost))
        assert (pair.near.heard, pair.near.lost) == ([b"last words"], ["it has ended"])
        pair.near.messages.send(b"nobody is there")
        pair.near.messages.close()
        assert len(pair.near.lost) == 1

    play(scenario)


def test_an_end_that_is_found_by_sending_is_told_once_too(play: Play) -> None:
    async def scenario(pair: Pair) -> None:
        pair.theirs.close()
        given, reads = pipe()
        pair.near.messages.send(b"with it", given)
        assert pair.near.lost == ["Broken pipe"]
        assert os.read(reads, 1) == b""
        os.close(reads)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert pair.near.lost == ["Broken pipe"]

    play(scenario)


def test_one_whose_peer_is_gone_before_it_begins_to_read_fails_nowhere(play: Play) -> None:
    async def scenario(_: Pair) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.close()
        end = End(ours)
        end.messages.send(b"first words")
        end.messages.start()
        assert end.lost == ["Broken pipe"]

    play(scenario)


def test_nothing_is_told_after_close_although_more_has_come(play: Play) -> None:
    async def scenario(pair: Pair) -> None:
        for number in range(10):
            pair.theirs.send(bytes([number]))
        pair.near.then = pair.near.messages.close
        await pair.near.until(lambda end: bool(end.heard))
        await asyncio.sleep(0)
        assert (pair.near.heard, pair.near.lost) == ([b"\0"], [])

    play(scenario)


@pytest.mark.parametrize("many", [1, 2, 3])
def test_where_none_may_come_descriptors_of_the_peers_are_nobodys(play: Play, many: int) -> None:
    async def scenario(pair: Pair) -> None:
        pipes = [pipe() for _ in range(many)]
        socket.send_fds(pair.theirs, [b"take these"], [given for given, _ in pipes])
        for given, _ in pipes:
            os.close(given)
        await pair.near.until(lambda end: bool(end.heard))
        assert pair.near.fds == [None]
        for _, reads in pipes:
            assert os.read(reads, 1) == b"", "closed by the kernel"
            os.close(reads)

    play(scenario)


@pytest.mark.parametrize("many", [2, 3, 200])
def test_of_several_descriptors_with_a_message_one_is_taken(play: Play, many: int) -> None:
    async def scenario(_: Pair) -> None:
        sender, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        far = End(theirs, takes_fds=True)
        far.messages.start()
        given, reads = pipe()
        socket.send_fds(sender, [b"take these"], [given] * many)
        os.close(given)
        await far.until(lambda end: bool(end.heard))
        (arrived,) = far.fds
        assert arrived is not None
        os.write(arrived, b"works")
        assert os.read(reads, 100) == b"works"
        os.close(arrived)
        assert os.read(reads, 100) == b""
        os.close(reads)
        far.messages.close()
        sender.close()

    play(scenario)


def test_an_empty_message_with_a_descriptor_is_an_end_that_leaves_none(play: Play) -> None:
    async def scenario(_: Pair) -> None:
        sender, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        far = End(theirs, takes_fds=True)
        far.messages.start()
        given, reads = pipe()
        socket.send_fds(sender, [b""], [given])
        os.close(given)
        await far.until(lambda end: bool(end.lost))
        assert os.read(reads, 1) == b""
        os.close(reads)
        sender.close()

    play(scenario)


class _Short(socket.socket):
    """The kernel has no room for one more descriptor on its way (ETOOMANYREFS: unix(7))."""

    def sendmsg(self, *_: object) -> int:
        raise OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS))


def test_a_descriptor_that_the_kernel_does_not_take_ends_it_and_is_closed_once(play: Play) -> None:
    async def scenario(_: Pair) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        end = End(_Short(fileno=ours.detach()))
        end.messages.start()
        end.messages.send(b"without one")
        given, reads = pipe()
        end.messages.send(b"with it", given)
        assert end.lost == [os.strerror(errno.ETOOMANYREFS)]
        assert os.read(reads, 1) == b""
        os.close(reads)
        theirs.close()

    play(scenario)

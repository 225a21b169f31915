"""SSH between bridge and agent: both ends in one process."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import asyncssh
import pytest

from bridge.adapters.ssh.channel import Channel
from bridge.adapters.ssh.messages import Messages
from bridge.adapters.ssh.server import serve_ssh
from bridge.adapters.ssh.windows import Windows
from bridge.errors import HostKeyMismatch, KeyRefused, LinkError, LinkLost, VersionMismatch
from bridge.protocol import control, udp
from bridge.protocol.control import FlowRefused
from tests.unit.adapters.ssh_pair import FarSide, MiB, Pair, Recorder, SocketTransport, new_key


def run(test: Coroutine[Any, Any, None], seconds: float = 20) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(seconds):
            await test

    asyncio.run(bounded())


def test_bytes_pass_both_ways_and_both_ends_close_in_order() -> None:
    async def test() -> None:
        async with Pair() as pair:
            near, far, near_hears, far_hears = await pair.open()
            near.write(b"SELECT 1")
            assert await far_hears.until(8) == b"SELECT 1"
            far.write(b"1 row")
            assert await near_hears.until(5) == b"1 row"
            near.write_eof()
            await far_hears.eof.wait()
            far.write(b"bye")  # half-closed: the responder may go on
            far.write_eof()
            await near_hears.eof.wait()
            assert near_hears.data == b"1 rowbye"
            near.close()
            assert await far_hears.lost is False
            far.close()

    run(test())


def test_the_agent_hears_which_address_is_dialled() -> None:
    async def test() -> None:
        async with Pair() as pair:
            opening = asyncio.ensure_future(pair.ssh.open_flow("fd00::7", 443, ("172.18.0.3", 41512)))
            channel, address, port = await pair.far.dialled.get()
            assert (address, port) == ("fd00::7", 443)
            channel.accept()
            await opening

    run(test())


@pytest.mark.parametrize("errno_name", ["ECONNREFUSED", "EHOSTUNREACH", "ETIMEDOUT"])
def test_a_refused_dial_tells_its_errno(errno_name: str) -> None:
    async def test() -> None:
        async with Pair() as pair:
            pair.far.refuse_all = errno_name
            with pytest.raises(FlowRefused) as caught:
                await pair.ssh.open_flow("10.0.0.7", 1, ("172.18.0.3", 41512))
            assert caught.value.errno_name == errno_name
            assert pair.near_windows.promised == 0

    run(test())


@pytest.mark.parametrize("text", ["\x1b[2Jgotcha", "Connection refused", "E" * 300, ""])
def test_a_refusal_that_is_no_errno_is_told_as_one(text: str) -> None:
    async def test() -> None:
        async with Pair() as pair:
            pair.far.refuse_all = text
            with pytest.raises(FlowRefused) as caught:
                await pair.ssh.open_flow("10.0.0.7", 1, ("172.18.0.3", 41512))
            assert caught.value.errno_name == "ECONNREFUSED"

    run(test())


def test_a_reset_of_the_responder_is_a_reset_for_the_app() -> None:
    async def test() -> None:
        async with Pair() as pair:
            _, far, near_hears, _ = await pair.open()
            far.write(b"half an ans")
            far.abort()
            assert await near_hears.lost is True
            assert not near_hears.eof.is_set()

    run(test())


def test_a_reset_after_ones_own_fin_is_still_a_reset() -> None:
    async def test() -> None:
        async with Pair() as pair:
            near, _, near_hears, far_hears = await pair.open()
            near.write_eof()
            await far_hears.eof.wait()
            near.abort()
            assert await far_hears.lost is True
            assert not near_hears.lost.done()  # nothing is told to the one who aborted

    run(test())


def test_the_loss_of_the_connection_resets_every_flow() -> None:
    async def test() -> None:
        async with Pair() as pair:
            _, _, one, far_one = await pair.open()
            _, _, other, _ = await pair.open()
            assert pair.server_transport.transport is not None
            pair.server_transport.transport.abort()
            assert await one.lost is True
            assert await other.lost is True
            assert await far_one.lost is True
            await pair.ssh.closed
            with pytest.raises(LinkLost):
                await pair.ssh.open_flow("10.0.0.7", 1, ("172.18.0.3", 41512))
            assert pair.near_windows.promised == pair.far_windows.promised == 0

    run(test())


def test_what_comes_before_attach_is_kept_in_order() -> None:
    async def test() -> None:
        async with Pair() as pair:
            opening = asyncio.ensure_future(pair.ssh.open_flow("10.0.0.7", 25, ("172.18.0.3", 41512)))
            far, _, _ = await pair.far.dialled.get()
            far.accept()
            far.write(b"220 mail ")
            far.write(b"ready")
            far.write_eof()
            near = await opening
            probe = await pair.open()  # a later flow's opening has passed: so have those bytes
            hears = Recorder()
            near.attach(hears)
            assert (bytes(hears.data), hears.eof.is_set()) == (b"220 mail ready", True)
            del probe

    run(test())


def test_a_cancelled_opening_closes_the_channel_when_the_agent_has_dialled() -> None:
    async def test() -> None:
        async with Pair() as pair:
            opening = asyncio.ensure_future(pair.ssh.open_flow("10.0.0.7", 25, ("172.18.0.3", 41512)))
            far, _, _ = await pair.far.dialled.get()
            opening.cancel()
            with pytest.raises(asyncio.CancelledError):
                await opening
            hears = Recorder()
            far.accept()
            far.attach(hears)
            assert await hears.lost is True
            assert pair.far_windows.promised == 0

    run(test())


async def _send_all(channel: Channel, hears: Recorder, data: bytes) -> None:
    for start in range(0, len(data), 256 << 10):
        await hears.writable.wait()
        channel.write(memoryview(data)[start : start + (256 << 10)])
    channel.write_eof()


def test_100_mb_each_way_at_once_arrive_whole() -> None:
    async def test() -> None:
        block = random.Random(1).randbytes(MiB)
        data = b"".join(hashlib.sha256(bytes([i])).digest() + block[32:] for i in range(100))
        async with Pair() as pair:
            near, far, near_hears, far_hears = await pair.open()
            sums = (hashlib.sha256(), hashlib.sha256())
            near_hears.on_bytes, far_hears.on_bytes = sums[0].update, sums[1].update
            async with asyncio.TaskGroup() as group:
                group.create_task(_send_all(near, near_hears, data))
                group.create_task(_send_all(far, far_hears, data))
                group.create_task(near_hears.eof.wait())
                group.create_task(far_hears.eof.wait())
            expected = hashlib.sha256(data).hexdigest()
            assert [s.hexdigest() for s in sums] == [expected, expected]

    run(test())


def test_a_reader_that_pauses_stops_the_writer_within_its_window() -> None:
    async def test() -> None:
        async with Pair() as pair:
            near, far, near_hears, far_hears = await pair.open()
            near.pause_reading()
            data = random.Random(2).randbytes(3 * MiB)
            sending = asyncio.ensure_future(_send_all(far, far_hears, data))
            await far_hears.full.wait()
            await pair.open()  # a whole round trip: whatever may come has come
            assert len(near_hears.data) == 0
            assert sum(map(len, near._held)) <= 128 << 10
            near.resume_reading()
            await near_hears.eof.wait()
            assert bytes(near_hears.data) == data
            await sending

    run(test())


def test_a_window_grows_with_use_and_the_sum_stays_bounded() -> None:
    async def test() -> None:
        async with Pair(limit=4 * MiB) as pair:
            near, far, near_hears, far_hears = await pair.open()
            data = bytes(16 * MiB)
            await asyncio.gather(_send_all(near, near_hears, data), far_hears.eof.wait())
            assert MiB <= pair.far_windows.promised <= 4 * MiB
            flows = [await pair.open() for _ in range(200)]
            assert pair.far_windows.promised <= 4 * MiB + 201 * 4096
            for flow in flows:
                flow[0].abort()
            far.write_eof()
            await near_hears.eof.wait()

    run(test())


def test_1000_flows_at_once_each_get_their_own_bytes() -> None:
    async def test() -> None:
        async with Pair() as pair:

            async def echo() -> None:
                while True:
                    channel, address, port = await pair.far.dialled.get()
                    channel.accept()
                    channel.write(f"{address}:{port}".encode())

            async with asyncio.TaskGroup() as group:
                echoing = group.create_task(echo())
                near = await asyncio.gather(
                    *(pair.ssh.open_flow(f"10.0.{i // 250}.{i % 250}", 80, ("172.18.0.3", 1024 + i)) for i in range(1000))
                )
                for i, channel in enumerate(near):
                    hears = Recorder()
                    channel.attach(hears)
                    expected = f"10.0.{i // 250}.{i % 250}:80".encode()
                    assert await hears.until(len(expected)) == expected
                    channel.abort()
                echoing.cancel()

    run(test())


def test_another_host_key_than_the_pinned_one_is_named() -> None:
    async def test() -> None:
        with pytest.raises(HostKeyMismatch) as told:
            await Pair(pinned_host_key=new_key()[1]).__aenter__()
        assert told.value.hint is not None
        assert "start the session again" in told.value.hint

    run(test())


def test_the_agent_accepts_one_client_key_only() -> None:
    async def test() -> None:
        pair = Pair(accepted_key=new_key()[1])
        with pytest.raises(KeyRefused, match="did not accept") as told:
            await pair.__aenter__()
        assert told.value.hint is not None
        assert "start the session again" in told.value.hint
        assert not pair.far.is_connected

    run(test())


def test_rekeying_in_the_middle_of_a_flow_goes_unnoticed() -> None:
    async def test() -> None:
        async with Pair() as pair:
            near, far, near_hears, far_hears = await pair.open()
            pair.ssh._connection._rekey_bytes = MiB
            pair.server._rekey_bytes = MiB
            data = random.Random(3).randbytes(8 * MiB)
            await asyncio.gather(
                _send_all(near, near_hears, data), _send_all(far, far_hears, data), near_hears.eof.wait(), far_hears.eof.wait()
            )
            assert bytes(near_hears.data) == bytes(far_hears.data) == data

    run(test())


class StockClient:
    """asyncssh's own client against our server: what a stranger's SSH program could ask for."""

    def __init__(self) -> None:
        self.far = FarSide()
        self._key = asyncssh.generate_private_key("ssh-ed25519")

    async def __aenter__(self) -> StockClient:
        near, far = socket.socketpair()
        host_key = asyncssh.generate_private_key("ssh-ed25519")
        public = self._key.convert_to_public()
        self.server = serve_ssh(SocketTransport(far), host_key=host_key, client_key=public, services=self.far, windows=Windows(64 * MiB))
        near.setblocking(False)
        self.ssh = await asyncssh.connect("agent", sock=near, username="mbridge", client_keys=[self._key], known_hosts=None, config=None)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.ssh.abort()
        self.server.abort()
        await self.ssh.wait_closed()
        await asyncio.wait_for(self.far.is_lost.wait(), 2)


def test_the_short_path_speaks_the_same_ssh_as_asyncssh() -> None:
    async def test() -> None:
        async with StockClient() as stock:
            opening = asyncio.ensure_future(stock.ssh.open_connection("10.0.0.7", 80))
            channel, address, port = await stock.far.dialled.get()
            assert (address, port) == ("10.0.0.7", 80)
            hears = Recorder()
            channel.attach(hears)
            channel.accept()
            reader, writer = await opening
            data = random.Random(4).randbytes(3 * MiB)
            writer.write(data)
            writer.write_eof()
            await hears.eof.wait()
            assert bytes(hears.data) == data
            channel.write(data[:MiB])
            channel.write_eof()
            assert await reader.read() == data[:MiB]
            channel.close()
            await writer.wait_closed()

    run(test())


def test_no_shell_no_command_no_other_subsystem_no_listener() -> None:
    async def test() -> None:
        async with StockClient() as stock:
            for refused in (
                stock.ssh.run("id"),
                stock.ssh.create_process(),
                stock.ssh.start_sftp_client(),
                stock.ssh.start_server(lambda *_: None, "", 0),
                stock.ssh.open_unix_connection("/run/docker.sock"),
            ):
                with pytest.raises((asyncssh.ChannelOpenError, asyncssh.ChannelListenError)):
                    await refused
            assert stock.far.dialled.empty()

    run(test())


@pytest.mark.parametrize("user", ["root", "mbridge2"])
def test_the_right_key_for_another_user_is_refused(user: str) -> None:
    async def test() -> None:
        key = asyncssh.generate_private_key("ssh-ed25519")
        near, far = socket.socketpair()
        host_key = asyncssh.generate_private_key("ssh-ed25519")
        services = FarSide()
        serve_ssh(SocketTransport(far), host_key=host_key, client_key=key.convert_to_public(), services=services)
        near.setblocking(False)
        with pytest.raises(asyncssh.PermissionDenied):
            await asyncssh.connect("agent", sock=near, username=user, client_keys=[key], known_hosts=None, config=None)
        assert not services.is_connected

    run(test())


def test_messages_pass_whole_and_in_order_whatever_their_size() -> None:
    async def test() -> None:
        async with Pair() as pair:
            sizes = [0, 1, 65507, 3, 40000]
            seen: asyncio.Queue[udp.Message] = asyncio.Queue()

            def serve(channel: Channel) -> None:
                messages = Messages(channel, udp.MAX_MESSAGE_BYTES, lambda body: messages.send(body), lambda: None)

            pair.far.subsystems["mbridge-udp"] = serve
            link = await pair.ssh.open_udp(seen.put_nowait)
            sent = [udp.Datagram(at, "10.0.0.9", 53, bytes(size)) for at, size in enumerate(sizes)]
            for message in sent:
                link.send(message)
            assert [await seen.get() for _ in sizes] == sent

    run(test())


def test_an_oversized_frame_ends_the_connection_with_memory_unspent() -> None:
    async def test() -> None:
        async with Pair() as pair:
            pair.far.subsystems["mbridge-udp"] = lambda channel: channel.write(b"\xff\xff\xff\xff" + bytes(1000))
            with contextlib.suppress(LinkLost):
                await pair.ssh.open_udp(lambda message: None)
            assert "frame" in await pair.ssh.closed

    run(test())


def test_an_agent_that_lacks_a_subsystem_is_named() -> None:
    async def test() -> None:
        async with Pair() as pair:
            with pytest.raises(LinkError, match="mbridge-udp"):
                await pair.ssh.open_udp(lambda message: None)

    run(test())


def test_an_agent_of_another_major_version_is_refused_naming_both() -> None:
    async def test() -> None:
        async with Pair() as pair:

            def serve(channel: Channel) -> None:
                Messages(channel, control.MAX_FRAME, lambda body: None, lambda: None).send(control.encode(control.Hello((9, 1), "9.1")))

            pair.far.subsystems["mbridge-control"] = serve
            with pytest.raises(VersionMismatch, match=r"9\.1.*1\.0"):
                await pair.ssh.open_control(lambda message: None)

    run(test())


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param(
            lambda connection, head: connection.send_packet(94, head[1:], (300 << 10).to_bytes(4, "big"), bytes(300 << 10)), id="window"
        ),
        pytest.param(lambda connection, head: connection.send_packet(94, (77).to_bytes(4, "big"), bytes(4)), id="channel"),
        pytest.param(lambda connection, head: connection.send_packet(94, head[1:], (9).to_bytes(4, "big"), b"short"), id="length"),
        pytest.param(lambda connection, head: connection.send_packet(91, head[1:], bytes(12)), id="confirmed twice"),
        pytest.param(lambda connection, head: connection.send_packet(99, head[1:]), id="answer to no request"),
        pytest.param(lambda connection, head: connection._transport.write(b"\xff\xff\xff\xff" + bytes(32)), id="packet length"),
        pytest.param(lambda connection, head: connection._transport.write(b"\0\0\0\x20" + bytes(48)), id="mac"),
    ],
)
def test_a_hostile_agent_loses_its_connection_and_nothing_else(attack: Callable[[Any, bytes], None]) -> None:
    async def test() -> None:
        async with Pair() as pair:
            _, far, near_hears, _ = await pair.open()
            attack(pair.server, far._head)
            assert await near_hears.lost is True
            assert await pair.ssh.closed

    run(test())


class Shredded(asyncio.Protocol):
    """Passes bytes on in pieces of random sizes, as views whose memory is used again at once."""

    def __init__(self, protocol: asyncio.Protocol, seed: int, most: int) -> None:
        self._protocol = protocol
        self._random = random.Random(seed)
        self._most = most
        self.connection_made, self.connection_lost = protocol.connection_made, protocol.connection_lost  # type: ignore[method-assign]  # a proxy
        self.pause_writing, self.resume_writing = protocol.pause_writing, protocol.resume_writing  # type: ignore[method-assign]  # a proxy

    def data_received(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            size = self._random.randint(1, self._most)
            piece = bytearray(data[at : at + size])
            self._protocol.data_received(memoryview(piece))
            piece[:] = b"\xa5" * len(piece)
            at += size


@pytest.mark.parametrize("most", [1, 3, 17, 40, 1000, 100_000])
def test_packets_are_found_however_the_carrier_cuts_them(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    start = SocketTransport.start
    monkeypatch.setattr(SocketTransport, "start", lambda self, protocol: start(self, Shredded(protocol, most, most)))

    async def test() -> None:
        async with Pair() as pair:
            near, far, near_hears, far_hears = await pair.open()
            pair.ssh._connection._rekey_bytes = 64 << 10  # so that both paths of the receiver meet such cuts
            data = random.Random(most).randbytes(most * 1000 if most < 100 else MiB)
            await asyncio.gather(_send_all(near, near_hears, data), far_hears.eof.wait())
            assert bytes(far_hears.data) == data
            await asyncio.gather(_send_all(far, far_hears, data), near_hears.eof.wait())
            assert bytes(near_hears.data) == data

    run(test())

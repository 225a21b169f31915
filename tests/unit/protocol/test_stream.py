"""The resumable stream against a model: two ends, carriers that lose their tail at any byte, both directions."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.errors import LinkLost, LocalProtocolError, RemoteProtocolError
from bridge.protocol import stream_frames
from bridge.protocol.stream import Greeting, State, Stream, StreamRefused
from bridge.protocol.stream_frames import Kind, Reader, encode, u64

ID, SECRET = bytes(range(16)), b"s" * 32
MiB = 1 << 20


def wire(stream: Stream, now: float = 0.0) -> bytes:
    """All that it has for its carrier."""
    out = b""
    while buffers := stream.take(now):
        out += b"".join(buffers)
    return out


def hear(stream: Stream, data: bytes, now: float = 0.0, reader: Reader | None = None) -> bytes:
    """What comes out of the stream when the carrier brings `data`."""
    out = b""
    stream.heard(now)
    for kind, body in (reader or Reader()).feed(memoryview(data)):
        out += bytes(stream.on_frame(kind, body, now) or b"")
    return out


class World:
    """A client, a server and whatever is under way between them."""

    def __init__(self) -> None:
        self.client = Stream(ID, client=True)
        self.server: Stream | None = None
        self.nonces = 0
        self.up = self.down = b""  # on the carrier
        self.got_up = self.got_down = b""
        self.sent_up = self.sent_down = b""
        self.client_reader = self.server_reader = Reader()
        self.greeting: Greeting | None = None

    def attach(self) -> None:
        """A fresh carrier, the old one's bytes are lost."""
        self.nonces += 1
        self.up = self.down = b""
        self.client_reader, self.server_reader = Reader(), Reader()
        self.greeting = Greeting(lambda stream_id: self.server if stream_id == ID else None, self.nonces.to_bytes(16, "big"))
        self.client.attach(b"c" + self.nonces.to_bytes(15, "big"), 0.0)

    def agree(self) -> None:
        self.move(1 << 30, 1 << 30)
        assert self.server is not None
        self.client.set_secret(SECRET)
        self.server.set_secret(SECRET)

    def move(self, up: int, down: int) -> None:
        """Carry at most so many bytes each way."""
        self.up += wire(self.client)
        part, self.up = self.up[:up], self.up[up:]
        self._hear_up(part)
        self.down += b"".join(self.greeting.out) if self.greeting else b""
        if self.greeting is not None:
            self.greeting.out.clear()
        if self.server is not None and self.greeting is None:
            self.down += wire(self.server)
        part, self.down = self.down[:down], self.down[down:]
        self.got_down += hear(self.client, part, reader=self.client_reader)

    def settle(self) -> None:
        for _ in range(6):
            self.move(1 << 30, 1 << 30)

    def _hear_up(self, part: bytes) -> None:
        for kind, body in self.server_reader.feed(memoryview(part)):
            if self.greeting is not None:
                stream = self.greeting.on_frame(kind, body, 0.0)
                if stream is not None:
                    self.server, self.down = stream, self.down + b"".join(self.greeting.out)
                    self.greeting = None
            else:
                assert self.server is not None
                self.got_up += bytes(self.server.on_frame(kind, body, 0.0) or b"")


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write-up"), st.integers(1, 70_000)),
        st.tuples(st.just("write-down"), st.integers(1, 70_000)),
        st.tuples(st.just("move-up"), st.integers(0, 100_000)),
        st.tuples(st.just("move-down"), st.integers(0, 100_000)),
        st.tuples(st.just("move-few"), st.integers(0, 120)),
        st.tuples(st.just("cut"), st.just(0)),
    ),
    max_size=40,
)


@given(STEPS)
@settings(max_examples=120, deadline=None)
def test_A41_cuts_at_any_byte_lose_and_repeat_nothing(steps: list[tuple[str, int]]) -> None:
    world = World()
    world.attach()
    world.agree()
    assert world.server is not None
    counter = 0
    for step, number in steps:
        match step:
            case "write-up" | "write-down":
                counter += 1
                data = (counter.to_bytes(4, "big") * (number // 4 + 1))[:number]
                if step == "write-up":
                    world.client.write(data)
                    world.sent_up += data
                else:
                    world.server.write(data)
                    world.sent_down += data
            case "move-up":
                world.move(number, 0)
            case "move-down":
                world.move(0, number)
            case "move-few":
                world.move(number, number)
            case "cut":
                world.attach()
        assert world.sent_up.startswith(world.got_up)
        assert world.sent_down.startswith(world.got_down)
        for end, sent in ((world.client, world.sent_up), (world.server, world.sent_down)):
            assert 0 <= end.unsent_bytes <= end.held_bytes <= len(sent)
    world.settle()
    if world.client.state is not State.CARRIED:
        world.attach()
        world.settle()
    assert world.got_up == world.sent_up
    assert world.got_down == world.sent_down


def resumed() -> World:
    world = World()
    world.attach()
    world.agree()
    return world


def greet(world: World, frame: bytes, nonce: bytes = b"n" * 16) -> Greeting:
    """A stranger's first frame on a carrier of its own."""
    greeting = Greeting(lambda stream_id: world.server if stream_id == ID else None, nonce)
    for kind, body in Reader().feed(memoryview(frame)):
        greeting.on_frame(kind, body, 0.0)
    return greeting


def test_acknowledged_bytes_are_let_go() -> None:
    world = resumed()
    world.client.write(b"x" * (3 * MiB))
    world.settle()
    assert len(world.got_up) == 3 * MiB
    assert world.client.held_bytes <= MiB
    assert world.client.unsent_bytes == 0


def test_chunks_go_out_by_reference_in_frames_of_1_MiB() -> None:
    world = resumed()
    chunks = [bytes([number]) * (300 << 10) for number in range(4)]
    for chunk in chunks:
        world.client.write(chunk)
    first = world.client.take(0.0)
    assert all(sent is chunk for sent, chunk in zip(first[1:4], chunks, strict=False))
    assert sum(map(len, first[1:])) == MiB


def test_an_acknowledgement_comes_with_each_MiB_and_otherwise_after_a_second() -> None:
    world = resumed()
    server = world.server
    assert server is not None
    hear(server, encode_data(b"x" * 10), now=5.0)
    assert wire(server, 5.0) == b""
    assert server.deadline() == 6.0
    server.tick(6.0)
    assert wire(server, 6.0) == encode(Kind.ACK, u64(10))
    hear(server, encode_data(b"x" * MiB), now=6.5)
    assert wire(server, 6.5) == encode(Kind.ACK, u64(10 + MiB))


def encode_data(data: bytes) -> bytes:
    return stream_frames.HEADER.pack(Kind.DATA, len(data)) + data


def test_silence_while_an_answer_is_expected_is_noticed_within_15_s() -> None:
    world = resumed()
    client = world.client
    client.heard(0.0)
    client.write(b"question")
    wire(client, 0.0)
    assert client.deadline() == 10.0
    client.tick(10.0)
    assert wire(client, 10.0) == encode(Kind.PING)
    assert client.deadline() == 15.0
    client.tick(14.9)
    with pytest.raises(LinkLost, match="silent for 15 s"):
        client.tick(15.0)


def test_a_pong_with_its_acknowledgement_ends_the_wait() -> None:
    world = resumed()
    world.client.write(b"question")
    wire(world.client)
    world.client.tick(10.0)
    assert wire(world.client) == encode(Kind.PING)
    hear(world.client, encode(Kind.PONG) + encode(Kind.ACK, u64(8)), now=10.1)
    assert world.client.deadline() is None


def test_A09_an_idle_stream_that_expects_nothing_is_left_in_peace() -> None:
    world = resumed()
    assert world.client.deadline() is None
    world.client.expecting = True
    assert world.client.deadline() is not None


def test_a_flood_of_pings_makes_nothing_grow() -> None:
    world = resumed()
    assert world.server is not None
    hear(world.server, encode(Kind.PING) * 10_000)
    assert wire(world.server) == encode(Kind.PONG) + encode(Kind.ACK, u64(0))


def test_a_resumption_without_an_answer_is_given_up_after_10_s() -> None:
    world = resumed()
    world.client.attach(b"c" * 16, 100.0)
    assert world.client.deadline() == 110.0
    with pytest.raises(LinkLost, match="no answer to the resumption"):
        world.client.tick(110.0)


def test_a_stream_without_a_secret_cannot_be_resumed() -> None:
    world = World()
    world.attach()
    world.settle()
    with pytest.raises(StreamRefused, match="before the stream could be resumed"):
        world.client.attach(b"c" * 16, 0.0)


def test_the_wrong_secret_is_refused_and_the_stream_stays_on_its_carrier() -> None:
    world = resumed()
    thief = Stream(ID, client=True)
    thief.attach(b"t" * 16, 0.0)
    thief.set_secret(b"guessed" + bytes(25))
    wire(thief)
    thief.attach(b"t" * 16, 0.0)
    greeting = greet(world, wire(thief))
    with pytest.raises(StreamRefused, match="does not hold the stream's secret"):
        hear(thief, b"".join(greeting.out))
    with pytest.raises(StreamRefused, match="the proof is wrong"):
        greeting.on_frame(Kind.PROOF, memoryview(bytes(32)), 0.0)
    assert thief.state is State.CLOSED
    world.client.write(b"undisturbed")
    world.settle()
    assert world.got_up == b"undisturbed"


def test_an_agent_without_the_secret_is_found_out() -> None:
    world = resumed()
    world.client.attach(b"c" * 16, 0.0)
    wire(world.client)
    forged = encode(Kind.CHALLENGE, bytes(16) + u64(0) + bytes(32))
    with pytest.raises(StreamRefused, match="does not hold the stream's secret"):
        hear(world.client, forged)
    assert world.client.state is State.CLOSED
    assert wire(world.client) == b""


def test_a_recorded_resumption_cannot_be_played_again() -> None:
    world = resumed()
    world.attach()
    resume = wire(world.client)
    challenged = greet(world, resume, nonce=b"1" * 16)
    hear(world.client, b"".join(challenged.out))
    recorded = wire(world.client)
    replayed = greet(world, resume, nonce=b"2" * 16)
    ((kind, body),) = Reader().feed(memoryview(recorded))
    with pytest.raises(StreamRefused, match="the proof is wrong"):
        replayed.on_frame(kind, body, 0.0)
    assert replayed.out[-1] == encode(Kind.REFUSED, b"the proof is wrong")


def test_a_challenge_cannot_be_played_again_to_the_client() -> None:
    world = resumed()
    world.attach()
    recorded = b"".join(greet(world, wire(world.client), nonce=b"1" * 16).out)
    world.attach()
    wire(world.client)
    with pytest.raises(StreamRefused, match="does not hold"):
        hear(world.client, recorded)


def test_a_stream_that_is_not_known_is_refused_by_name() -> None:
    world = resumed()
    with pytest.raises(StreamRefused, match="the stream is not known here"):
        greet(world, encode(Kind.RESUME, b"?" * 16 + b"n" * 16 + u64(0)))
    world.client.attach(b"c" * 16, 0.0)
    with pytest.raises(StreamRefused, match="refused the stream: the stream is not known here"):
        hear(world.client, encode(Kind.REFUSED, b"the stream is not known here"))


def test_a_stream_whose_secret_is_not_agreed_yet_cannot_be_taken_up() -> None:
    world = World()
    world.attach()
    world.move(1 << 30, 1 << 30)
    assert world.server is not None
    with pytest.raises(StreamRefused, match="no secret yet"):
        greet(world, encode(Kind.RESUME, ID + b"n" * 16 + u64(0)))
    assert world.server.state is State.CARRIED


def test_the_agents_words_cannot_steer_a_terminal() -> None:
    world = resumed()
    with pytest.raises(StreamRefused) as refused:
        hear(world.client, encode(Kind.REFUSED, b"\x1b[2Jgone\n"))
    assert refused.value.message.endswith(": ?[2Jgone?")


def test_an_open_stream_is_not_opened_again() -> None:
    with pytest.raises(StreamRefused, match="open already"):
        greet(resumed(), encode(Kind.OPEN, ID))


def test_what_the_old_carrier_brought_after_the_challenge_is_not_repeated() -> None:
    world = resumed()
    assert world.server is not None
    world.client.write(b"in flight")
    late = wire(world.client)
    world.attach()
    greeting = greet(world, wire(world.client))
    got = hear(world.server, late)  # the old carrier was slow
    hear(world.client, b"".join(greeting.out))
    for kind, body in Reader().feed(memoryview(wire(world.client))):
        if kind is Kind.PROOF:
            assert greeting.on_frame(kind, body, 0.0) is world.server
        else:
            got += bytes(world.server.on_frame(kind, body, 0.0) or b"")
    assert got == b"in flight"


@pytest.mark.parametrize("claimed", [1, 1 << 62])
def test_an_acknowledgement_of_what_was_never_sent_ends_the_stream(claimed: int) -> None:
    world = resumed()
    with pytest.raises(RemoteProtocolError, match="were acknowledged"):
        hear(world.client, encode(Kind.ACK, u64(claimed)))
    assert world.client.state is State.CLOSED


def test_a_resumption_that_claims_too_much_is_refused() -> None:
    world = resumed()
    greeting = Greeting(lambda _: world.server, b"n" * 16)
    nonces, received = (b"c" * 16, b"n" * 16), (77, 0)
    greeting.on_frame(Kind.RESUME, memoryview(ID + nonces[0] + u64(77)), 0.0)
    mac = stream_frames.proof(SECRET, b"client", ID, nonces, received)
    with pytest.raises(StreamRefused, match="77 bytes were never sent"):
        greeting.on_frame(Kind.PROOF, memoryview(mac), 0.0)


@pytest.mark.parametrize("kind", [Kind.OPEN, Kind.RESUME, Kind.CHALLENGE, Kind.PROOF])
def test_a_greeting_in_the_middle_of_a_stream_ends_it(kind: Kind) -> None:
    world = resumed()
    size = stream_frames._LENGTHS[kind][0]
    with pytest.raises(RemoteProtocolError, match=f"a {kind.name} frame came while the stream was carried"):
        hear(world.client, encode(kind, bytes(size)))


def test_close_follows_what_was_written() -> None:
    world = resumed()
    assert world.server is not None
    world.client.write(b"last words")
    world.client.close()
    world.settle()
    assert world.got_up == b"last words"
    assert world.client.state is State.CLOSED
    assert world.server.state is State.CLOSED


def test_a_secret_of_another_size_is_our_own_mistake() -> None:
    with pytest.raises(LocalProtocolError):
        Stream(ID, client=True).set_secret(b"short")

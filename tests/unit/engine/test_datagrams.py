"""UDP and echo of the app: which association a packet belongs to, and which answers of an untrusted agent get through."""

from __future__ import annotations

from bridge.engine import datagrams as module
from bridge.engine.datagrams import Datagrams
from bridge.protocol import packets, udp

APP, SERVER, APP6, SERVER6 = "10.0.3.7", "10.0.3.9", "fd00::7", "fd00::9"


class World:
    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.sent: list[udp.Message] = []
        self.datagrams = Datagrams(self.written.append, self.sent.append, ["172.18.0.0/16"])

    def app_sends(self, source_port: int, destination: str = SERVER, data: bytes = b"?") -> int:
        source = APP6 if ":" in destination else APP
        self.datagrams.on_packet(packets.build_udp(source, source_port, destination, 53, data))
        message = self.sent[-1]
        assert isinstance(message, udp.Datagram)
        return message.association


def test_A14_one_socket_is_one_association_whatever_its_peers() -> None:
    world = World()
    first = world.app_sends(4000)
    assert world.app_sends(4000, "10.0.3.10") == first
    assert world.app_sends(4001) != first
    assert world.datagrams.open_associations == 2


def test_A14_the_answers_source_is_who_really_answered() -> None:
    world = World()
    association = world.app_sends(4000)
    world.datagrams.on_message(udp.Datagram(association, "10.0.3.200", 999, b"!"))
    assert packets.parse(world.written[0]) == packets.Udp("10.0.3.200", 999, APP, 4000, b"!")


def test_A45_an_agent_that_claims_to_be_of_our_own_network_is_not_believed() -> None:
    world = World()
    association = world.app_sends(4000)
    for liar in ("127.0.0.1", "172.18.0.1", "224.0.0.1", "0.0.0.0"):
        world.datagrams.on_message(udp.Datagram(association, liar, 53, b"!"))
        world.datagrams.on_message(udp.Unreachable(association, liar, 53, "ECONNREFUSED"))
    world.datagrams.on_message(udp.Datagram(association, SERVER6, 53, b"!"))  # another family
    world.datagrams.on_message(udp.Datagram(association + 1, SERVER, 53, b"!"))  # nobody's
    world.datagrams.on_message(udp.Echo(1, SERVER, 1, 1, b""))
    assert world.written == []


def test_A15_a_closed_port_is_an_icmp_error_about_the_apps_own_packet() -> None:
    world = World()
    for server, source in ((SERVER, APP), (SERVER6, APP6)):
        association = world.app_sends(4000, server)
        world.datagrams.on_message(udp.Unreachable(association, server, 53, "ECONNREFUSED"))
        asked = packets.build_udp(source, 4000, server, 53, b"")
        assert world.written[-1] == packets.build_unreachable(asked, server, packets.UNREACHABLE_CODES["ECONNREFUSED"])


def test_A17_an_echo_is_answered_once_and_by_its_own_destination() -> None:
    world = World()
    request = bytearray(packets.build_echo_reply(APP, SERVER, 7, 1, b"ping"))
    request[20] = 8
    world.datagrams.on_packet(bytes(request))
    sent = world.sent[0]
    assert isinstance(sent, udp.Echo)
    assert (sent.address, sent.ident, sent.sequence, sent.data) == (SERVER, 7, 1, b"ping")
    world.datagrams.on_message(udp.EchoReply(sent.token + 5, SERVER, 7, 1, b"ping"))
    assert world.written == []
    for _ in range(2):
        world.datagrams.on_message(udp.EchoReply(sent.token, SERVER, 7, 1, b"ping"))
    assert world.written == [packets.build_echo_reply(SERVER, APP, 7, 1, b"ping")]


def test_the_oldest_association_goes_first_and_the_agent_is_told() -> None:
    world = World()
    limit = module._MAX_ASSOCIATIONS
    first = world.app_sends(1)
    for port in range(2, limit + 2):
        world.app_sends(port)
    assert udp.Forget(first) in world.sent
    assert world.datagrams.open_associations == limit


def test_an_association_that_the_agent_forgot_is_made_anew() -> None:
    world = World()
    first = world.app_sends(4000)
    world.datagrams.on_message(udp.Forget(first))
    assert world.app_sends(4000) != first


def test_a_new_agent_knows_none_of_the_old_associations() -> None:
    world = World()
    first = world.app_sends(4000)
    world.datagrams.forget_all()
    world.datagrams.on_message(udp.Datagram(first, SERVER, 53, b"late"))
    assert world.written == []
    assert world.app_sends(4000) != first


def test_A47_a_protocol_that_the_agent_cannot_carry_is_refused_by_name() -> None:
    world = World()
    gre = bytearray(packets.build_udp(APP, 1, SERVER, 2, bytes(16)))
    gre[9] = 47
    world.datagrams.on_packet(bytes(gre))
    assert world.sent == []
    assert packets.parse(world.written[0]) == packets.Other(SERVER, APP, packets.ICMP)


def test_a_stray_tcp_segment_is_dropped_in_silence() -> None:
    world = World()
    tcp = bytearray(packets.build_udp(APP, 1, SERVER, 2, bytes(16)))
    tcp[9] = 6
    world.datagrams.on_packet(bytes(tcp))
    assert (world.sent, world.written) == ([], [])

"""What we build for the tun is taken by the app's kernel: an ICMP port unreachable is ECONNREFUSED on a connected UDP socket."""

from __future__ import annotations

import fcntl
import os
import socket
import struct

import pytest

from bridge.protocol import packets


def _tun() -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", b"mb-t", 0x1001))
    return fd


@pytest.mark.parametrize(("app_addr", "server"), [("10.0.3.7", "10.0.3.9"), ("fd00::7", "fd00::9")])
def test_port_unreachable(netns, app_addr: str, server: str) -> None:
    fd = netns.run(_tun)
    try:
        six = ":" in app_addr
        netns.ip(
            f"link set mb-t up\naddr add {app_addr}/{128 if six else 32} dev mb-t {'nodad' if six else ''}\nroute add {server} dev mb-t\n"
        )
        while six and not isinstance(packets.parse(os.read(fd, 65535)), packets.Other):
            pass  # the kernel's router solicitation: IPv6 is ready on the device
        with netns.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM) as app:
            app.connect((server, 53))
            app.send(b"?")
            while not isinstance(asked := packets.parse(os.read(fd, 65535)), packets.Udp):
                pass
            assert asked.data == b"?"
            packet = packets.build_udp(asked.source, asked.source_port, server, 53, b"")
            os.write(fd, packets.build_unreachable(packet, server, packets.UNREACHABLE_CODES["ECONNREFUSED"]))
            with pytest.raises(ConnectionRefusedError):
                app.recv(10)
            os.write(fd, packets.build_udp(server, 53, asked.source, asked.source_port, b"answer"))
            assert app.recv(10) == b"answer"
    finally:
        os.close(fd)

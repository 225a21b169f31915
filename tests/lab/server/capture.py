"""The sentinel: counts packets on a device that are on their way to networks which they must never reach from there.

    python3 capture.py DEVICE NETWORK…      prints one JSON line for each such packet, "ready" first

It runs in the host's network namespace with NET_RAW and looks at the developer's own network, where a packet to the
target's networks is a leak.
"""

import ipaddress
import json
import socket
import struct
import sys

device, *networks = sys.argv[1:]
FORBIDDEN = [ipaddress.ip_network(text) for text in networks]
ETH_P_ALL, IPV4, IPV6, ARP = 0x0003, 0x0800, 0x86DD, 0x0806
sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
sock.bind((device, 0))
print("ready", flush=True)
while True:
    frame = sock.recv(65535)
    (kind,) = struct.unpack_from("!H", frame, 12)
    packet = frame[14:]
    if kind == IPV4:
        source, target = ipaddress.ip_address(packet[12:16]), ipaddress.ip_address(packet[16:20])
    elif kind == IPV6:
        source, target = ipaddress.ip_address(packet[8:24]), ipaddress.ip_address(packet[24:40])
    elif kind == ARP and struct.unpack_from("!H", packet, 6)[0] == 1:
        source, target = ipaddress.ip_address(packet[14:18]), ipaddress.ip_address(packet[24:28])
    else:
        continue
    if any(target in network for network in FORBIDDEN if network.version == target.version):
        print(json.dumps({"source": str(source), "target": str(target), "kind": hex(kind)}), flush=True)

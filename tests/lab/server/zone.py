"""DNS of the zone lab.test, for the lab's server: every kind of answer that a resolver must carry, right or wrong.

    server  A AAAA          _echo._tcp  SRV      big     TXT of 3 KB (truncated over UDP)   silent   never answers
    chain   CNAME CNAME A   @           MX       slow    A after 300 ms                     broken   SERVFAIL
    counter A, TTL 2 s, the last octet is how often it was asked (ASKED)                    refused  REFUSED
    many    A of 40 addresses (needs EDNS or TCP)   *.wild  A      PTR of the server's own addresses

Anything else in the zone is NXDOMAIN with a SOA; outside the zone: REFUSED.
"""

from __future__ import annotations

import asyncio
import struct
from collections import Counter
from typing import Any

import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdatatype
import dns.reversename
import dns.rrset

ASKED: Counter[str] = Counter()
ZONE = "lab.test."
SOA = "ns.lab.test. admin.lab.test. 1 3600 600 86400 5"


def records(address: str, address6: str) -> dict[tuple[str, str], tuple[int, list[str]]]:
    table = {
        ("server", "A"): (60, [address]),
        ("chain", "CNAME"): (60, ["chain2.lab.test."]),
        ("chain2", "CNAME"): (60, ["chain3.lab.test."]),
        ("chain3", "A"): (60, [address]),
        ("_echo._tcp", "SRV"): (60, ["0 5 7001 server.lab.test.", "10 5 7002 server.lab.test."]),
        ("text", "TXT"): (60, ['"first part" "second part"']),
        ("", "MX"): (60, ["10 server.lab.test."]),
        ("big", "TXT"): (60, [f'"{number:03d}{"x" * 197}"' for number in range(15)]),
        ("many", "A"): (60, [f"10.99.0.{number}" for number in range(1, 41)]),
        ("slow", "A"): (60, [address]),
        ("a.b.deep", "A"): (60, [address]),
        ("nothere4", "AAAA"): (60, ["fd00:dead::1"]),
        ("host.sub", "A"): (60, [address]),
    }
    if address6:
        table["server", "AAAA"] = (60, [address6])
        table["only6", "AAAA"] = (60, [address6])
    return table


class Zone:
    def __init__(self, address: str, address6: str) -> None:
        self._address = address
        self._records = records(address, address6)
        self._own = {dns.reversename.from_address(one).to_text() for one in (address, address6) if one}

    async def answer(self, data: bytes, udp: bool) -> bytes | None:
        query = dns.message.from_wire(data)
        question = query.question[0]
        name, kind = question.name.to_text().lower(), dns.rdatatype.to_text(question.rdtype)
        ASKED[name.removesuffix(".")] += 1
        label = name.removesuffix("." + ZONE) if name != ZONE else ""
        if label == "silent":
            return None
        if label == "slow":
            await asyncio.sleep(0.3)
        response = dns.message.make_response(query, recursion_available=True)
        response.flags |= dns.flags.AA
        self._fill(response, question, name, label, kind)
        limit = max(512, query.payload) if udp else 65535
        try:
            return response.to_wire(max_size=limit)
        except dns.exception.TooBig:
            response.answer.clear()
            response.flags |= dns.flags.TC
            return response.to_wire()

    def _fill(self, response: dns.message.Message, question: Any, name: str, label: str, kind: str) -> None:
        if name in self._own and kind == "PTR":
            response.answer.append(dns.rrset.from_text(name, 60, "IN", "PTR", "server.lab.test."))
            return
        if not name.endswith("." + ZONE) and name != ZONE:
            response.set_rcode(dns.rcode.REFUSED if name.endswith(".") and "arpa" not in name else dns.rcode.NXDOMAIN)
            return
        if label in ("broken", "refused"):
            response.set_rcode(dns.rcode.SERVFAIL if label == "broken" else dns.rcode.REFUSED)
            return
        if label == "counter" and kind == "A":
            response.answer.append(dns.rrset.from_text(name, 2, "IN", "A", f"10.98.0.{min(ASKED[name.removesuffix('.')], 250)}"))
            return
        if label.endswith(".wild") and kind == "A":
            response.answer.append(dns.rrset.from_text(name, 60, "IN", "A", self._address))
            return
        known = {have for have, _ in self._records} | {"counter", "ns"}
        while (label, "CNAME") in self._records and kind != "CNAME":
            ttl, (target,) = self._records[label, "CNAME"]
            response.answer.append(dns.rrset.from_text(f"{label}.{ZONE}", ttl, "IN", "CNAME", target))
            label = target.removesuffix("." + ZONE)
        if found := self._records.get((label, kind)):
            owner = f"{label}.{ZONE}" if label else ZONE
            response.answer.append(dns.rrset.from_text(owner, found[0], "IN", kind, *found[1]))
            return
        if label not in known and not response.answer and not any(have.endswith("." + label) for have in known):
            response.set_rcode(dns.rcode.NXDOMAIN)
        if not response.answer:
            response.authority.append(dns.rrset.from_text(ZONE, 5, "IN", "SOA", SOA))


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, zone: Zone) -> None:
        self._zone = zone
        self._tasks: set[asyncio.Future[None]] = set()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        task = asyncio.ensure_future(self._reply(data, addr))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reply(self, data: bytes, addr: Any) -> None:
        if answer := await self._zone.answer(data, udp=True):
            self._transport.sendto(answer, addr)


async def serve(address: str, address6: str, port: int = 53, listen: str = "0.0.0.0") -> None:
    zone = Zone(address, address6)

    async def tcp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                (length,) = struct.unpack("!H", await reader.readexactly(2))
                if answer := await zone.answer(await reader.readexactly(length), udp=False):
                    writer.write(struct.pack("!H", len(answer)) + answer)
                    await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    await asyncio.start_server(tcp, listen, port)
    await asyncio.get_running_loop().create_datagram_endpoint(lambda: _Udp(zone), local_addr=(listen, port))

"""DNS messages as the resolver needs them: whose name, how big an answer, how long it holds, which addresses are in it.

Theory of operation: queries and answers pass through as bytes, so every record type and EDNS option works. What we read is
little: of a query its question and its EDNS size, of an answer the place of each TTL and the addresses that its CNAME chain
leads to. A cached answer is the same bytes with the TTLs lowered by its age; its key is the query's bytes but for the ID, so
it fits whatever else stands in the query. dnspython builds objects of it all and forgets the offsets (and takes ten times
as long): it is the judge in the tests, not the reader here.

Limits: one question in a message (as everywhere); zone transfers of several messages are not put together. The cache holds
4,096 answers of at most 8 KiB, 8 MiB in sum; positive ones for at most 300 s, negative ones 30 s (RFC 2308: the SOA's
minimum), and nothing but NOERROR and NXDOMAIN.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from bridge.errors import RemoteProtocolError

NOERROR, FORMERR, SERVFAIL, NXDOMAIN, REFUSED = 0, 1, 2, 3, 5
A, CNAME, SOA, AAAA, OPT, ANY = 1, 5, 6, 28, 41, 255
CLASS_IN = 1
MAX_MESSAGE_BYTES = 65535

_PLAIN_UDP_BYTES = 512  # RFC 1035, 4.2.1: what a client without EDNS takes
_OUR_UDP_BYTES = 1232  # RFC 9715
_EDE_PROHIBITED = 18  # RFC 8914; dig prints it
_QR, _TC, _RD, _RA, _OPCODE = 0x8000, 0x0200, 0x0100, 0x0080, 0x7800
_HEADER = struct.Struct("!6H")
_RECORD = struct.Struct("!HHIH")
_U16, _U32 = struct.Struct("!H"), struct.Struct("!I")
_MAX_TTL_S = 0x7FFFFFFF
_MAX_HOPS = 127  # as many as a name has labels


@dataclass(frozen=True, slots=True)
class Query:
    """A query's question. `name` is lower case, without its last dot; `end` is where the question ends in the message."""

    name: str
    rdtype: int
    rdclass: int
    end: int
    udp_bytes: int  # what the client takes by UDP
    edns: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """What an answer says. `ttl_s` is how long it may be kept, 0 for not at all; `addresses_ttl_s` the least of the chain's."""

    rcode: int
    truncated: bool
    ttl_s: int
    ttl_offsets: tuple[int, ...]
    addresses: tuple[str, ...]
    addresses_ttl_s: int


def read_query(message: bytes) -> Query:
    """The one question of a query. Raises RemoteProtocolError for what is no query, or asks nothing or several things."""
    try:
        _, flags, questions, answers, authorities, additionals = _HEADER.unpack_from(message)
        if flags & _QR or questions != 1:
            raise RemoteProtocolError("no DNS query of one question")
        name, at = _name(message, 12)
        rdtype, rdclass = struct.unpack_from("!HH", message, at)
        end = at = at + 4
        udp_bytes, edns = _PLAIN_UDP_BYTES, False
        for _ in range(answers + authorities + additionals):
            at = _skip_name(message, at)
            kind, size, _, length = _RECORD.unpack_from(message, at)
            at += _RECORD.size + length
            if kind == OPT:
                udp_bytes, edns = max(size, _PLAIN_UDP_BYTES), True
        if at > len(message):
            raise RemoteProtocolError("a DNS query ends in the middle of a record")
    except (struct.error, IndexError) as exc:
        raise RemoteProtocolError("a DNS query is cut short") from exc
    return Query(name, rdtype, rdclass, end, udp_bytes, edns)


def read_answer(message: bytes, query: Query) -> Answer:
    """What `message` answers to `query`. Raises RemoteProtocolError where it is malformed or answers another question."""
    try:
        return _read_answer(message, query)
    except (struct.error, IndexError) as exc:
        raise RemoteProtocolError("a DNS answer is cut short") from exc


def _read_answer(message: bytes, query: Query) -> Answer:
    _, flags, questions, answers, authorities, additionals = _HEADER.unpack_from(message)
    if not flags & _QR or questions > 1:
        raise RemoteProtocolError("no DNS answer")
    at = 12
    if questions:
        name, at = _name(message, at)
        rdtype, rdclass = struct.unpack_from("!HH", message, at)
        at += 4
        if (name, rdtype, rdclass) != (query.name, query.rdtype, query.rdclass):
            raise RemoteProtocolError("a DNS answer to another question")
    offsets, ttls = [], []
    negative_s = 0
    aliases: dict[str, tuple[str, int]] = {}
    addresses: dict[str, list[tuple[str, int]]] = {}
    wants_addresses = query.rdtype in (A, AAAA, ANY) and query.rdclass == CLASS_IN
    for index in range(answers + authorities + additionals):
        start = at
        at = _skip_name(message, at)
        kind, rdclass, ttl, length = _RECORD.unpack_from(message, at)
        rdata = at + _RECORD.size
        at = rdata + length
        if at > len(message):
            raise RemoteProtocolError("a DNS answer ends in the middle of a record")
        if kind == OPT:
            continue
        ttl = ttl if ttl <= _MAX_TTL_S else 0  # RFC 2181, 8
        offsets.append(rdata - 6)
        ttls.append(ttl)
        if index < answers and wants_addresses and rdclass == CLASS_IN:
            if kind == CNAME:
                aliases[_name(message, start)[0]] = _name(message, rdata)[0], ttl
            elif kind == A and length == 4:
                addresses.setdefault(_name(message, start)[0], []).append((str(IPv4Address(message[rdata:at])), ttl))
            elif kind == AAAA and length == 16:
                addresses.setdefault(_name(message, start)[0], []).append((str(IPv6Address(message[rdata:at])), ttl))
        elif kind == SOA and answers <= index < answers + authorities and length >= 20:
            negative_s = min(ttl, _U32.unpack_from(message, at - 4)[0])
    rcode, truncated = flags & 0xF, bool(flags & _TC)
    ttl_s = 0
    if not truncated and rcode in (NOERROR, NXDOMAIN) and not flags & _OPCODE:
        # without an answer of the asked type (NODATA, also behind a CNAME) the SOA decides
        positive = rcode == NOERROR and answers > 0 and not (wants_addresses and not addresses)
        ttl_s = min([Cache.POSITIVE_S if positive else min(negative_s, Cache.NEGATIVE_S), *ttls])
    found, found_ttl = _chain(query.name, aliases, addresses)
    return Answer(rcode, truncated, ttl_s, tuple(offsets), found, found_ttl)


def _chain(name: str, aliases: dict[str, tuple[str, int]], addresses: dict[str, list[tuple[str, int]]]) -> tuple[tuple[str, ...], int]:
    """The addresses that `name` comes to by way of its aliases, and the least TTL on the way."""
    ttls: list[int] = []
    seen: set[str] = set()
    while name in aliases and name not in addresses and name not in seen:
        seen.add(name)
        name, ttl = aliases[name]
        ttls.append(ttl)
    found = addresses.get(name, [])
    ttls += [ttl for _, ttl in found]
    return tuple(address for address, _ in found), min(ttls, default=0)


def refuse(message: bytes, query: Query) -> bytes:
    """REFUSED, with the reason "prohibited" where the client knows EDNS."""
    return _reply(message, query, REFUSED, _option(_EDE_PROHIBITED))


def malformed(message: bytes) -> bytes | None:
    """FORMERR for a query that cannot be read; None where not even that would be an answer."""
    if len(message) < 12 or message[2] & 0x80:
        return None
    flags = _U16.unpack_from(message, 2)[0] & (_OPCODE | _RD)
    return message[:2] + _U16.pack(flags | _QR | _RA | FORMERR) + bytes(8)


def fit(answer: bytes, message: bytes, query: Query) -> bytes:
    """`answer` as it goes out by UDP: empty and marked truncated where it is larger than the client takes."""
    if len(answer) <= query.udp_bytes:
        return answer
    empty = _reply(message, query, answer[3] & 0xF)
    return empty[:2] + _U16.pack(_U16.unpack_from(answer, 2)[0] | _TC) + empty[4:]


def with_id(answer: bytes, message: bytes) -> bytes:
    """`answer` under the ID of the query `message`."""
    return message[:2] + answer[2:]


def _reply(message: bytes, query: Query, rcode: int, options: bytes = b"") -> bytes:
    flags = _U16.unpack_from(message, 2)[0] & (_OPCODE | _RD)
    head = message[:2] + struct.pack("!5H", flags | _QR | _RA | rcode, 1, 0, 0, int(query.edns)) + message[12 : query.end]
    if not query.edns:
        return head
    return head + b"\0" + _RECORD.pack(OPT, _OUR_UDP_BYTES, 0, len(options)) + options


def _option(extended_error: int) -> bytes:
    return struct.pack("!HHH", 15, 2, extended_error)


def _skip_name(message: bytes, at: int) -> int:
    while True:
        length = message[at]
        if length == 0:
            return at + 1
        if length >= 0xC0:
            return at + 2
        if length > 63:
            raise RemoteProtocolError("a DNS name has a label of an unknown kind")
        at += 1 + length


def _name(message: bytes, at: int) -> tuple[str, int]:
    """The name at `at`, lower case, and where it ends there. Pointers must point backwards, and be few: no loop, no long way."""
    labels: list[bytes] = []
    end, limit, size, hops = -1, at, 0, 0
    while length := message[at]:
        if length >= 0xC0:
            if end < 0:
                end = at + 2
            at = (length & 0x3F) << 8 | message[at + 1]
            hops += 1
            if not _HEADER.size <= at < limit or hops > _MAX_HOPS:
                raise RemoteProtocolError("a DNS name points forwards, into the header, or too often")
            limit = at
            continue
        if length > 63:
            raise RemoteProtocolError("a DNS name has a label of an unknown kind")
        label = message[at + 1 : at + 1 + length]
        size += 1 + length
        if len(label) != length or size > 254:
            raise RemoteProtocolError("a DNS name is too long")
        labels.append(label.replace(b"\\", b"\\\\").replace(b".", b"\\.") if b"." in label or b"\\" in label else label)
        at += 1 + length
    return b".".join(labels).lower().decode("latin-1"), at + 1 if end < 0 else end


@dataclass(frozen=True, slots=True)
class Kept:
    """An answer in the cache."""

    message: bytes
    answer: Answer
    at: float
    until: float


class Cache:
    """Answers by (who was asked, the query's bytes but for the ID). Times are monotonic seconds."""

    ENTRIES, BYTES, MESSAGE_BYTES = 4096, 8 << 20, 8192
    POSITIVE_S, NEGATIVE_S = 300, 30

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, bytes], Kept] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, asked: str, query: bytes, message: bytes, answer: Answer, now: float) -> None:
        """Keep `message` for as long as its records allow; the least recently used go first."""
        if answer.ttl_s <= 0 or len(message) > self.MESSAGE_BYTES:
            return
        key = asked, query[2:]
        self._drop(key)
        self._kept[key] = Kept(message, answer, now, now + answer.ttl_s)
        self._bytes += len(message) + len(query)
        while len(self._kept) > self.ENTRIES or self._bytes > self.BYTES:
            self._drop(next(iter(self._kept)))

    def get(self, asked: str, query: bytes, now: float) -> tuple[bytes, Answer] | None:
        """The answer to the same query with its TTLs lowered by its age, under the ID of `query`."""
        key = asked, query[2:]
        kept = self._kept.get(key)
        if kept is None:
            return None
        if now >= kept.until:
            self._drop(key)
            return None
        self._kept.move_to_end(key)
        aged = bytearray(kept.message)
        aged[:2] = query[:2]
        if age := int(now - kept.at):
            for offset in kept.answer.ttl_offsets:
                _U32.pack_into(aged, offset, max(_U32.unpack_from(aged, offset)[0] - age, 0))
        return bytes(aged), kept.answer

    def clear(self) -> None:
        self._kept.clear()
        self._bytes = 0

    def _drop(self, key: tuple[str, bytes]) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._bytes -= len(kept.message) + len(key[1]) + 2


# --- the files that go with it -----------------------------------------------------------------------------------------

_MAX_NAMESERVERS = 8  # libc takes three (MAXNS, resolv.h), other resolvers more
_OWN, _TARGETS = "# mbridge: the app's own names", "# mbridge: the target's names"
_EVERYWHERE = frozenset(
    (
        *("localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback"),
        *("ip6-localnet", "ip6-mcastprefix", "ip6-allnodes", "ip6-allrouters"),
    )
)


@dataclass(frozen=True, slots=True)
class ResolvConf:
    """What resolv.conf(5) says; without a nameserver it is the one of the same host, 127.0.0.1."""

    nameservers: tuple[str, ...] = ("127.0.0.1",)
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


def parse_resolv_conf(text: str) -> ResolvConf:
    """Lines that cannot be read are passed over, as libc does."""
    nameservers: list[str] = []
    search: tuple[str, ...] = ()
    options: list[str] = []
    for line in text.splitlines():
        words = line.split("#")[0].split(";")[0].split()
        match words:
            case ["nameserver", address, *_]:
                try:
                    found = str(ip_address(address.partition("%")[0]))  # a scope names an interface of the target's
                except ValueError:
                    continue
                if found not in nameservers:
                    nameservers.append(found)
            case ["search" | "domain", *domains]:
                search = tuple(domains)  # the last one counts
            case ["options", *more]:
                options += more
    return ResolvConf(tuple(nameservers[:_MAX_NAMESERVERS]) or ("127.0.0.1",), search, tuple(options))


def merge_hosts(target_hosts: str, own_hosts: str, hostname: str) -> str:
    """/etc/hosts of the app: its own names (--add-host), which come first and so win, then the target's.

    Of `own_hosts`, as the engine wrote it, loopback's names and the line of the container's own hostname are left out: these
    are the target's. Merging what was merged before changes nothing.
    """
    own = own_hosts.splitlines()
    if _OWN in own:
        start = own.index(_OWN) + 1
        own = own[start : own.index(_TARGETS)] if _TARGETS in own else own[start:]
    kept = [line for line in own if _is_own(line, hostname)]
    theirs = target_hosts.splitlines()
    if not any("localhost" in line.split("#")[0].split()[1:] for line in theirs):
        theirs.insert(0, "127.0.0.1\tlocalhost")
    return "\n".join([_OWN, *kept, _TARGETS, *theirs]) + "\n"


def own_addresses(hosts: str, names: Collection[str]) -> list[str]:
    """The addresses that `names` have in /etc/hosts as the engine wrote it, merged or not; the target's lines count for nothing."""
    lines = [line.split("#")[0].split() for line in hosts.partition(f"{_TARGETS}\n")[0].splitlines()]
    return list(dict.fromkeys(words[0] for words in lines if not set(words[1:]).isdisjoint(names)))


def names_in_hosts(hosts: str) -> dict[str, list[str]]:
    """The names of /etc/hosts in their order, each with its addresses (hosts(5))."""
    found: dict[str, list[str]] = {}
    for line in hosts.splitlines():
        address, *names = line.split("#")[0].split() or [""]
        for name in names:
            found.setdefault(name, []).append(address)
    return found


def _is_own(line: str, hostname: str) -> bool:
    names = line.split("#")[0].split()[1:]
    return bool(names) and hostname not in names and not _EVERYWHERE.issuperset(names)

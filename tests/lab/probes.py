"""What the tests let the app do, in plain Python: this file is handed to `python3 -` in the app's container as it is.

    python3 probes.py NAME JSON-ARGUMENTS          prints one JSON line: the result, or {"errno": "ECONNREFUSED", "seconds": …}

Every probe says what the app saw. Each has its own limit in time, so that a hang shows as a failure and not as a hang.

Limits: standard library of Python 3.9 or later alone, since the image is the user's.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import select
import socket
import struct
import sys
import threading
import time

BLOCK = bytes(range(256)) * 256


def stream(length):
    number = 0
    while length > 0:
        block = (struct.pack("!Q", number) + BLOCK)[:length]
        yield block
        length -= len(block)
        number += 1


def dial(host, port, timeout=20.0):
    return socket.create_connection((host, port), timeout)


def read_all(sock):
    data = b""
    while True:
        more = sock.recv(65536)
        if not more:
            return data
        data += more


def who(host, port=7002):
    """What the server sees, beside what getsockname shows here."""
    with dial(host, port) as sock:
        own = sock.getsockname()
        return {**json.loads(read_all(sock)), "sockname": own[0], "sockport": own[1], "peername": sock.getpeername()[0]}


def echo(host, port=7001, text="hello"):
    with dial(host, port) as sock:
        sock.sendall(text.encode())
        sock.shutdown(socket.SHUT_WR)
        return read_all(sock).decode()


def connect(host, port, timeout=20.0):
    dial(host, port, timeout).close()
    return "connected"


def connect_times(host, port, times):
    """errno and time of each of several connects in one process (the interpreter's start is not counted)."""
    seen = []
    for _ in range(times):
        began = time.monotonic()
        try:
            dial(host, port).close()
            name = "connected"
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, repr(error))
        seen.append([name, time.monotonic() - began])
    return seen


def polled_connect(host, port, wait):
    """A non-blocking connect: what it says at once, after how long poll() says what, and SO_ERROR then."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        first = sock.connect_ex((host, port))
        poll = select.poll()
        poll.register(sock, select.POLLOUT)
        began = time.monotonic()
        events = poll.poll(wait * 1000)
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if events else None
        return {"first": errno.errorcode.get(first, first), "events": bool(events), "seconds": time.monotonic() - began,
                "error": errno.errorcode.get(code, code) if code else code}  # fmt: skip


def half_close_by_app(host, length=300000):
    with dial(host, 7003) as sock:
        seen = hashlib.sha256()
        for block in stream(length):
            seen.update(block)
            sock.sendall(block)
        sock.shutdown(socket.SHUT_WR)
        return [read_all(sock).decode().strip(), f"{length} {seen.hexdigest()}"]


def half_close_by_server(host, text):
    with dial(host, 7004) as sock:
        first = read_all(sock).decode()
        time.sleep(0.2)
        sock.sendall(text.encode())
        sock.shutdown(socket.SHUT_WR)
        return first


def reset_by_server(host):
    with dial(host, 7005) as sock:
        sock.sendall(b"x")
        try:
            return f"read {sock.recv(1)!r}"
        except ConnectionResetError:
            return "reset"


def end_of_app(host, key, reset):
    """Ends a connection to the sink by FIN or by RST; the server notes which."""
    sock = dial(host, 7006)
    sock.sendall(key.encode() + b"\n")
    ready = sock.recv(16)
    sock.sendall(b"12345")
    time.sleep(0.2)
    if reset:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
    return ready.decode().strip()


def both_ways(host, key, length):
    """`length` bytes each way at once; the digests that each side made of what it got."""
    with dial(host, 7007, 120.0) as sock:
        sock.sendall(b"%s %d\n" % (key.encode(), length))

        def send():
            for block in stream(length):
                sock.sendall(block)

        thread = threading.Thread(target=send)
        thread.start()
        got, want, left = hashlib.sha256(), hashlib.sha256(), length
        while left:
            data = sock.recv(min(left, 1 << 20))
            if not data:
                return {"early": left}
            got.update(data)
            left -= len(data)
        thread.join()
        for block in stream(length):
            want.update(block)
        theirs = read_all(sock).decode().strip()
        return {"got": got.hexdigest(), "theirs": theirs, "want": want.hexdigest()}


def many_connects(host, port, times):
    """One after another; how many gave the right answer, and the first that did not."""
    good, first = 0, None
    for number in range(times):
        try:
            with dial(host, port) as sock:
                sock.sendall(b"%d" % number)
                sock.shutdown(socket.SHUT_WR)
                if read_all(sock) == b"%d" % number:
                    good += 1
        except OSError as error:
            first = first or f"{number}: {error!r}"
    return {"good": good, "first": first}


def reuse_port(host, port, times):
    """The same source port again and again: the next connection must not meet the last one's remains."""
    source, seen = 0, []
    for _ in range(times):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # no TIME_WAIT: the port is free at once
        sock.settimeout(10)
        sock.bind(("", source))
        source = sock.getsockname()[1]
        sock.connect((host, port))
        sock.sendall(b"ping")
        seen.append(sock.recv(16).decode())
        sock.close()
    return seen


def many_open(host, port, count):
    """`count` connections at once, each echoing slowly, all checked; how many hold."""
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (min(count + 100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),) * 2)
    socks, good = [], 0
    for _ in range(count):
        socks.append(dial(host, port, 60.0))
    for turn in range(3):
        for number, sock in enumerate(socks):
            sock.sendall(b"%d.%d" % (turn, number))
        for number, sock in enumerate(socks):
            want = b"%d.%d" % (turn, number)
            got = b""
            while len(got) < len(want):
                more = sock.recv(64)
                if not more:
                    break
                got += more
            good += got == want
        time.sleep(0.3)
    for sock in socks:
        sock.close()
    return good


def nobody_speaks(host, port, seconds):
    """A connection on which nothing is said stays open, and works afterwards."""
    with dial(host, port) as sock:
        silent = not select.select([sock], [], [], seconds)[0]
        sock.sendall(b"now")
        return [silent, sock.recv(16).decode()]


def out_of_band(host, port=7001):
    """An urgent byte and a peek: the stream goes on in order behind them."""
    with dial(host, port) as sock:
        sock.sendall(b"before")
        got = sock.recv(6)
        sock.send(b"!", socket.MSG_OOB)
        sock.sendall(b"after")
        sock.shutdown(socket.SHUT_WR)
        peeked = sock.recv(1, socket.MSG_PEEK)
        rest = read_all(sock)
        return {"got": got.decode(), "peeked": peeked.decode(), "rest": rest.decode()}


def udp(host, port, text="hello", source=0, connected=True, timeout=5.0, length=0):
    """One datagram and its answer; `length` > 0 sends that many bytes instead of the text."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family[0], socket.SOCK_DGRAM) as sock:
        sock.settimeout(timeout)
        if source:
            sock.bind(("", source))
        data = b"".join(stream(length)) if length else text.encode()
        if connected:
            sock.connect(family[4])
            sock.send(data)
            answer, peer = sock.recv(70000), sock.getpeername()
        else:
            sock.sendto(data, family[4])
            answer, peer = sock.recvfrom(70000)
        result = {"from": peer[0], "port": peer[1], "own": sock.getsockname()[0], "own_port": sock.getsockname()[1]}
        if length:
            return {**result, "same": answer == data, "length": len(answer)}
        return {**result, "text": answer.decode()}


def udp_to_many(addresses, port):
    """One unconnected socket speaks to several; who answered what."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        for address in addresses:
            sock.sendto(address.encode(), (address, port))
        return sorted([peer[0], data.decode()] for data, peer in (sock.recvfrom(2048) for _ in addresses))


def udp_many_answers(host, port=7012):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.sendto(b"x", (socket.gethostbyname(host), port))
        return sorted(sock.recv(16).decode() for _ in range(7))


def udp_closed(host, port):
    """A connected socket learns that nobody listens there: at once, and not by a time-out."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.connect((host, port))
        began = time.monotonic()
        sock.send(b"anybody?")
        try:
            sock.recv(16)
            return "answered"
        except ConnectionRefusedError:
            return {"errno": "ECONNREFUSED", "seconds": time.monotonic() - began}


def addresses(host):
    """What getaddrinfo says, sorted; the error's name where it fails."""
    began = time.monotonic()
    try:
        found = sorted({one[4][0] for one in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)})
        return {"addresses": found, "seconds": time.monotonic() - began}
    except socket.gaierror as error:
        names = {socket.EAI_NONAME: "EAI_NONAME", socket.EAI_AGAIN: "EAI_AGAIN", getattr(socket, "EAI_NODATA", -5): "EAI_NODATA"}
        return {"errno": names.get(error.errno, str(error.errno)), "seconds": time.monotonic() - began}


def listen_once(port, address="0.0.0.0", seconds=20):
    """Answers one connection with who it was."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address, port))
        server.listen(8)
        server.settimeout(seconds)
        sock, peer = server.accept()
        with sock:
            sock.sendall(("hello " + peer[0]).encode())
        return peer[0]


def self_connect(port, addresses):
    """The app reaches its own listener at each of the addresses that it holds."""
    seen = {}
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as server:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        server.bind(("::", port))
        server.listen(8)
        for address in addresses:
            try:
                with dial(address, port, 3) as sock:
                    accepted, _ = server.accept()
                    accepted.sendall(b"me")
                    accepted.close()
                    seen[address] = read_all(sock).decode()
            except OSError as error:
                seen[address] = errno.errorcode.get(error.errno or 0, repr(error))
    return seen


def who_said(host, port):
    with dial(host, port, 3) as sock:
        return read_all(sock).decode()


def who_or_error(host, port, timeout):
    """The server's word for its peer, or the errno's name."""
    try:
        with dial(host, port, timeout) as sock:
            return json.loads(read_all(sock))["peer"]
    except TimeoutError:
        return "timeout"
    except ValueError:
        return "ended"
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, repr(error))


def stalled_readers(host, count, length, seconds):
    """Flows whose server pushes `length` bytes and whose app reads none of them; how many were opened."""
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (min(count + 100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),) * 2)
    socks = []
    for number in range(count):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(60)
        sock.connect((host, 7007))
        sock.sendall(b"stall%d %d\n" % (number, length))
        socks.append(sock)
    time.sleep(seconds)
    return len(socks)


def useless(host, port):
    """Whether a connection there is refused, or ends without having carried anything."""
    try:
        with dial(host, port, 2) as sock:
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return sock.recv(100) == b""
    except OSError:
        return True


def read(path):
    with open(path, "rb") as file:
        return file.read().decode("latin-1")


def environ(pid="self"):
    """The process's environment, byte for byte (latin-1 keeps every byte)."""
    return read(f"/proc/{pid}/environ")


def raw_packet(host, protocol):
    """A packet of another protocol: what the kernel says to the app."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol) as sock:
        sock.sendto(b"stray", (host, 0))
    return "sent"


def keep_talking(host, seconds, pause=0.2, port=7001):
    """One connection that echoes numbers for a while; the longest silence, and whether every answer came in order."""
    worst, count, ended = 0.0, 0, time.monotonic() + seconds
    with dial(host, port, 120) as sock:
        while time.monotonic() < ended:
            began = time.monotonic()
            text = b"%08d" % count
            sock.sendall(text)
            got = b""
            while len(got) < 8:
                more = sock.recv(8 - len(got))
                if not more:
                    return {"ended": count, "worst": worst}
                got += more
            if got != text:
                return {"wrong": count, "worst": worst}
            worst = max(worst, time.monotonic() - began)
            count += 1
            time.sleep(pause)
    return {"count": count, "worst": worst}


def main():
    name, arguments = sys.argv[1], json.loads(sys.argv[2])
    began = time.monotonic()
    try:
        result = globals()[name](**arguments)
    except TimeoutError:
        result = {"errno": "timeout", "seconds": time.monotonic() - began}
    except socket.gaierror as error:
        result = {"errno": f"EAI {error.errno}", "seconds": time.monotonic() - began}
    except OSError as error:
        result = {"errno": errno.errorcode.get(error.errno or 0, repr(error)), "seconds": time.monotonic() - began}
    print(json.dumps(result))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()

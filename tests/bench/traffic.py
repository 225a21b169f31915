"""Traffic of the bench: `python3 traffic.py NAME JSON` runs one function in a container and prints its answer as JSON.

Standard library only, for it runs wherever a python3 is. The server answers by the first byte of a connection:
    E  echo                     S  sink: at the end of stream, 8 bytes that count what came
    G  then 8 bytes: a number; as many bytes come back
    U  then 8 bytes: a number; once as many came, the number goes back (for tunnels that know no half-close)

Blocking sockets and a thread each: what is measured should be the tunnel, and an event loop at the ends is a tunnel's cost again.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import struct
import sys
import threading
import time

BLOCK = bytes(1 << 20)
NUMBER = struct.Struct("!Q")
clock = time.perf_counter


def serve(port):
    """Until killed."""
    threading.stack_size(256 << 10)
    listener = socket.create_server(("", port), backlog=4096)
    print("ready", flush=True)
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=_answer, args=(sock,), daemon=True).start()


def _answer(sock):
    with sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            first = sock.recv(1)
            if first == b"E":
                while data := sock.recv(65536):
                    sock.sendall(data)
            elif first == b"S":
                sock.sendall(NUMBER.pack(_drain(sock)))
            elif first == b"U":
                size = NUMBER.unpack(_exactly(sock, 8))[0]
                view, left = memoryview(bytearray(1 << 20)), size
                while left and (count := sock.recv_into(view, min(left, len(view)))):
                    left -= count
                sock.sendall(NUMBER.pack(size - left))
            elif first == b"G":
                _pour(sock, NUMBER.unpack(_exactly(sock, 8))[0])
        except OSError:
            pass


def _drain(sock):
    view, count = memoryview(bytearray(1 << 20)), 0
    while size := sock.recv_into(view):
        count += size
    return count


def _pour(sock, size):
    view = memoryview(BLOCK)
    while size > 0:
        sock.sendall(view[: min(size, len(BLOCK))])
        size -= len(BLOCK)


def _exactly(sock, size):
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            raise OSError(f"ended after {len(data)} of {size} bytes")
        data += more
    return data


def _open(host, port, first):
    sock = socket.create_connection((host, port), timeout=60)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(first)
    return sock


def up(host, port, size):
    """Seconds from the first byte until the far end has told that it has them all."""
    with _open(host, port, b"S") as sock:
        started = clock()
        _pour(sock, size)
        sock.shutdown(socket.SHUT_WR)
        count = NUMBER.unpack(_exactly(sock, 8))[0]
        taken = clock() - started
    assert count == size, f"{count} of {size} bytes arrived"
    return taken


def up_counted(host, port, size):
    """As `up`, but the far end counts instead of waiting for the end of stream."""
    with _open(host, port, b"U" + NUMBER.pack(size)) as sock:
        started = clock()
        _pour(sock, size)
        count = NUMBER.unpack(_exactly(sock, 8))[0]
        taken = clock() - started
    assert count == size, f"{count} of {size} bytes arrived"
    return taken


def down(host, port, size):
    with _open(host, port, b"G") as sock:
        started = clock()
        sock.sendall(NUMBER.pack(size))
        count = _drain(sock)
        taken = clock() - started
    assert count == size, f"{count} of {size} bytes arrived"
    return taken


def round_trips(host, port, count):
    """Seconds of each 8-byte echo on one open flow."""
    with _open(host, port, b"E") as sock:
        return [_ask(sock) for _ in range(count + 20)][20:]


def _ask(sock):
    started = clock()
    sock.sendall(b"12345678")
    _exactly(sock, 8)
    return clock() - started


def connects(host, port, count):
    """Seconds of each: connect, 8 bytes there, 8 bytes back."""
    taken = []
    for _ in range(count):
        started = clock()
        with _open(host, port, b"E12345678") as sock:
            _exactly(sock, 8)
            taken.append(clock() - started)
    return taken


def many(host, port, total, parallel):
    """`total` short connections, `parallel` at once; what failed, with its reason, and the seconds of all."""
    left, failed, lock = list(range(total)), [], threading.Lock()

    def work():
        while True:
            with lock:
                if not left:
                    return
                left.pop()
            try:
                with _open(host, port, b"E12345678") as sock:
                    assert _exactly(sock, 8) == b"12345678"
            except (OSError, AssertionError) as exc:
                with lock:
                    failed.append(repr(exc))

    started = clock()
    threads = [threading.Thread(target=work) for _ in range(parallel)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"seconds": clock() - started, "failed": len(failed), "reasons": sorted(set(failed))[:5]}


def hold(host, port, count, seconds):
    """`count` flows open at once, each sending in turn; a line "open" once all are; what failed."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    socks, failed = [], []
    for _ in range(count):
        try:
            socks.append(_open(host, port, b"E12345678"))
        except OSError as exc:
            failed.append(repr(exc))
    ended, turns = clock() + seconds, 0
    while turns < 3 or clock() < ended:
        for sock in list(socks):
            try:
                assert _exactly(sock, 8) == b"12345678"
                sock.sendall(b"12345678")
            except (OSError, AssertionError) as exc:
                failed.append(repr(exc))
                socks.remove(sock)
        turns += 1
        if turns == 2:
            print("open", flush=True)
    for sock in socks:
        sock.close()
    return {"failed": len(failed), "reasons": sorted(set(failed))[:5], "turns": turns}


def beside(host, port, way, seconds):
    """8-byte echoes while a bulk flow runs in a process of its own: seconds of each, after the first two seconds."""
    bulk = os.fork()
    if not bulk:
        try:
            (up if way == "up" else down)(host, port, 1 << 40)
        finally:
            os._exit(0)
    try:
        time.sleep(2)
        taken, ended = [], clock() + seconds
        with _open(host, port, b"E") as sock:
            while clock() < ended:
                taken.append(_ask(sock))
                time.sleep(0.005)
        assert os.waitpid(bulk, os.WNOHANG) == (0, 0), "the bulk flow ended early"
        return taken
    finally:
        os.kill(bulk, 9)


def names(name, count, fresh):
    """Seconds of each DNS question (A, over UDP) to the box's own nameserver; `fresh`, if any, makes each name a new one."""
    with open("/etc/resolv.conf") as file:
        server = next(line.split()[1] for line in file if line.startswith("nameserver"))
    taken = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.connect((server, 53))
        for number in range(count):
            asked = f"{fresh}{number}.{name}" if fresh else name
            wire = b"".join(bytes([len(label)]) + label.encode() for label in asked.split(".")) + b"\0"
            query = struct.pack("!6H", number + 1, 0x100, 1, 0, 0, 0) + wire + struct.pack("!2H", 1, 1)
            started = clock()
            sock.send(query)
            answer = sock.recv(4096)
            taken.append(clock() - started)
            assert (answer[:2], answer[3] & 15) == (query[:2], 0), f"{asked}: {answer[:12].hex()}"
    return taken


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](**json.loads(sys.argv[2]))), flush=True)

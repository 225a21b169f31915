"""A workload that says who asked: tests tell by its answers through which network they came.

TCP 8080    one JSON line {"host", "peer", "local"} at once, then an echo until end of stream
TCP 9092    the same on loopback alone
UDP 8080    one JSON datagram {"host", "peer", "bytes"} for each
"""

import json
import os
import signal
import socket
import socketserver
import threading


class Talk(socketserver.BaseRequestHandler):
    def handle(self):
        hello = {
            "host": os.uname().nodename,
            "peer": self.client_address[0].removeprefix("::ffff:"),
            "local": self.request.getsockname()[0].removeprefix("::ffff:"),
        }
        self.request.sendall(json.dumps(hello).encode() + b"\n")
        while piece := self.request.recv(65536):
            self.request.sendall(piece)


class Datagram(socketserver.BaseRequestHandler):
    def handle(self):
        data, sock = self.request
        answer = {"host": os.uname().nodename, "peer": self.client_address[0].removeprefix("::ffff:"), "bytes": len(data)}
        sock.sendto(json.dumps(answer).encode(), self.client_address)


class Server(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6
    allow_reuse_address = daemon_threads = True
    request_queue_size = 1000


class UdpServer(socketserver.ThreadingUDPServer):
    address_family = socket.AF_INET6


class Loopback(Server):
    address_family = socket.AF_INET


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # process 1 has no default action
    for server in (Server(("::", 8080), Talk), Loopback(("127.0.0.1", 9092), Talk), UdpServer(("::", 8080), Datagram)):
        threading.Thread(target=server.serve_forever).start()

"""kill -9 ends a process's connections with FIN; where SO_LINGER of 0 stands, with RST."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

HOLD = """
import socket, struct, sys
sock = socket.socket(fileno=0)
if sys.argv[1] == "1":
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
sys.stderr.write("ready\\n"); sys.stderr.flush()
sock.recv(1)
"""


@pytest.mark.parametrize("lingers_not", [True, False])
def test_what_the_peer_sees(lingers_not: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname(), 10) as peer:
        ours, _ = listener.accept()
        process = subprocess.Popen([sys.executable, "-c", HOLD, str(int(lingers_not))], stdin=ours, stderr=subprocess.PIPE)
        ours.close()
        assert process.stderr is not None
        assert process.stderr.readline() == b"ready\n"
        process.kill()
        process.wait(10)
        process.stderr.close()
        if lingers_not:
            with pytest.raises(ConnectionResetError):
                peer.recv(1)
        else:
            assert peer.recv(1) == b""

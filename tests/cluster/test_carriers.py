"""K17: both carriers through the API server pass the contract that all carriers pass, and tell why one could not be had.

The agent's end is a socket of the test's own: a relay in a pod dials this machine for each carrier that reaches it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import uvloop

from bridge.adapters.kube import carriers as module
from bridge.adapters.kube import kubeconfig
from bridge.adapters.kube.api import Api
from bridge.adapters.kube.carriers import Carriers
from bridge.errors import LinkLost
from bridge.protocol import channels
from tests.cluster.kube import Cluster, Namespace, container
from tests.unit.contracts.carriers import Made, check_carrier

HOST = "10.88.0.1"  # this machine, as the pods of our own cluster see it

# argv: host, port, and "listen" (a carrier is a connection to 7000) or "stdio" (a carrier is this process)
_RELAY = """
import os, socket, sys, threading
def pump(read, write, end):
    while piece := read(65536):
        write(piece)
    end()
def join(read, write, end):
    far = socket.create_connection((sys.argv[1], int(sys.argv[2])))
    up = threading.Thread(target=pump, args=(read, far.sendall, lambda: far.shutdown(socket.SHUT_WR)), daemon=True)
    up.start()
    try:
        pump(far.recv, write, end)
    finally:
        far.close()
if sys.argv[3] == "listen":
    server = socket.create_server(("127.0.0.1", 7000))
    while True:
        sock, _ = server.accept()
        threading.Thread(target=join, args=(sock.recv, sock.sendall, sock.close), daemon=True).start()
def write(piece):
    while piece:
        piece = piece[os.write(1, piece):]
join(lambda size: os.read(0, size), write, lambda: os._exit(0))
"""


@contextlib.asynccontextmanager
async def carriers(namespace: Namespace) -> AsyncIterator[Carriers]:
    async with Api(kubeconfig.load(str(namespace.cluster.kubeconfig), None, {}, Path("/"))) as api:
        opened = Carriers(api, namespace.name)
        try:
            yield opened
        finally:
            await opened.close()


@pytest.mark.parametrize("way", ["port-forward", "exec"])
@pytest.mark.parametrize("server", ["of today", "older"])
def test_K17_a_carrier_through_the_api_server_keeps_the_contract_of_all_carriers(
    own_cluster: Cluster, namespace: Namespace, way: str, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if server == "older":  # what such a one would choose
        monkeypatch.setattr(module, "OFFERED", (channels.PORT_FORWARD,))
        monkeypatch.setattr(channels, "EXEC", ("v4.channel.k8s.io",))
    listener = socket.create_server((HOST, 0))
    listener.setblocking(False)
    port = str(listener.getsockname()[1])
    command = ["python3", "-c", _RELAY, HOST, port]
    namespace.workload("Pod", "relay", {"containers": [container(command=[*command, "listen"])]})

    async def run() -> None:
        async with carriers(namespace) as opened:
            loop = asyncio.get_running_loop()

            async def make() -> Made:
                dial: Callable[[], Awaitable[module.Opened]] = {
                    "port-forward": lambda: opened.port_forward("relay", 7000, 0),
                    "exec": lambda: opened.exec("relay", "app", [*command, "stdio"], 0),
                }[way]
                client = (await dial()).sock
                agent, _ = await loop.sock_accept(listener)
                agent.setblocking(False)

                def cut() -> None:
                    with contextlib.suppress(OSError):
                        agent.shutdown(socket.SHUT_RDWR)

                return Made((client.detach(),), (os.dup(agent.fileno()),), cut)

            async with asyncio.timeout(90):
                await check_carrier(make)

    try:
        uvloop.run(run())
    finally:
        listener.close()


@pytest.mark.parametrize("offered", module.OFFERED)
def test_K17_a_port_that_nobody_listens_on_is_told_in_the_nodes_words(
    namespace: Namespace, offered: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "OFFERED", (offered,))
    namespace.workload("Pod", "quiet")

    async def run() -> None:
        async with carriers(namespace) as opened:
            await opened.port_forward("quiet", 9, 16)

    with pytest.raises(LinkLost, match="connection refused"):
        asyncio.run(run())


def test_K17_a_command_that_does_not_exist_is_told_in_the_nodes_words(namespace: Namespace) -> None:
    namespace.workload("Pod", "quiet")

    async def run() -> None:
        async with carriers(namespace) as opened:
            await opened.exec("quiet", "app", ["/nowhere"], 16)

    with pytest.raises(LinkLost, match="no such file or directory"):
        asyncio.run(run())

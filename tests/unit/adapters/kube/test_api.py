"""The API server's answers in the user's words, and carriers, against a small server of the test's own on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web

from bridge.adapters.kube.api import Api, Missing, Refused, Unavailable, Unreachable
from bridge.adapters.kube.carriers import Carriers
from bridge.adapters.kube.kubeconfig import Access
from bridge.errors import ClusterError, Forbidden, LinkLost

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
PODS = "/api/v1/namespaces/shop/pods"


@contextlib.asynccontextmanager
async def api(handler: Handler, **access: object) -> AsyncIterator[Api]:
    """An Api whose server answers everything by `handler`."""
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        async with Api(Access(f"http://127.0.0.1:{port}", "dev", "shop", "ana", "config", **access)) as made:  # type: ignore[arg-type]
            yield made
    finally:
        await runner.cleanup()


def answering(status: int, message: str) -> Handler:
    async def handler(_: web.Request) -> web.Response:
        return web.json_response({"kind": "Status", "message": message, "code": status}, status=status)

    return handler


def refused(status: int, message: str) -> ClusterError:
    async def ask() -> None:
        async with api(answering(status, message)) as made:
            await made.get(PODS)

    with pytest.raises(ClusterError) as caught:
        asyncio.run(ask())
    return caught.value


def test_a_refusal_by_rbac_names_verb_resource_and_namespace() -> None:
    said = 'pods "x" is forbidden: User "ana" cannot patch resource "pods/ephemeralcontainers" in API group "" in the namespace "shop"'
    error = refused(403, said)
    assert isinstance(error, Forbidden)
    assert error.message == "not allowed to patch pods/ephemeralcontainers in namespace 'shop'"
    assert error.hint == "kubectl auth can-i patch pods --subresource=ephemeralcontainers -n shop"


def test_any_other_403_is_the_servers_own_sentence() -> None:
    error = refused(403, 'pods "x" is forbidden: exceeded quota: small, requested: pods=1')
    assert isinstance(error, Refused)
    assert error.said == 'pods "x" is forbidden: exceeded quota: small, requested: pods=1'


@pytest.mark.parametrize(("status", "kind"), [(404, Missing), (409, Refused), (422, Refused), (429, Unavailable), (503, Unavailable)])
def test_each_status_is_the_error_that_its_reaction_needs(status: int, kind: type[ClusterError]) -> None:
    assert type(refused(status, "said")) is kind


def test_401_names_the_user_whose_credentials_are_not_accepted() -> None:
    assert "user 'ana'" in refused(401, "Unauthorized").message


def test_a_rotated_token_file_is_read_again_after_a_401(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("old")
    seen: list[str | None] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        file.write_text("new")
        return web.json_response({"items": []}, status=200 if seen[-1] == "Bearer new" else 401)

    async def ask() -> object:
        async with api(handler, token_file=file) as made:
            return await made.get(PODS)

    assert asyncio.run(ask()) == {"items": []}
    assert seen == ["Bearer old", "Bearer new"]


def test_a_watch_comes_line_by_line_however_it_is_cut() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for piece in (b'{"a"', b": 1}\n{", b'"b": 2}\n'):
            await response.write(piece)
        return response

    async def ask() -> list[object]:
        async with api(handler) as made:
            return [json.loads(line) async for line in made.lines(PODS)]

    assert asyncio.run(ask()) == [{"a": 1}, {"b": 2}]


async def _port_forward(request: web.Request) -> web.WebSocketResponse:
    """A kubelet's: echoes on channel 0; port 9 is closed."""
    ws = web.WebSocketResponse(protocols=("v4.channel.k8s.io",), max_msg_size=0)
    await ws.prepare(request)
    port = int(request.query["ports"]).to_bytes(2, "little")
    await ws.send_bytes(b"\0" + port)
    await ws.send_bytes(b"\1" + port)
    if request.query["ports"] == "9":
        await ws.send_bytes(b"\1" + b"dial tcp4 127.0.0.1:9: connect: connection refused")
    else:
        async for message in ws:
            if message.data == b"\0end":
                break
            await ws.send_bytes(message.data)
    await ws.close()
    return ws


def test_a_carrier_passes_bytes_whole_and_without_the_ports_first_message() -> None:
    sent = bytes(range(256)) * 8000

    async def talk() -> bytes:
        async with api(_port_forward) as made:
            carriers = Carriers(made, "shop")
            sock = (await carriers.port_forward("web", 8080, 0)).sock
            loop, got = asyncio.get_running_loop(), bytearray()
            async with asyncio.timeout(5), asyncio.TaskGroup() as group:
                group.create_task(loop.sock_sendall(sock, sent), name="send")
                while len(got) < len(sent):
                    got += await loop.sock_recv(sock, 1 << 16)
            sock.close()
            await carriers.close()
            return bytes(got)

    assert asyncio.run(talk()) == sent


def test_the_far_sides_end_is_the_carriers_end() -> None:
    async def talk() -> bytes:
        async with api(_port_forward) as made:
            carriers = Carriers(made, "shop")
            sock = (await carriers.port_forward("web", 8080, 0)).sock
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(sock, b"end")
            async with asyncio.timeout(5):
                rest = await loop.sock_recv(sock, 100)
            sock.close()
            return rest

    assert asyncio.run(talk()) == b""


def test_a_closed_port_is_told_in_the_kubelets_words() -> None:
    async def talk() -> None:
        async with api(_port_forward) as made:
            await Carriers(made, "shop").port_forward("web", 9, 16)

    with pytest.raises(LinkLost, match=r"port-forward: dial tcp4 127\.0\.0\.1:9: connect: connection refused"):
        asyncio.run(talk())


def test_a_websocket_that_is_forbidden_names_the_verb() -> None:
    said = 'pods "web" is forbidden: User "ana" cannot create resource "pods/portforward" in API group "" in the namespace "shop"'

    async def talk() -> None:
        async with api(answering(403, said)) as made:
            await Carriers(made, "shop").port_forward("web", 1, 0)

    with pytest.raises(Forbidden, match="not allowed to create pods/portforward in namespace 'shop'"):
        asyncio.run(talk())


def test_a_server_that_is_not_there_is_named_with_the_cause() -> None:
    async def ask() -> None:
        async with Api(Access("http://127.0.0.1:1", "dev", "shop", "ana", "config")) as made:
            await made.get(PODS)

    with pytest.raises(Unreachable, match=r"unable to connect to the server http://127\.0\.0\.1:1: connection refused") as caught:
        asyncio.run(ask())
    assert caught.value.hint == "kubectl --context dev cluster-info"


async def _exec(request: web.Request) -> web.WebSocketResponse:
    """A kubelet's: what each command of the test prints, and the Status that ends it."""
    ws = web.WebSocketResponse(protocols=("v5.channel.k8s.io",), max_msg_size=0)
    await ws.prepare(request)
    match request.query["command"]:
        case "flood":
            with contextlib.suppress(ConnectionError):
                for _ in range(64):
                    await ws.send_bytes(b"\1" + bytes(1 << 18))
        case "odd":
            await ws.send_bytes(b"\3[]")
        case "true":
            await ws.send_bytes(b"\1said")
            await ws.send_bytes(b'\3{"status": "Success"}')
    await ws.close()
    return ws


def output_of(command: str) -> bytes:
    async def ask() -> bytes:
        async with api(_exec) as made:
            return await Carriers(made, "shop").output("web", "app", [command])

    return asyncio.run(ask())


def test_the_output_of_a_command_is_bounded_and_an_odd_status_is_no_success() -> None:
    assert output_of("true") == b"said"
    with pytest.raises(ClusterError, match="flood in container 'app' of pod web prints more than 8192 KiB"):
        output_of("flood")
    with pytest.raises(ClusterError, match="odd in container 'app' of pod web"):
        output_of("odd")

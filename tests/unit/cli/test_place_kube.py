"""Kubernetes as a place, against a small API server of the test's own: what it makes of answers that no real one gives on demand."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from aiohttp import web

from bridge.adapters.kube.api import Unreachable
from bridge.cli.place_kube import KubePlace
from bridge.model.target import parse_target
from bridge.model.wish import AppWish, SessionWish

POD = {
    "metadata": {"name": "web-1", "uid": "1"},
    "spec": {"containers": [{"name": "app", "env": [{"name": "FROM_SPEC", "value": "1"}]}]},
    "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}],
               "containerStatuses": [{"name": "app", "containerID": "containerd://1", "state": {"running": {}}}]},
}  # fmt: skip


def test_an_api_server_that_goes_away_ends_the_question_for_the_environment_and_changes_nothing(tmp_path: Path) -> None:
    """Not the spec's environment instead, and no agent more in the pod: it may be back in a moment."""
    asked: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        asked.append(f"{request.method} {request.path.rpartition('/')[2]}")
        if request.path.endswith("/pods/web-1"):
            return web.json_response(POD)
        return web.json_response({"message": "the server is starting"}, status=503)

    async def ask() -> None:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", handler)
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        config = {"clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
                  "contexts": [{"name": "c", "context": {"cluster": "c"}}], "current-context": "c"}  # fmt: skip
        (tmp_path / "config").write_text(json.dumps(config))
        wish = SessionWish(parse_target("pod/web-1"), AppWish("none"), kubeconfig=str(tmp_path / "config"))
        place = KubePlace(wish, "abcdef", "tests", tmp_path, "agent:1")
        try:
            await place.environ()
        finally:
            await place.close()
            await runner.cleanup()

    with pytest.raises(Unreachable, match="the server is starting"):
        asyncio.run(ask())
    assert "GET exec" in asked
    assert not [one for one in asked if not one.startswith("GET ")], asked

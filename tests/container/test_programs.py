"""Real programs as apps: PostgreSQL's and Redis' clients and curl, against real servers that only the target reaches; the demo."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import docker.errors
import pytest

from tests.container.conftest import App, Bridge
from tests.container.test_lifecycle import cut
from tests.lab import images
from tests.lab.boxes import Box, Cli, eventually
from tests.lab.dockerlab import Lab

ROOT = Path(__file__).resolve().parents[2]
PSQL = ("env", "PGPASSWORD=only-the-shop-knows", "PGCONNECT_TIMEOUT=20", "psql", "-AtX", "-h", "db", "-U", "shop", "shop")


@pytest.fixture(scope="module")
def db(lab: Lab) -> Iterator[Box]:
    image = images.ensure(lab.client, "demo")
    command = ["/demo/bin/postgres", "-D", "/demo/data", "-c", "listen_addresses=*"]
    box = lab.box("db", image, command, at=11, user="postgres")
    eventually(lambda: box.run("psql", "-U", "postgres", "-c", "SELECT 1").code == 0)
    yield box
    box.container.remove(force=True)


@pytest.fixture(scope="module")
def cache(lab: Lab) -> Iterator[Box]:
    image = images.ensure(lab.client, "demo")
    box = lab.box("cache", image, ["redis-server", "--save", "", "--protected-mode", "no", "--dir", "/tmp"], at=12, user="redis")
    eventually(lambda: box.run("redis-cli", "PING").code == 0)
    yield box
    box.container.remove(force=True)


def test_A01_psql_finds_a_database_that_only_the_target_reaches(lab: Lab, app: App, db: Box) -> None:
    ran = app.run(*PSQL, "-c", "SELECT count(*), host(inet_client_addr()) FROM orders")
    count, client = ran.out.strip().split("|")
    assert count == "3"
    assert client in (lab.target_ip, lab.target_ip6)
    assert lab.outsider.run(*PSQL, "-c", "SELECT 1").code != 0


def test_A01_redis_cli_and_its_pipeline(lab: Lab, app: App, cache: Box) -> None:
    assert app.run("redis-cli", "-h", "cache", "SET", "colour", "blue").out == "OK\n"
    assert cache.run("redis-cli", "GET", "colour").out == "blue\n"
    ran = app.run("sh", "-c", "seq 5000 | sed 's/^/SET k/; s/$/ v/' | redis-cli -h cache --pipe")
    assert "errors: 0, replies: 5000" in ran.out


@pytest.mark.parametrize("options", [("-4",), ("-6",), ()], ids=["ipv4", "ipv6", "either"])
def test_A01_curl_by_name_over_each_family(lab: Lab, app: App, options: tuple[str, ...]) -> None:
    seen = app.run("curl", "-sS", "-m", "10", *options, "http://server.lab.test:7010/path").json
    assert seen["path"] == "/path"
    assert seen["peer"] in (lab.target_ip, lab.target_ip6)


def test_A03_curl_says_refused(lab: Lab, app: App) -> None:
    ran = app.run("curl", "-sS", "-m", "10", "http://server.lab.test:9/")
    assert ran.code == 7
    assert "refused" in ran.err or "Couldn't connect" in ran.err


@pytest.mark.timeout(180)
def test_A41_an_open_psql_session_outlives_a_cut_of_the_carrier(lab: Lab, bridge: Bridge, db: Box) -> None:
    """One connection of psql's, idle while the carrier is away, asked again after it."""
    with lab.another_target(70) as target, bridge(f"docker/{target.name}", "--via", "direct") as app:
        client = lab.client.api
        words = [*PSQL, "-c", "SELECT pg_backend_pid()", "-c", "\\! sleep 30", "-c", "SELECT pg_backend_pid()"]
        made = client.exec_create(app.container.id, ["timeout", "100", *words])
        said = client.exec_start(made["Id"], stream=True)
        eventually(
            lambda: (
                db.run("psql", "-U", "postgres", "-AtX", "-c", "SELECT count(*) FROM pg_stat_activity WHERE usename = 'shop'").out == "1\n"
            )
        )
        with cut(target):
            time.sleep(20)
        first, second = b"".join(said).decode().split()
        assert first == second


def test_A01_the_demo_as_shipped_shows_what_only_the_shop_reaches(client: docker.DockerClient, own_images: None, cli: Cli) -> None:
    """`./dev demo`, beside a demo that may be running already; then its --down leaves nothing."""
    was_there = bool(client.containers.list(filters={"label": "com.docker.compose.project=mbridge-demo"}))
    demo = [sys.executable, str(ROOT / "images" / "demo" / "demo.py")]
    done = subprocess.run(demo, env=cli.env(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=110, check=False)
    try:
        assert done.returncode == 0, done.stderr
        without, bridged = done.stdout.split("$ mbridge run")
        assert sum(" failed: " in line for line in without.splitlines()) == 3
        shop = client.containers.get("mbridge-demo-shop-1").attrs["NetworkSettings"]["Networks"]["mbridge-demo_inside"]["IPAddress"]
        lines = dict(line.split(None, 1) for line in bridged.splitlines() if line[:1].isalpha() and " " in line)
        assert lines["hostname"] == "shop"
        assert f"you are {shop}" in lines["PostgreSQL"]
        assert lines["Redis"].isdigit()
        assert json.loads(bridged.split("web service")[1].splitlines()[0]) == {"i_am": "stock", "you_come_from": shop}
    finally:
        if not was_there:
            subprocess.run([*demo, "--down"], env=cli.env(), capture_output=True, timeout=60, check=True)
    if not was_there:
        assert client.containers.list(all=True, filters={"label": "com.docker.compose.project=mbridge-demo"}) == []
        assert client.networks.list(names=["mbridge-demo_inside"]) == []

"""`./dev demo --kubernetes` as shipped, and what its --down ends: never a cluster that others use."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.cluster.kube import Cluster
from tests.lab.boxes import Cli

DEMO = Path(__file__).parents[2] / "images" / "demo" / "demo.py"


def test_K02_the_demo_as_shipped_shows_what_only_the_shop_reaches_and_its_down_leaves_the_cluster(cluster: Cluster, tmp_path: Path) -> None:
    if not cluster.own:
        pytest.skip("lacks(a cluster of our own)")
    if "mbridge-demo" in cluster.kubectl("get", "namespaces", "-o", "name"):
        pytest.skip("lacks(a cluster without a demo in it)")
    cli = Cli(tmp_path)
    words = [sys.executable, str(DEMO), "--kubernetes"]
    try:
        done = subprocess.run(words, env=cli.env(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, done.stderr
        assert "PostgreSQL     3 orders, 409.40 in sum" in done.stdout
        assert '"i_am": "stock-' in done.stdout
    finally:
        ended = subprocess.run([*words, "--down"], env=cli.env(), capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "mbridge-demo" not in cluster.kubectl("get", "namespaces", "-o", "name")


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Its module, with a folder of its own for what it remembers and a cluster that only notes what it is told."""
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "AUTHORITY", tmp_path / "ca.crt")
    monkeypatch.setattr(module, "STARTED", tmp_path / "demo-cluster")
    return module


@pytest.mark.parametrize(
    ("runs", "remembered", "told"),
    [
        ("this one", "this one", [("down",)]),
        ("this one", "an earlier one", [("kubectl", "delete", "namespace", "mbridge-demo", "--ignore-not-found")]),
        ("this one", None, [("kubectl", "delete", "namespace", "mbridge-demo", "--ignore-not-found")]),
        (None, "an earlier one", []),
    ],
)
def test_down_ends_the_cluster_only_where_the_demo_started_this_very_one(
    demo: ModuleType, monkeypatch: pytest.MonkeyPatch, runs: str | None, remembered: str | None, told: list[tuple[str, ...]]
) -> None:
    heard: list[tuple[str, ...]] = []
    monkeypatch.setattr(demo, "cluster", lambda *words: heard.append(words))
    for file, text in ((demo.AUTHORITY, runs), (demo.STARTED, remembered)):
        if text is not None:
            file.write_text(text)
    assert demo.kubernetes_down() == 0
    assert heard == told
    assert not demo.STARTED.exists()

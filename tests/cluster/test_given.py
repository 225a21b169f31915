"""A cluster that is there already (MBRIDGE_TEST_KUBECONFIG): the tests serve on it as on their own. Played by the tests' own, through
nothing but a kubeconfig as kind writes it, `kubectl` on the PATH and a command that loads images."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.kube import TOOL, Cluster

HERE = Path(__file__).parent


@pytest.fixture
def given(cluster: Cluster, tmp_path: Path) -> dict[str, str]:
    """The environment of somebody who has such a cluster, but names no command that loads images yet."""
    if not cluster.own:
        pytest.skip("lacks(a cluster of our own beside the given one)")
    kubectl = tmp_path / "bin" / "kubectl"
    kubectl.parent.mkdir()
    kubectl.write_text(f'#!/bin/sh\nexec {TOOL} kubectl "$@"\n')
    kubectl.chmod(0o755)
    (tmp_path / "config").write_text(cluster.kubectl("config", "view", "--raw", "--flatten", "-o", "yaml"))
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MBRIDGE_")}
    return {**inherited, "PATH": f"{kubectl.parent}:{os.environ['PATH']}", "MBRIDGE_TEST_KUBECONFIG": str(tmp_path / "config")}


def outcome(environ: dict[str, str], *names: str) -> str:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs", "-v", *(str(HERE / name) for name in names)]
    done = subprocess.run(command, env=environ, cwd=HERE.parents[1], capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def test_on_a_given_cluster_tests_run_and_those_of_its_node_are_skipped(given: dict[str, str]) -> None:
    given["MBRIDGE_TEST_LOAD"] = f"{TOOL} load"
    names = ("test_rights.py::test_K06_K07_the_documented_role_in_one_namespace_is_enough_for_a_whole_start",
             "test_run.py::test_a_failure_before_the_app_is_one_line_a_hint_and_125",
             "test_images.py::test_a_command_brings_an_image_into_the_nodes_containerd")  # fmt: skip
    assert "2 passed, 1 skipped" in outcome(given, *names)


def test_on_a_given_cluster_without_a_way_to_load_images_the_reason_is_told(given: dict[str, str]) -> None:
    told = outcome(given, "test_run.py::test_a_failure_before_the_app_is_one_line_a_hint_and_125")
    assert "MBRIDGE_TEST_KUBECONFIG needs kubectl and MBRIDGE_TEST_LOAD" in told

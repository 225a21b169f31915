"""A1 to A30 once more, with a pod as the target, through both carriers: the container tests' own functions, another lab.

Left out by name is what needs the engine's own network (a neighbour, an outsider, Docker's resolver), and tests that start sessions of
their own; these have their counterparts in test_run.py and test_life.py.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from tests.cluster.kube import Cluster
from tests.cluster.kubelab import KubeLab, kube_lab
from tests.container import test_dns, test_programs, test_tcp, test_udp_icmp
from tests.container.conftest import App, bridged
from tests.lab.boxes import Cli
from tests.lab.shared import looking

_ENGINES_OWN = {
    "test_A01_without_mbridge_the_same_port_is_out_of_reach",
    "test_A14_one_socket_speaks_to_many_and_each_answers",
    "test_A24_resolv_conf_has_the_targets_search_list_and_options",
}


@pytest.fixture(scope="module")
def lab(cluster: Cluster, images: str) -> Iterator[KubeLab]:
    name = f"mb-{secrets.token_hex(4)}"
    cluster.kubectl("create", "namespace", name)
    try:
        with kube_lab(cluster, name) as lab:
            yield lab
    finally:
        cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="module", params=["port-forward", "exec"])
def app(request: pytest.FixtureRequest, lab: KubeLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    cli = Cli(tmp_path_factory.mktemp("state"), {"KUBECONFIG": str(lab.cluster.kubeconfig)})
    with bridged(lab, cli, "pod/target", "-n", lab.namespace, "--via", request.param) as app:
        yield app


_SHARED = looking((test_tcp, test_udp_icmp, test_dns, test_programs), without=_ENGINES_OWN)
globals().update(_SHARED)


def test_enough_is_shared() -> None:
    """An import that finds nothing would pass for a success."""
    assert len(_SHARED) >= 35

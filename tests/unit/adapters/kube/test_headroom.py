"""What a pod's memory limit leaves for an agent, from its JSON and from what its containers' cgroups say."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from bridge.adapters.kube import headroom
from bridge.adapters.kube.headroom import Headroom
from bridge.errors import ClusterError

Json = dict[str, Any]
MIB = 1 << 20


def container(name: str, memory: str | None = None, **more: Any) -> Json:
    return {"name": name, **({"resources": {"limits": {"memory": memory}}} if memory else {}), **more}


def pod(*containers: Json, **spec: Any) -> Json:
    names = [one["name"] for one in (*containers, *spec.get("ephemeralContainers", ()))]
    states = [{"name": name, "state": {"running": {}}} for name in names]
    return {"spec": {"containers": list(containers), **spec}, "status": {"containerStatuses": states}}


@pytest.mark.parametrize(
    ("one", "limit"),
    [
        (pod(container("a", "64Mi"), container("b", "1Gi")), 1088),
        (pod(container("a", "64Mi"), container("b")), None),
        (pod(container("a")), None),
        (pod(container("a"), resources={"limits": {"memory": "96Mi"}}), 96),
        (pod(container("a", "64Mi"), initContainers=[container("s", "32Mi", restartPolicy="Always")]), 96),
        (pod(container("a", "64Mi"), initContainers=[container("i", "512Mi")]), 512),
        (pod(container("a", "64Mi"), initContainers=[container("i")]), None),
    ],
    ids=["sum", "one without", "none", "the pod's own", "a sidecar", "a larger init container", "an init container without"],
)
def test_the_limit_is_what_the_kubelet_gives_the_pods_cgroup(one: Json, limit: int | None) -> None:
    assert headroom.limit_of(one) == (None if limit is None else limit * MIB)


V2 = b"anon 31457280\nfile 900000000\nkernel 1048576\nshmem 10485760\ninactive_file 800000000\n"
V1 = b"cache 900000000\nrss 1\ntotal_cache 900000000\ntotal_rss 31457280\ntotal_shmem 10485760\n"


PATHS = {V2: "/sys/fs/cgroup/memory.stat", V1: "/sys/fs/cgroup/memory/memory.stat"}


def looked(one: Json, stat: bytes = V2, but: str | None = None) -> tuple[Headroom | None, list[str]]:
    """On a node where each container that is called by one letter reads `stat`; and who was asked."""
    asked: list[str] = []

    async def read(name: str, command: Sequence[str]) -> bytes:
        asked.append(name)
        if len(name) > 1 or command[-1] != PATHS.get(stat):
            raise ClusterError("no such file")
        return stat

    return asyncio.run(headroom.look(one, "a", read, but)), asked


@pytest.mark.parametrize(("stat", "each", "asked"), [(V2, 41, ["a", "b"]), (V1, 40, ["a", "a", "b"])], ids=["cgroup v2", "cgroup v1"])
def test_page_cache_is_not_counted_and_each_container_is(stat: bytes, each: int, asked: list[str]) -> None:
    assert looked(pod(container("a", "100Mi"), container("b", "100Mi")), stat) == (Headroom(200 * MIB, 2 * each * MIB), asked)


def test_an_agent_of_another_session_counts_and_the_one_that_is_used_again_does_not() -> None:
    one = pod(container("a", "200Mi"), ephemeralContainers=[container("x"), container("y")])
    assert looked(one) == (Headroom(200 * MIB, 123 * MIB), ["a", "x", "y"])
    assert looked(one, but="y") == (Headroom(200 * MIB, 82 * MIB), ["a", "x"])


def test_a_pod_of_many_containers_costs_a_bounded_number_of_requests() -> None:
    _, asked = looked(pod(*(container(name, "1Gi") for name in "bcdefghijklmna")), V1)
    assert len(asked) <= 7
    assert asked[0] == "a"


def test_without_a_limit_nothing_is_asked() -> None:
    assert looked(pod(container("a"))) == (None, [])


def test_where_the_target_cannot_be_asked_the_limit_alone_is_known() -> None:
    room, _ = looked(pod(container("a", "64Mi")), b"")
    assert (room, str(room)) == (Headroom(64 * MIB), "its memory limit is 64 MiB")


@pytest.mark.parametrize(
    ("limit", "used", "enough"), [(100, None, True), (99, None, False), (140, 41, False), (141, 41, True), (50, 60, False)]
)
def test_a_hundred_mib_are_enough(limit: int, used: int | None, enough: bool) -> None:
    assert Headroom(limit * MIB, None if used is None else used * MIB).enough is enough


@pytest.mark.parametrize(
    ("text", "value"),
    [("64Mi", 64 << 20), ("1.5G", 1_500_000_000), ("128974848", 128974848), ("129e6", 129_000_000), ("1000m", 1), ("2k", 2000)],
)
def test_quantities_as_kubernetes_writes_them(text: str, value: int) -> None:
    assert headroom.quantity(text) == value

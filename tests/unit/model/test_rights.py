"""What is asked of a cluster, and the Role that grants exactly that."""

from __future__ import annotations

import pytest
from ruamel.yaml import YAML

from bridge.model.rights import RIGHTS, needed, role
from bridge.model.target import KUBE_KINDS, KubeTarget, Targetless


def test_the_role_grants_exactly_what_is_needed() -> None:
    wanted = needed(None)
    parsed = YAML(typ="safe").load(role(wanted, "shop"))
    granted = {(verb, resource, group) for rule in parsed["rules"] for verb in rule["verbs"] for resource in rule["resources"]
               for group in rule["apiGroups"]}  # fmt: skip
    assert granted == {(right.verb, right.resource, right.group) for right in wanted}
    assert parsed["metadata"]["namespace"] == "shop"


@pytest.mark.parametrize("kind", KUBE_KINDS)
def test_each_kind_of_target_asks_for_its_own_workload_and_no_other(kind: str) -> None:
    groups = {right.resource for right in needed(KubeTarget(kind, "x")) if right.group}
    assert len(groups) == {"pod": 0, "svc": 0, "cronjob": 2}.get(kind, 1)


def test_nothing_is_asked_for_secrets_nodes_or_changes_of_a_workload() -> None:
    assert not {right.resource for right in needed(None)} & {"secrets", "configmaps", "nodes", "namespaces"}
    changes = {str(right) for right in needed(None) if right.verb not in ("get", "list", "watch")}
    assert changes == {"patch pods/ephemeralcontainers", "create pods/portforward", "create pods/exec"}


def test_a_helper_pod_asks_for_pods_instead_of_ephemeral_containers() -> None:
    for rights in (needed(Targetless()), needed(KubeTarget("pod", "x"), "pod")):
        asked = {str(right) for right in rights}
        assert {"create pods", "delete pods"} <= asked
        assert "patch pods/ephemeralcontainers" not in asked


def test_whatever_may_be_missing_says_what_is_lost() -> None:
    assert {right.feature for right in RIGHTS if right.without} == {"env", "follow", "events"}

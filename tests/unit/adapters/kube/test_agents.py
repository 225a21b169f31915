"""What is asked of the API server for an agent, and how its answers are read."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.adapters.kube import agents
from bridge.adapters.kube.agents import AgentSettings
from bridge.adapters.kube.memory import Memory, Remembered
from bridge.model.wish import HelperWish

Json = dict[str, Any]
SETTINGS = AgentSettings("agent:1", "ssh-ed25519 AAAA")


def pod(**spec: Any) -> Json:
    return {"metadata": {"name": "web", "uid": "u"}, "spec": {"containers": [{"name": "app"}], **spec}, "status": {}}


def test_the_lowest_rung_is_what_pod_security_restricted_demands() -> None:
    context = agents.ephemeral("mbridge-abcdef", SETTINGS, "restricted", 1000)["securityContext"]
    assert context["runAsUser"] == 1000
    assert context["runAsNonRoot"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}


@pytest.mark.parametrize("uid", [0, None])
def test_the_lowest_rung_never_asks_for_root(uid: int | None) -> None:
    assert agents.security_context("restricted", uid)["runAsUser"] == agents.OUR_UID


def test_the_network_agent_shares_no_process_namespace_and_sets_no_resources() -> None:
    body = agents.ephemeral("mbridge-abcdef", SETTINGS, "restricted", None)
    assert "targetContainerName" not in body, "it would die with the target's container"
    assert "resources" not in body, "Kubernetes refuses them"


def test_no_private_key_is_in_what_we_ask_for() -> None:
    assert "ssh-ed25519 AAAA" in agents.ephemeral("a", SETTINGS, "restricted", None)["command"]


def test_a_helper_pod_ends_with_its_target_by_its_deadline_and_carries_our_labels() -> None:
    body = agents.helper_pod("mbridge-abcdef-x", SETTINGS, HelperWish(), {"mbridge.session": "abcdef"}, pod())
    assert body["metadata"]["ownerReferences"][0]["uid"] == "u"
    assert body["metadata"]["labels"] == {"mbridge.session": "abcdef"}
    assert body["spec"]["activeDeadlineSeconds"] > 0
    assert body["spec"]["automountServiceAccountToken"] is False, "an agent needs no right in the cluster"


def test_what_a_helper_pod_may_be_given_is_in_it() -> None:
    helper = HelperWish("runner", ("pull",), ({"operator": "Exists"},), {"limits": {"memory": "1Gi"}}, {"a": "b"})
    body = agents.helper_pod("x", SETTINGS, helper, {}, None)
    spec = body["spec"]
    assert (spec["serviceAccountName"], spec["imagePullSecrets"]) == ("runner", [{"name": "pull"}])
    assert spec["tolerations"] == [{"operator": "Exists"}]
    assert spec["containers"][0]["resources"] == {"limits": {"memory": "1Gi"}}
    assert body["metadata"]["annotations"] == {"a": "b"}


def test_the_targets_uid_is_its_containers_then_the_pods_then_what_runs() -> None:
    assert agents.target_uid(pod(), "app") is None
    running = pod()
    running["status"] = {"containerStatuses": [{"name": "app", "user": {"linux": {"uid": 7}}}]}
    assert agents.target_uid(running, "app") == 7
    assert agents.target_uid(pod(securityContext={"runAsUser": 5}), "app") == 5
    own = pod(containers=[{"name": "app", "securityContext": {"runAsUser": 0}}], securityContext={"runAsUser": 5})
    assert agents.target_uid(own, "app") == 0


def test_the_lowest_rung_that_may_read_the_environment_is_tried_first() -> None:
    assert agents.file_rungs(1000) == ("restricted", "full")
    assert agents.file_rungs(0) == ("baseline", "full")
    assert agents.file_rungs(None) == ("baseline", "full")


@pytest.mark.parametrize(
    ("state", "verdict"),
    [
        ({"running": {}}, ("running", "")),
        ({"waiting": {"reason": "ContainerCreating"}}, ("waiting", "ContainerCreating")),
        ({"waiting": {"reason": "ErrImagePull", "message": "no such host"}}, ("stuck", "ErrImagePull: no such host")),
        ({"terminated": {"reason": "Error", "exitCode": 1}}, ("ended", "Error, exit code 1")),
        ({}, ("waiting", "")),
    ],
)
def test_what_a_containers_state_means_for_whoever_waits(state: Json, verdict: tuple[str, str]) -> None:
    one = pod()
    one["status"] = {"ephemeralContainerStatuses": [{"name": "mbridge-abcdef", "state": state}]}
    assert agents.waiting_for(one, "mbridge-abcdef") == verdict


def test_the_first_line_gives_id_port_and_key() -> None:
    assert agents.first_line(b"mbridge-agent 1 0123456789abcdef 4711 ssh-ed25519 AAAA") == ("0123456789abcdef", 4711, "ssh-ed25519 AAAA")


@given(st.binary(max_size=200))
def test_any_other_line_is_no_introduction(line: bytes) -> None:
    found = agents.first_line(line)
    assert found is None or line.startswith(b"mbridge-agent 1 ")


@pytest.mark.parametrize("words", ["2 0123456789abcdef 1 ssh-ed25519", "1 xyz 1 ssh-ed25519", "1 0123456789abcdef 0 ssh-ed25519",
                                   "1 0123456789abcdef 1 ssh-rsa"])  # fmt: skip
def test_an_introduction_of_another_shape_is_none(words: str) -> None:
    assert agents.first_line(f"mbridge-agent {words} AAAA".encode()) is None


def test_what_was_remembered_is_recalled_until_it_is_forgotten(tmp_path: Any) -> None:
    memory = Memory(tmp_path / "agents")
    agent = Remembered("mbridge-abcdef", "containerd://1", "0123456789abcdef", "ssh-ed25519 AAAA", 4711, "x")
    assert memory.recall("uid-1") is None
    memory.keep("uid-1", agent)
    assert memory.recall("uid-1") == agent
    assert (tmp_path / "agents" / "uid-1.json").stat().st_mode & 0o077 == 0
    memory.forget("uid-1")
    assert memory.recall("uid-1") is None


def test_a_damaged_memory_is_none_and_a_uid_is_no_path(tmp_path: Any) -> None:
    memory = Memory(tmp_path)
    (tmp_path / "uid.json").write_text('{"name": 1}')
    assert memory.recall("uid") is None
    assert memory.recall("../uid") is None
    with pytest.raises(ValueError, match="no uid"):
        memory.keep("../uid", Remembered("a", "b", "c", "d", 1, "e"))

"""K10: a cluster's own policy that refuses the agent: told at once in its words, with the rung that was tried and the way out."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from tests.cluster.kube import TARGET_IMAGE, Json, Namespace

WORDS = "no ephemeral containers in this shop, says the house rule"


@contextlib.contextmanager
def refusing(namespace: Namespace) -> Iterator[None]:
    """A ValidatingAdmissionPolicy for this namespace alone. It is an object of the whole cluster, so it bears the namespace's name."""
    rule: Json = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["UPDATE"], "resources": ["pods/ephemeralcontainers"]}
    only = {"matchLabels": {"kubernetes.io/metadata.name": namespace.name}}
    api = {"apiVersion": "admissionregistration.k8s.io/v1", "metadata": {"name": namespace.name}}
    spec = {
        "failurePolicy": "Fail",
        "matchConstraints": {"resourceRules": [rule]},
        "validations": [{"expression": "false", "message": WORDS}],
    }
    binding = {"policyName": namespace.name, "validationActions": ["Deny"], "matchResources": {"namespaceSelector": only}}
    namespace.apply({**api, "kind": "ValidatingAdmissionPolicy", "spec": spec})
    namespace.apply({**api, "kind": "ValidatingAdmissionPolicyBinding", "spec": binding})
    try:
        yield
    finally:
        for kind in ("validatingadmissionpolicybinding", "validatingadmissionpolicy"):
            namespace.kubectl("delete", kind, namespace.name)


def test_K10_an_admission_policy_that_refuses_the_agent_is_told_in_its_own_words(namespace: Namespace) -> None:
    namespace.workload()
    (pod,) = namespace.pods("app=web")
    patch = '{"spec": {"ephemeralContainers": [{"name": "trial", "image": "none"}]}}'
    trial = ("patch", "pod", pod["metadata"]["name"], "--subresource=ephemeralcontainers", "--dry-run=server", "-p", patch)
    namespace.kubectl(*trial)
    with refusing(namespace):
        namespace.until("the policy", lambda: not namespace.kubectl(*trial, check=False))
        began = time.monotonic()
        done = namespace.cli.run("run", "deploy/web", "-n", namespace.name, TARGET_IMAGE, "true")
        assert done.returncode == 125
        assert time.monotonic() - began < 10
        (error,) = [line for line in done.stderr.splitlines() if line.startswith("mbridge: error: ")]
        assert error.startswith("mbridge: error: the API server refused the agent (rung restricted): ")
        assert error.endswith(WORDS)
        assert "mbridge: hint: --agent pod" in done.stderr
        assert namespace.cli.status() == []
        done = namespace.cli.run("run", "--agent", "pod", "deploy/web", "-n", namespace.name, TARGET_IMAGE, "true")
        assert done.returncode == 0, done.stderr

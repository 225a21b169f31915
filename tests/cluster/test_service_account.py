"""K5: to the API server the app is the pod: its address always, its service account where the app is given the token."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cluster.kube import TARGET_IMAGE, Cluster, Namespace, bridged
from tests.cluster.test_run import ip_of
from tests.lab.boxes import eventually

FOLDER = "/var/run/secrets/kubernetes.io/serviceaccount"


def kubectl(cluster: Cluster) -> tuple[Path, list[str]]:
    """A static one: what to mount, and how it is called there."""
    if cluster.own:
        return cluster.kubeconfig.parents[1] / "bin" / "kubenode", ["/kubectl", "kubectl"]
    return Path(shutil.which("kubectl") or ""), ["/kubectl"]


def test_K05_a_real_client_that_has_the_pods_token_acts_as_the_pod(namespace: Namespace, tmp_path: Path) -> None:
    """kubectl as a program in a pod finds its server: KUBERNETES_SERVICE_HOST is the target's, the token is mounted by hand."""
    namespace.kubectl("create", "serviceaccount", "orders")
    namespace.kubectl("create", "role", "look", "--verb=list", "--resource=pods")
    namespace.kubectl("create", "rolebinding", "look", "--role=look", f"--serviceaccount={namespace.name}:orders")
    namespace.workload(pod={"serviceAccountName": "orders"})
    (pod,) = namespace.pods("app=web")
    mounted = tmp_path / "account"
    mounted.mkdir()
    for name in ("token", "ca.crt", "namespace"):
        (mounted / name).write_text(namespace.kubectl("exec", pod["metadata"]["name"], "--", "cat", f"{FOLDER}/{name}"))
    binary, words = kubectl(namespace.cluster)
    mounts = ("-v", f"{mounted}:{FOLDER}:ro", "-v", f"{binary}:/kubectl:ro")

    def asks(*command: str) -> subprocess.CompletedProcess[str]:
        return namespace.cli.run("run", *mounts, "-n", namespace.name, "deploy/web", TARGET_IMAGE, *words, *command)

    whoami = asks("auth", "whoami", "-o", "jsonpath={.status.userInfo.username} {.status.userInfo.extra}")
    assert whoami.returncode == 0, whoami.stderr
    assert whoami.stdout.startswith(f"system:serviceaccount:{namespace.name}:orders ")
    assert pod["metadata"]["name"] in whoami.stdout, "the token is bound to this pod"
    listed = asks("get", "pods", "-o", "name")
    assert listed.stdout.strip() == f"pod/{pod['metadata']['name']}", listed.stderr
    refused = asks("get", "secrets")
    assert f'User "system:serviceaccount:{namespace.name}:orders" cannot list resource "secrets"' in refused.stderr


def test_K05_a_request_to_the_api_server_comes_from_the_pods_address(namespace: Namespace) -> None:
    if not namespace.cluster.own:
        pytest.skip("lacks(a node of our own)")
    namespace.workload()
    (pod,) = namespace.pods("app=web")
    assert ip_of(pod) not in callers(namespace.cluster), "the pod itself does not ask the API server"
    with bridged(namespace, "deploy/web") as app:
        app.container.exec_run(["python3", "-c", HOLD], detach=True)
        eventually(lambda: callers(namespace.cluster), until=lambda seen: ip_of(pod) in seen)


# Asks, as anybody, and keeps the connection.
HOLD = """
import http.client, ssl, threading
client = http.client.HTTPSConnection("kubernetes.default.svc", context=ssl._create_unverified_context())
client.request("GET", "/version")
client.getresponse().read()
threading.Event().wait()"""


def callers(cluster: Cluster) -> set[str]:
    """Addresses of all who are connected to the API server now, as its own sockets have them."""
    server = (cluster.kubeconfig.parents[1] / "run" / "apiserver.pid").read_text()
    command = ["nsenter", "-t", server, "-n", "ss", "-Htn", "state", "established", "sport", "=", ":6443"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.splitlines()
    return {line.split()[-1].rpartition(":")[0].strip("[]").removeprefix("::ffff:") for line in lines}

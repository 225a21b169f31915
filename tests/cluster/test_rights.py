"""K6, K7, K10, K23: the Role that `doctor --role` prints is enough; a verb that is taken away is named by the error and by doctor."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from bridge.cli.kube_doctor import cluster_checks
from bridge.cli.looking import Where
from bridge.errors import AgentFailed, BridgeError, Forbidden
from bridge.model.rights import Right, needed, role
from bridge.model.target import parse_target
from bridge.model.wish import AppWish, SessionWish
from tests.cluster.kube import PUBLIC_KEY, TARGET_IMAGE, Namespace, bridged, ended
from tests.lab.boxes import Cli

TARGET = "deploy/web"
NEEDED = needed(parse_target(TARGET))
LEAST = tuple(right for right in NEEDED if right.without is None)


def user_with(namespace: Namespace, rights: tuple[Right, ...], folder: Path) -> str:
    """A kubeconfig of a ServiceAccount that has these rights in its namespace and no other anywhere."""
    namespace.kubectl("create", "serviceaccount", "dev", check=False)
    namespace.kubectl("delete", "role,rolebinding", "mbridge", "--ignore-not-found")
    namespace.kubectl("apply", "-f", "-", stdin=role(rights, namespace.name))
    namespace.kubectl("create", "rolebinding", "mbridge", "--role=mbridge", f"--serviceaccount={namespace.name}:dev")
    token = namespace.kubectl("create", "token", "dev").strip()
    value = YAML(typ="safe").load(namespace.cluster.kubeconfig.read_text())  # JSON is YAML too
    value["users"] = [{"name": value["users"][0]["name"], "user": {"token": token}}]
    file = folder / "dev.conf"
    file.write_text(json.dumps(value))
    return str(file)


def whole_start(namespace: Namespace, kubeconfig: str, target: str = TARGET, **wish: str) -> tuple[bytes, list[str]]:
    async def start() -> tuple[bytes, list[str]]:
        async with ended(namespace.place(target, kubeconfig=kubeconfig, **wish)) as place:
            await place.find()
            agent = await place.start_agent(PUBLIC_KEY, lambda _: None)
            (await place.dial(agent, ()))[1].close()
            environ = await place.environ()
            return environ.raw, [*place.warnings, *([environ.warning] if environ.warning else [])]

    return asyncio.run(start())


def doctor(namespace: Namespace, kubeconfig: str) -> str:
    """What it finds fault with."""
    wish = SessionWish(parse_target(TARGET), AppWish("none"), namespace=namespace.name, kubeconfig=kubeconfig)

    async def look() -> str:
        where = Where(namespace=namespace.name, kubeconfig=kubeconfig)
        return "; ".join([check.what async for check in cluster_checks(where, wish) if check.good is not True])

    return asyncio.run(look())


def test_K06_K07_the_documented_role_in_one_namespace_is_enough_for_a_whole_start(namespace: Namespace, tmp_path: Path) -> None:
    namespace.workload()
    kubeconfig = user_with(namespace, NEEDED, tmp_path)
    environ, warnings = whole_start(namespace, kubeconfig)
    assert b"FROM_IMAGE=image" in environ
    assert not warnings
    assert not doctor(namespace, kubeconfig)


def test_K06_without_what_is_optional_a_session_works_and_says_what_is_lost(namespace: Namespace, tmp_path: Path) -> None:
    namespace.workload()
    kubeconfig = user_with(namespace, LEAST, tmp_path)
    environ, warnings = whole_start(namespace, kubeconfig)
    assert b"FROM_SPEC=a\nb\0" in environ
    assert b"FROM_IMAGE" not in environ
    assert any("pods/exec" in warning for warning in warnings)
    said = doctor(namespace, kubeconfig)
    assert all(str(right) in said for right in NEEDED if right.without is not None)


@pytest.mark.parametrize("missing", [right for right in LEAST if right.resource != "pods/portforward"], ids=str)
def test_K06_each_needed_verb_that_is_taken_away_is_named_by_the_error_and_by_doctor(
    namespace: Namespace, tmp_path: Path, missing: Right
) -> None:
    namespace.workload()
    kubeconfig = user_with(namespace, tuple(right for right in LEAST if right != missing), tmp_path)
    with pytest.raises(Forbidden) as caught:
        whole_start(namespace, kubeconfig)
    assert (caught.value.verb, caught.value.resource, caught.value.namespace) == (missing.verb, missing.resource, namespace.name)
    assert str(missing) in doctor(namespace, kubeconfig)


@pytest.mark.parametrize("verbs", [("get",), ("create",), ("get", "create")], ids="+".join)
def test_K23_port_forward_with_only_get_only_create_or_both(namespace: Namespace, tmp_path: Path, verbs: tuple[str, ...]) -> None:
    """A WebSocket is a GET: every server asks for get, from 1.35 on for create too. What lacks is named as the server names it."""
    namespace.workload()
    rights = tuple(r for r in NEEDED if r.resource != "pods/exec" and (r.resource != "pods/portforward" or r.verb in verbs))
    kubeconfig = user_with(namespace, rights, tmp_path)
    server = json.loads(namespace.kubectl("version", "-o", "json"))["serverVersion"]
    asked_for = {"get"} if int(server["minor"].rstrip("+")) < 35 else {"get", "create"}
    if lacking := asked_for - set(verbs):
        with pytest.raises(Forbidden) as caught:
            whole_start(namespace, kubeconfig, via="port-forward")
        assert (caught.value.resource, {caught.value.verb}) == ("pods/portforward", lacking)
    else:
        assert whole_start(namespace, kubeconfig, via="port-forward")[0]


def test_K23_without_any_way_to_the_agent_a_start_ends_with_the_verb_that_lacks(namespace: Namespace, tmp_path: Path) -> None:
    namespace.workload()
    kubeconfig = user_with(namespace, tuple(r for r in NEEDED if r.resource not in ("pods/exec", "pods/portforward")), tmp_path)
    options = ("--kubeconfig", kubeconfig, "-n", namespace.name)
    for code, words in ((125, ("run", *options, TARGET, TARGET_IMAGE, "true")), (4, ("forward", *options, TARGET, "0:8080"))):
        done = namespace.cli.run(*words, limit_s=30)
        assert done.returncode == code
        assert f"mbridge: error: not allowed to get pods/portforward in namespace '{namespace.name}'" in done.stderr
        assert "mbridge: hint: " in done.stderr
        assert namespace.cli.status() == []


def test_K23_exec_takes_over_where_port_forward_is_forbidden(namespace: Namespace, tmp_path: Path) -> None:
    namespace.workload()
    kubeconfig = user_with(namespace, tuple(right for right in NEEDED if right.resource != "pods/portforward"), tmp_path)
    assert whole_start(namespace, kubeconfig)[0]


def test_K06_targetless_asks_for_pods_alone(namespace: Namespace, tmp_path: Path) -> None:
    rights = tuple(right for right in needed(parse_target("targetless")) if right.without is None)
    assert not any("ephemeral" in right.resource for right in rights)
    whole_start(namespace, user_with(namespace, rights, tmp_path), "targetless")


def test_K10_without_the_right_to_list_events_the_containers_own_state_tells_why_it_does_not_start(
    namespace: Namespace, tmp_path: Path
) -> None:
    rights = tuple(right for right in needed(parse_target("targetless")) if right.resource != "events")
    began = time.monotonic()
    with pytest.raises(AgentFailed, match=r"connect: connection refused") as caught:
        whole_start(namespace, user_with(namespace, rights, tmp_path), "targetless", agent_image="127.0.0.1:1/nothing:1")
    assert time.monotonic() - began < 15
    assert "--agent-image" in str(caught.value.hint)


def test_K06_a_user_without_any_right_is_told_the_first_verb(namespace: Namespace, tmp_path: Path) -> None:
    namespace.workload()
    kubeconfig = user_with(namespace, (replace(LEAST[0], resource="pods/status"),), tmp_path)
    with pytest.raises(BridgeError, match=f"not allowed to get deployments in namespace '{namespace.name}'") as caught:
        whole_start(namespace, kubeconfig)
    assert caught.value.hint == f"kubectl auth can-i get deployments -n {namespace.name}"


def test_K06_logs_without_the_right_to_read_them_names_it_and_shows_the_other_parts(namespace: Namespace, tmp_path: Path) -> None:
    namespace.workload()
    cli = Cli(namespace.state, {"KUBECONFIG": user_with(namespace, NEEDED, tmp_path)})
    with bridged(namespace, TARGET, cli=cli):
        assert "agent  | mbridge-agent 1 " in cli.run("logs").stdout
        kept = tuple(right for right in NEEDED if right.resource != "pods/log")
        namespace.kubectl("apply", "-f", "-", stdin=role(kept, namespace.name))
        shown = namespace.until("the right to be gone", lambda: (done := cli.run("logs")).returncode and done)
    assert shown.returncode == 4
    assert "bridge | " in shown.stdout
    assert f"mbridge: error: not allowed to get pods/log in namespace '{namespace.name}'" in shown.stderr
    assert f"mbridge: hint: kubectl auth can-i get pods --subresource=log -n {namespace.name}" in shown.stderr


def test_K01_ls_leaves_out_and_names_what_may_not_be_listed(namespace: Namespace, tmp_path: Path) -> None:
    namespace.workload()
    listing = (Right("list", "pods", "run"), Right("list", "deployments", "run", "apps"))
    cli = Cli(namespace.state, {"KUBECONFIG": user_with(namespace, listing, tmp_path)})
    all_kinds = cli.run("ls", "-n", namespace.name)
    assert all_kinds.returncode == 0
    assert "deploy/web" in all_kinds.stdout
    left_out = f"left out, since you may not list them in namespace '{namespace.name}': sts, ds, rs, job, cronjob, svc\n"
    assert left_out in all_kinds.stderr
    one = cli.run("ls", "statefulsets", "-n", namespace.name)
    assert one.returncode == 4
    assert f"mbridge: error: not allowed to list statefulsets in namespace '{namespace.name}'" in one.stderr


def test_K16_a_namespace_that_does_not_exist_is_told_by_ls_and_doctor(namespace: Namespace) -> None:
    said = "namespace 'mb-nowhere' does not exist"
    listed = namespace.cli.run("ls", "deploy", "-n", "mb-nowhere")
    assert (listed.returncode, listed.stdout) == (4, "")
    assert f"mbridge: error: {said}\nmbridge: hint: kubectl get namespaces" in listed.stderr
    looked = namespace.cli.run("doctor", "deploy/web", "-n", "mb-nowhere")
    assert looked.returncode == 3
    assert f"✗ namespace   {said}" in looked.stdout
    assert "rights" not in looked.stdout


def test_K06_doctor_of_a_namespace_alone_looks_at_the_rights_for_any_kind_of_target(namespace: Namespace, tmp_path: Path) -> None:
    cli = Cli(namespace.state, {"KUBECONFIG": user_with(namespace, NEEDED, tmp_path)})
    looked = cli.run("doctor", "-n", namespace.name)
    assert looked.returncode == 3
    assert "get statefulsets" in looked.stdout
    assert f"→ mbridge doctor -n {namespace.name} --role prints the Role" in looked.stdout
    asked = cli.run("doctor", "-n", namespace.name, "--role")
    namespace.kubectl("apply", "-f", "-", stdin=asked.stdout)
    assert cli.run("doctor", "-n", namespace.name).returncode == 0

"""The user's line, from end to end: what an app sees that `mbridge run` has bridged to a pod. K3 to K5, K17, K19, and A1 to A3, A14, A15,
A18, A24 to A26, A31 to A35 as a pod gives them; tests/cluster/test_shared.py has the rest of A."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.cli.kube_logs import PodLog
from tests.cluster.kube import TARGET_IMAGE, App, Namespace, bridged, container, service, workload
from tests.lab.boxes import eventually


def ip_of(pod: dict[str, object], version: int = 4) -> str:
    status = pod["status"]
    assert isinstance(status, dict)
    address = next((str(one["ip"]) for one in status["podIPs"] if (":" in one["ip"]) == (version == 6)), None)
    if address is None:
        pytest.skip(f"lacks(pods with IPv{version})")
    return address


def test_K03_the_users_line_runs_a_program_as_if_it_were_in_the_pod(namespace: Namespace) -> None:
    namespace.deployments("orders", "peer")
    namespace.apply(service("peer"))
    (before,) = namespace.pods("app=orders")
    program = "import socket; s = socket.create_connection(('peer', 8080)); print(s.makefile().readline(), end='')"
    done = namespace.cli.run("run", "deploy/orders", "-n", namespace.name, TARGET_IMAGE, "python3", "-c", program)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    (after,) = namespace.pods("app=orders")
    assert answer["host"].startswith("peer-")
    assert answer["peer"] == ip_of(before), "the peer sees the pod's own address"
    assert after["status"]["containerStatuses"] == before["status"]["containerStatuses"]


@pytest.fixture(scope="module", params=["auto", "exec", "direct"])
def app(request: pytest.FixtureRequest, shared_namespace: Namespace) -> Iterator[App]:
    """Bridged to deploy/web, with deploy/peer beside it; once by each carrier. Tests only look through it."""
    namespace = shared_namespace
    namespace.apply(workload("Deployment", "peer", {"hostname": "fixed", "subdomain": "headless"}))
    namespace.apply(service("peer", ipFamilyPolicy="PreferDualStack"), service("headless", {"app": "peer"}, clusterIP="None"))
    namespace.apply(service("other", type="ExternalName", externalName=f"peer.{namespace.name}.svc.cluster.local"))
    namespace.workload("Deployment", "web")
    namespace.ready("app=peer")
    with bridged(namespace, "deploy/web", "--via", request.param) as app:
        yield app


def test_K04_K17_what_a_pod_reaches_by_name_and_address_the_app_reaches(shared_namespace: Namespace, app: App) -> None:
    (web,), (peer,) = shared_namespace.pods("app=web"), shared_namespace.pods("app=peer")
    cluster_ips = shared_namespace.get("service", "peer")["spec"]["clusterIPs"]
    whole = f"{shared_namespace.name}.svc.cluster.local"
    names = ["peer", f"peer.{shared_namespace.name}", f"peer.{whole}", f"peer.{whole}.", "headless", "other", f"fixed.headless.{whole}"]
    for name in [*names, *cluster_ips, ip_of(peer), ip_of(peer, 6)]:
        answer = app.asks(name)
        own = ip_of(web, 6 if ":" in answer["peer"] else 4)
        assert answer["peer"] == own, name
        assert answer["sockname"] == own, name


def test_A03_A14_A15_A25_A26_errors_datagrams_and_records_are_a_pods(shared_namespace: Namespace, app: App) -> None:
    (web,), (peer,) = shared_namespace.pods("app=web"), shared_namespace.pods("app=peer")
    seen = app.python(f"""
import json, socket, time
seen = {{}}
began = time.monotonic()
try:
    socket.create_connection(({ip_of(peer)!r}, 9), 5)
except OSError as error:
    seen["closed"] = [type(error).__name__, time.monotonic() - began]
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); udp.settimeout(5)
udp.sendto(b"x" * 1400, ("headless", 8080))
data, source = udp.recvfrom(65536)
seen["udp"] = [json.loads(data), source[0]]
udp.connect(({ip_of(peer)!r}, 9)); udp.send(b"x")
try:
    udp.recv(1)
except OSError as error:
    seen["udp closed"] = type(error).__name__
try:
    socket.getaddrinfo("nothing.{shared_namespace.name}.svc.cluster.local", 80)
except socket.gaierror as error:
    seen["nothing"] = error.errno == socket.EAI_NONAME
print(json.dumps(seen))""")
    assert seen["closed"][0] == "ConnectionRefusedError"
    assert seen["closed"][1] < 1
    assert seen["udp"][0]["peer"] == ip_of(web)
    assert seen["udp"][0]["bytes"] == 1400
    assert seen["udp closed"] == "ConnectionRefusedError"
    assert seen["nothing"] is True


def test_K04_the_api_server_sees_nobody_of_the_developers(namespace: Namespace) -> None:
    namespace.workload()
    with bridged(namespace, "deploy/web") as app:
        answer = app.python("""
import json, ssl, urllib.error, urllib.request
context = ssl._create_unverified_context()
try:
    urllib.request.urlopen("https://kubernetes.default/api/v1/secrets", context=context, timeout=10)
except urllib.error.HTTPError as error:
    print(error.read().decode())""")
    assert answer["code"] == 403
    assert 'User "system:anonymous"' in answer["message"]


def test_A31_A32_A33_environment_hostname_and_exit_code_are_as_in_the_pod(namespace: Namespace) -> None:
    namespace.workload()
    (pod,) = namespace.pods("app=web")
    program = "import json, os, socket; print(json.dumps([dict(os.environ), socket.gethostname(), open('/etc/hostname').read()])); exit(7)"
    done = namespace.cli.run("run", "deploy/web", "-n", namespace.name, "-e", "MINE=1", TARGET_IMAGE, "python3", "-c", program)
    assert done.returncode == 7
    environ, hostname, file = json.loads(done.stdout)
    assert environ["FROM_SPEC"] == "a\nb"
    assert environ["KUBERNETES_SERVICE_HOST"]
    assert environ["MINE"] == "1"
    assert hostname == file.strip() == pod["metadata"]["name"]


def test_A18_a_mapped_port_reaches_the_pods_loopback_and_all_others_stay_the_apps(namespace: Namespace, tmp_path: Path) -> None:
    namespace.workload()
    (pod,) = namespace.pods("app=web")
    settings = tmp_path / "mbridge.yaml"
    settings.write_text("outgoing: {loopback: [9092]}")
    with bridged(namespace, "deploy/web", "--config", str(settings)) as app:
        assert app.asks("127.0.0.1", 9092)["host"] == pod["metadata"]["name"]
        assert app.run("python3", "-c", "import socket; socket.create_connection(('127.0.0.1', 8080))").code != 0


def test_A35_two_sessions_share_one_agent_and_end_apart(namespace: Namespace) -> None:
    namespace.deployments("web", "peer")
    (peer,) = namespace.pods("app=peer")
    with bridged(namespace, "deploy/web") as first:
        second = namespace.cli.run("run", "deploy/web", "-n", namespace.name, TARGET_IMAGE, "true")
        assert second.returncode == 0, second.stderr
        assert first.asks(ip_of(peer))["host"] == peer["metadata"]["name"]
        (pod,) = namespace.pods("app=web")
        assert len(pod["spec"]["ephemeralContainers"]) == 1


def test_K02_a_targetless_session_reaches_the_namespace_and_leaves_no_pod(namespace: Namespace) -> None:
    namespace.workload()
    namespace.apply(service("web"))
    program = "import socket; s = socket.create_connection(('web', 8080)); print(s.makefile().readline(), end='')"
    done = namespace.cli.run("run", "targetless", "-n", namespace.name, TARGET_IMAGE, "python3", "-c", program)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["host"].startswith("web-")
    namespace.until("no helper pod", lambda: not namespace.pods("mbridge.role=agent"))


@pytest.mark.parametrize("held_mib", [120, 0])
def test_a_pod_with_little_memory_left_is_told_of_in_one_line_and_the_session_starts(namespace: Namespace, held_mib: int) -> None:
    """200 MiB in all; what the target itself holds decides."""
    holding = ["python3", "-c", f"held = bytearray({held_mib} << 20); held[::4096] = b'x' * len(held[::4096]); print('held', flush=True)\n"
               "import signal; signal.pause()"]  # fmt: skip
    namespace.workload(pod={"containers": [container(command=holding, resources={"limits": {"memory": "200Mi"}})]})
    (pod,) = namespace.pods("app=web")
    name = pod["metadata"]["name"]
    namespace.until("the memory to be held", lambda: "held" in namespace.kubectl("logs", name))
    done = namespace.cli.run("run", "deploy/web", "-n", namespace.name, TARGET_IMAGE, "true")
    assert done.returncode == 0, done.stderr
    warned = re.findall(
        r"mbridge: warning: pod (\S+): (\d+) of its 200 MiB of memory are free, and the agent takes up to 82: raise", done.stderr
    )
    looked = namespace.cli.run("doctor", "deploy/web", "-n", namespace.name).stdout
    with bridged(namespace, "deploy/web") as app:  # the agent is used again
        kept = app.status()["warnings"]
        shown = namespace.cli.run("status").stdout
        app.process.send_signal(signal.SIGTERM)
        said = app.process.communicate(timeout=30)[1].decode()
    assert f"agent: {namespace.pods('app=web')[0]['spec']['ephemeralContainers'][0]['name']} " in said, "no other was made"
    if held_mib:
        assert f"  warning: pod {name}: " in shown
        assert [text for text in kept if text.startswith(f"pod {name}: ") and "of its 200 MiB" in text], kept
        assert said.count(f"mbridge: warning: pod {name}: ") == 1
        assert [pod for pod, _ in warned] == [name]
        assert 60 < int(warned[0][1]) < 80
        assert f"! memory      pod {name}: " in looked
        assert "→ raise the limit, or --agent pod" in looked
    else:
        assert "of memory" not in f"{done.stderr}{said}{shown}{kept}"
        assert f"✓ memory      pod {name}: 1" in looked


def test_K02_a_forward_by_a_helper_pod_serves_and_tells_what_it_has_not_of_the_target(namespace: Namespace) -> None:
    namespace.workload()
    (web,) = namespace.pods("app=web")
    where = ("--agent", "pod", "-n", namespace.name)
    forward = namespace.cli.start("forward", *where, "deploy/web", f"0:{ip_of(web)}:8080")
    try:
        assert forward.stdout is not None
        here = re.search(rb"127\.0\.0\.1:(\d+)", forward.stdout.readline())
        assert here is not None
        with socket.create_connection(("127.0.0.1", int(here[1])), 10) as sock:
            answer = json.loads(sock.makefile().readline())
        assert answer["host"] == web["metadata"]["name"]
        (helper,) = namespace.pods("mbridge.role=agent")
        assert answer["peer"] == ip_of(helper)
        (status,) = namespace.cli.status()
        (warning,) = status["warnings"]
        assert warning.startswith(f"helper pod {helper['metadata']['name']}: its own address")
    finally:
        forward.send_signal(signal.SIGINT)
        _, said = forward.communicate(timeout=30)
    assert said.decode().count(f"mbridge: warning: {warning}") == 1
    namespace.until("no helper pod", lambda: not namespace.pods("mbridge.role=agent"))


def test_logs_hold_the_agents_lines_out_of_its_pod_as_they_come(namespace: Namespace) -> None:
    namespace.workload()
    with bridged(namespace, "deploy/web"):
        shown = namespace.cli.run("logs")
        assert shown.returncode == 0, shown.stderr
        parts = [line.partition("|")[0].strip() for line in shown.stdout.splitlines()]
        assert list(dict.fromkeys(parts)) == ["host", "bridge", "agent"]
        assert "agent | mbridge-agent 1 " in namespace.cli.run("logs", "--part", "agent").stdout, "its very first line"
        assert len(namespace.cli.run("logs", "--part", "agent", "--tail", "1").stdout.splitlines()) == 1
        following = namespace.cli.start("logs", "--part", "agent", "-f")
        assert following.stdout is not None
        assert b"mbridge-agent 1 " in following.stdout.readline()
        lines = iter(following.stdout)
        assert any(b"agent | " in line and b"= link" in line for line in lines)
        second = namespace.cli.run("run", "deploy/web", "-n", namespace.name, TARGET_IMAGE, "true")
        assert second.returncode == 0, second.stderr
        assert any(b"= link" in line for line in lines), "the same agent's next link, while it is followed"
        following.send_signal(signal.SIGINT)
        assert following.wait(10) == 130


def test_K12_followed_logs_go_on_with_the_next_agent_in_the_same_pod_and_in_another_until_the_session_ends(namespace: Namespace) -> None:
    namespace.workload()
    with bridged(namespace, "deploy/web") as app:
        following = namespace.cli.start("logs", "--part", "agent", "-f")
        lines = iter(following.stdout or ())
        assert any(b"= link: a bridge has proven" in line for line in lines)
        (pod,) = namespace.pods("app=web")
        first = pod["spec"]["ephemeralContainers"][0]["name"]
        namespace.kubectl("exec", pod["metadata"]["name"], "-c", first, "--", "/opt/mbridge/bin/python", "-c", "import os; os.kill(1, 15)")
        assert any(b"agent | mbridge-agent 1 " in line for line in lines), "another container's first words"
        second = eventually(lambda: app.status()["agent"], lambda name: name != first)
        assert any(b"= link: a bridge has proven" in line for line in lines)
        namespace.kubectl("delete", "pod", pod["metadata"]["name"], "--wait=false")
        assert any(b"agent | mbridge-agent 1 " in line for line in lines), "another pod's"
        assert any(b"= link: a bridge has proven" in line for line in lines)
        third = app.status()["agent"]
        other = next(one["metadata"]["name"] for one in namespace.pods("app=web") if one["metadata"]["uid"] != pod["metadata"]["uid"])
        app.process.send_signal(signal.SIGTERM)
        _, told = following.communicate(timeout=20)
    assert following.returncode == 0, "with the session, not with the agent's TTL"
    places = [f"{second} in pod {pod['metadata']['name']}", f"{third} in pod {other}"]
    assert told.decode().splitlines() == [f"mbridge: the agent was made anew: {place}; its log goes on here" for place in places]


def test_K12_a_log_whose_connection_broke_is_read_on_where_it_ended(namespace: Namespace) -> None:
    """Within one second, to which the API server rounds the time that it is asked for."""
    namespace.workload()
    with bridged(namespace, "deploy/web") as app:
        place = {"kubeconfig": str(namespace.cluster.kubeconfig), "namespace": namespace.name}
        log = PodLog(place, app.session, lambda: app.status()["agent"])

        async def look() -> list[str]:
            return [line async for line in log.lines(False, None, lambda which: None)]

        seen = asyncio.run(look())
        second = namespace.cli.run("run", "deploy/web", "-n", namespace.name, TARGET_IMAGE, "true")
        assert second.returncode == 0, second.stderr
        seen += asyncio.run(look())
        (pod,) = namespace.pods("app=web")
        whole = namespace.kubectl("logs", pod["metadata"]["name"], "-c", app.status()["agent"]).splitlines()
        seen += [line for _ in range(2) for line in asyncio.run(look())]
        assert whole[0].startswith("mbridge-agent 1 ")
        assert seen[: len(whole)] == whole


def test_a_failure_before_the_app_is_one_line_a_hint_and_125(namespace: Namespace) -> None:
    namespace.workload()
    began = time.monotonic()
    done = namespace.cli.run("run", "deploy/wbe", "-n", namespace.name, TARGET_IMAGE, "true")
    assert done.returncode == 125
    assert f"mbridge: error: deploy/wbe not found in namespace '{namespace.name}'" in done.stderr
    assert "mbridge: hint: did you mean deploy/web" in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - began < 5

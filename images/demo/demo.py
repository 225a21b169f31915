"""`./dev demo`: the target of compose.yaml on this engine, and a program bridged to it.

    demo.py [--kubernetes] [--down]

It drives the engine itself, from the compose file and with compose's own labels, because the compose plugin is not
everywhere; what `docker compose up` has started already is used as it is. Nothing of mbridge is imported: the demo calls the
command as a user does, and says which.

Limits: knows the keys that compose.yaml uses.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import docker
import docker.errors
from ruamel.yaml import YAML

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MBRIDGE = Path(sys.executable).with_name("mbridge")
CLUSTER = ROOT / "tests" / "cluster" / "cluster"
NAMESPACE = "mbridge-demo"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mbridge"
AUTHORITY = Path(os.environ.get("MBRIDGE_CLUSTER") or CACHE / "cluster") / "etc" / "ca.crt"  # new with each start of the cluster
STARTED = CACHE / "demo-cluster"  # the authority of the cluster that the demo started: any other is not the demo's to end
READY = {
    "db": ["psql", "-U", "postgres", "-c", "SELECT 1"],
    "cache": ["redis-cli", "PING"],
    "stock": ["curl", "-fsS", "http://127.0.0.1:8000/"],
    "shop": ["curl", "-fsS", "http://127.0.0.1:8000/"],
}


def main(args: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="./dev demo")
    parser.add_argument("--kubernetes", action="store_true", help="in the project's own one-node cluster, started where it does not run")
    parser.add_argument("--down", action="store_true", help="remove what the demo made")
    options = parser.parse_args(args)
    client = docker.from_env(timeout=600)
    if options.kubernetes:
        return kubernetes_down() if options.down else kubernetes_up(client)
    compose = YAML(typ="safe").load((ROOT / "compose.yaml").read_text())
    if options.down:
        down(client, compose)
        return 0
    up(client, compose)
    return show(compose)


def say(text: str) -> None:
    print(f"demo: {text}", file=sys.stderr, flush=True)


# the target's side


def up(client: docker.DockerClient, compose: dict[str, Any]) -> None:
    project = compose["name"]
    build(client, compose["services"]["shop"]["image"])
    network = f"{project}_inside"
    if not client.networks.list(names=[network]):
        say(f"network {network}: internal, nothing else reaches it")
        labels = {"com.docker.compose.project": project, "com.docker.compose.network": "inside"}
        client.networks.create(network, internal=compose["networks"]["inside"]["internal"], labels=labels)
    for name, service in sorted(compose["services"].items(), key=lambda item: len(item[1].get("depends_on", []))):
        start(client, project, network, name, service)
    for name, question in READY.items():
        wait(client, f"{project}-{name}-1", question)


def build(client: docker.DockerClient, image: str) -> None:
    """The engine's own layer cache makes a second call quick."""
    make_base(client)
    say(f"image {image} from images/demo (a minute the first time)")
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as tar:
        for name in ("Dockerfile", "orders.sql", "web.py"):
            tar.add(HERE / name, name, filter=plain)
    context.seek(0)
    try:
        client.images.build(fileobj=context, custom_context=True, tag=image, rm=True, forcerm=True, labels={"mbridge.test": "demo"})
    except docker.errors.BuildError as error:
        last = [str(line.get("stream", line.get("error", ""))).rstrip() for line in error.build_log]
        sys.exit("\n".join(["demo: error: building the image failed", *last[-8:]]))


def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """The same layer from every checkout: the files' owners and times are left out."""
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    member.mode = 0o644
    return member


def make_base(client: docker.DockerClient) -> None:
    """mbridge's own images bring the base image with them, pulled or made."""
    if subprocess.run([MBRIDGE, "images", "build"], stdout=subprocess.DEVNULL, check=False).returncode:
        sys.exit(1)


def start(client: docker.DockerClient, project: str, network: str, name: str, service: dict[str, Any]) -> None:
    container_name = f"{project}-{name}-1"
    with contextlib.suppress(docker.errors.NotFound):
        found = client.containers.get(container_name)
        if found.status == "running" and found.image == client.images.get(service["image"]):
            return
        found.remove(force=True)
    say(f"container {container_name}: {' '.join(service['command'][:3])}")
    labels = {
        "com.docker.compose.project": project,
        "com.docker.compose.service": name,
        "com.docker.compose.container-number": "1",
        "com.docker.compose.oneoff": "False",
    }
    api = client.api
    made = api.create_container(
        service["image"],
        service["command"],
        name=container_name,
        user=service.get("user"),
        hostname=service.get("hostname"),
        environment=service.get("environment"),
        labels=labels,
        host_config=api.create_host_config(network_mode=network),
        networking_config=api.create_networking_config({network: api.create_endpoint_config(aliases=[name])}),
    )
    api.start(made["Id"])


def wait(client: docker.DockerClient, container_name: str, question: list[str]) -> None:
    container = client.containers.get(container_name)
    ended = time.monotonic() + 30
    while container.exec_run(question).exit_code:
        if time.monotonic() > ended:
            sys.exit(f"demo: error: {container_name} does not answer: {container.logs(tail=5).decode(errors='replace')}")
        time.sleep(0.2)


def down(client: docker.DockerClient, compose: dict[str, Any]) -> None:
    project = compose["name"]
    for container in client.containers.list(all=True, filters={"label": f"com.docker.compose.project={project}"}):
        say(f"removing {container.name}")
        container.remove(force=True, v=True)
    for network in client.networks.list(names=[f"{project}_inside"]):
        network.remove()


# the developer's side


def show(compose: dict[str, Any]) -> int:
    image, shown = compose["services"]["shop"]["image"], os.path.relpath(HERE)
    program = ["python3", "app.py"]
    mounted = ["-v", f"{HERE}:/src", "-w", "/src"]
    print(file=sys.stderr)
    say("first without mbridge, as a container of its own: nothing of the shop's network is there")
    subprocess.run([sys.executable, "-c", _PLAIN_RUN, image, str(HERE)], check=False)
    print(file=sys.stderr)
    say("now with mbridge: the same program, the same image")
    target = f"compose/{compose['name']}/shop"
    print(f'\n$ mbridge run {target} -v "$PWD/{shown}:/src" -w /src {image} {" ".join(program)}', flush=True)
    return close(subprocess.run([MBRIDGE, "run", target, *mounted, image, *program], check=False).returncode, "./dev demo --down")


def close(code: int, down_command: str) -> int:
    print()
    if code == 0:
        say("it had the shop's name, address, environment and DNS. Try your own image in place of it; `mbridge --help` shows more")
        say(f"the target goes on running; {down_command} removes it")
    else:
        say(f"mbridge run ended with {code}; `mbridge doctor` looks for the reason")
    return code


# in a cluster


def kubernetes_up(client: docker.DockerClient) -> int:
    """The project's own one-node cluster, the shop in it, and the same program bridged to its pod."""
    build(client, NAMESPACE)
    client.images.get(NAMESPACE).tag(NAMESPACE, "demo")  # `latest` would be pulled
    before = authority()
    if before is None:
        say("a one-node cluster of the project's own (its binary is compiled once, 5 minutes; then 10 s)")
    kubeconfig = cluster("up").split()[-1]
    if authority() != before:
        STARTED.write_text(authority() or "")
    images = json.loads(subprocess.check_output([MBRIDGE, "images", "ls", "--json"]))
    agent = next(image["name"] for image in images if image["which"] == "agent")
    cluster("load", f"{NAMESPACE}:demo", agent)
    if NAMESPACE not in cluster("kubectl", "get", "namespaces", "-o", "name"):
        cluster("kubectl", "create", "namespace", NAMESPACE)
    say(f"the shop in namespace {NAMESPACE}: four deployments, three services, a secret")
    cluster("kubectl", "apply", "-n", NAMESPACE, "-f", str(HERE / "kubernetes.yaml"))
    cluster("kubectl", "wait", "-n", NAMESPACE, "--for=condition=Available", "--timeout=90s", "deploy", "--all")
    command = ["run", "deploy/shop", "-n", NAMESPACE, "-v", f"{HERE}:/src", "-w", "/src", NAMESPACE, "python3", "app.py"]
    shown = f'-v "$PWD/{os.path.relpath(HERE)}:/src" -w /src {NAMESPACE} python3 app.py'
    print(f"\n$ export KUBECONFIG={kubeconfig}\n$ mbridge run deploy/shop -n {NAMESPACE} {shown}", flush=True)
    done = subprocess.run([MBRIDGE, *command], env={**os.environ, "KUBECONFIG": kubeconfig}, check=False)
    return close(done.returncode, "./dev demo --kubernetes --down")


def kubernetes_down() -> int:
    """The whole cluster where the demo started it; else, since others use it, the demo's namespace alone."""
    now = authority()
    if now is None:
        say("the cluster does not run")
    elif STARTED.exists() and STARTED.read_text() == now:
        say("ending the cluster that the demo started, with all that is in it")
        cluster("down")
    else:
        say(f"removing namespace {NAMESPACE}; the cluster ran before the demo and goes on")
        cluster("kubectl", "delete", "namespace", NAMESPACE, "--ignore-not-found")
    STARTED.unlink(missing_ok=True)
    return 0


def authority() -> str | None:
    """What tells one start of the cluster from another; None where there is none."""
    return AUTHORITY.read_text() if AUTHORITY.exists() else None


def cluster(*words: str) -> str:
    done = subprocess.run([CLUSTER, *words], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"demo: error: {' '.join(['cluster', *words])} ended with {done.returncode}")
    return done.stdout


# docker run, for machines that have the engine and no docker command
_PLAIN_RUN = """
import sys, docker
image, folder = sys.argv[1:]
client = docker.from_env()
made = client.containers.create(image, ["python3", "app.py"], working_dir="/src", volumes=[f"{folder}:/src:ro"])
try:
    made.start()
    made.wait()
    sys.stdout.write(made.logs().decode(errors="replace"))
finally:
    made.remove(force=True)
"""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

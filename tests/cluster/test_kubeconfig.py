"""K16, and K12's expired tokens: a kubeconfig means what it means to kubectl, and each fault in it is told in kubectl's terms or better."""

from __future__ import annotations

import base64
import datetime
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.cluster.kube import TARGET_IMAGE, Cluster, Namespace
from tests.cluster.kubeconfigs import Kubeconfig
from tests.lab.boxes import Cli
from tests.lab.relay import HttpProxy

NOT_THERE = "127.0.0.1:1"


@pytest.fixture
def config(cluster: Cluster, tmp_path: Path) -> Kubeconfig:
    return Kubeconfig.of(cluster, tmp_path)


@dataclass(frozen=True)
class Said:
    error: str
    hint: str
    seconds: float


def refused(namespace: Namespace, *options: str, **environ: str) -> Said:
    """What `mbridge env` says; exit 4."""
    cli = Cli(namespace.state, environ)
    began = time.monotonic()
    done = cli.run("env", "deploy/web", "-n", namespace.name, *options)
    seconds = time.monotonic() - began
    assert done.returncode == 4, done.stderr
    said = dict(line.removeprefix("mbridge: ").split(": ", 1) for line in done.stderr.splitlines() if ": " in line)
    assert "Traceback" not in done.stderr
    return Said(said["error"], said["hint"], seconds)


@pytest.fixture
def silent() -> Iterator[str]:
    """HOST:PORT of a server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


# Certificates, tokens, contexts, files


def test_K16_an_expired_client_certificate_is_told_with_its_date(namespace: Namespace, config: Kubeconfig) -> None:
    authority = namespace.cluster.kubeconfig.with_name("ca.key")
    if not namespace.cluster.own or not authority.exists():
        pytest.skip("lacks(a certificate authority of our own)")
    ended = datetime.datetime.now(datetime.UTC).replace(microsecond=0, second=0) - datetime.timedelta(hours=1)
    certificate, key = certificate_until(ended, authority)
    for name, data in (("client-certificate", certificate), ("client-key", key)):
        config.user.pop(name, None)
        config.user[f"{name}-data"] = base64.b64encode(data).decode()
    said = refused(namespace, "--kubeconfig", str(file := config.write()))
    user = config.value["users"][0]["name"]
    assert said.error == f"the client certificate of user '{user}' has expired on {ended:%Y-%m-%d %H:%M} UTC"
    assert said.hint == f"renew it in {file}"


def certificate_until(ended: datetime.datetime, authority: Path) -> tuple[bytes, bytes]:
    """An administrator's, of the cluster's own authority, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    ca = x509.load_pem_x509_certificate(authority.with_suffix(".crt").read_bytes())
    ca_key = serialization.load_pem_private_key(authority.read_bytes(), None)
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    names = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "system:masters"), x509.NameAttribute(NameOID.COMMON_NAME, "ana")]
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(names))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(ended - datetime.timedelta(days=1))
        .not_valid_after(ended)
        .sign(ca_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    whole = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return made.public_bytes(pem), whole


def test_K16_a_wrong_context_is_told_with_those_that_there_are(namespace: Namespace, config: Kubeconfig) -> None:
    file = config.write()
    (context,) = (one["name"] for one in config.value["contexts"])
    said = refused(namespace, "--context", "elsewhere", KUBECONFIG=str(file))
    assert said.error == f"context 'elsewhere' does not exist in {file}"
    assert said.hint == f"contexts there: {context}"
    assert refused(namespace, "--context", f"{context}x", KUBECONFIG=str(file)).hint == f"did you mean '{context}'"


def test_K16_without_any_kubeconfig_the_files_that_were_looked_for_are_named(namespace: Namespace, tmp_path: Path) -> None:
    said = refused(namespace, HOME=str(tmp_path), KUBECONFIG="")
    assert said.error == f"no kubeconfig: {tmp_path}/.kube/config does not exist"
    assert "KUBECONFIG" in said.hint
    said = refused(namespace, HOME=str(tmp_path), KUBECONFIG=f"{tmp_path}/a:{tmp_path}/b")
    assert said.error == f"no kubeconfig: {tmp_path}/a, {tmp_path}/b does not exist"


def test_K16_several_files_are_one_kubeconfig(namespace: Namespace, config: Kubeconfig, tmp_path: Path) -> None:
    """Cluster, user and context in a file each, certificates beside the file that names them, one file missing."""
    namespace.workload()
    names = []
    for number, (kind, entry) in enumerate((("clusters", config.cluster), ("users", config.user), ("contexts", {}))):
        folder = tmp_path / kind
        folder.mkdir()
        for key in ("certificate-authority", "client-certificate", "client-key"):
            if key in entry:
                data = namespace.cluster.kubeconfig.parent / entry[key]
                (folder / f"{key}.pem").write_bytes(data.read_bytes())
                entry[key] = f"{key}.pem"
        part = {kind: config.value[kind], "current-context": config.value["current-context"] if kind == "contexts" else ""}
        names += [str(folder / "config"), str(tmp_path / f"missing{number}")]
        Path(names[-2]).write_text(json.dumps(part))
    done = Cli(namespace.state, {"KUBECONFIG": ":".join(names)}).run("run", "deploy/web", "-n", namespace.name, TARGET_IMAGE, "hostname")
    assert done.returncode == 0, done.stderr
    (pod,) = namespace.pods("app=web")
    assert done.stdout.strip() == pod["metadata"]["name"]


def test_K16_an_api_server_that_is_away_is_named_within_five_seconds(namespace: Namespace, config: Kubeconfig, silent: str) -> None:
    seconds = []
    for server, cause in ((f"https://{NOT_THERE}", "connection refused"), (f"https://{silent}", "no answer in time")):
        config.cluster["server"] = server
        said = refused(namespace, "--kubeconfig", str(config.write()))
        assert said.error == f"unable to connect to the server {server}: {cause}"
        seconds.append(said.seconds)
    assert seconds[1] - seconds[0] < 5, "less what the command itself takes, on a machine that is busy"


def test_K16_a_foreign_certificate_authority_is_named(namespace: Namespace, config: Kubeconfig, tmp_path: Path) -> None:
    ca = tmp_path / "ca.crt"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", tmp_path / "k", "-out", ca, "-subj", "/CN=x"],
                   check=True, capture_output=True)  # fmt: skip
    config.cluster.pop("certificate-authority-data", None)
    config.cluster["certificate-authority"] = str(ca)
    said = refused(namespace, "--kubeconfig", str(config.write()))
    assert said.error.startswith(f"unable to connect to the server {config.cluster['server']}: tls: ")
    assert "certificate" in said.error


def test_K16_a_token_that_is_not_accepted_is_told_with_its_user(namespace: Namespace, config: Kubeconfig) -> None:
    config.value["users"][0]["user"] = {"token": "nonsense"}
    said = refused(namespace, "--kubeconfig", str(config.write()))
    assert "(Unauthorized)" in said.error
    assert f"user '{config.value['users'][0]['name']}'" in said.error


def test_K12_an_exec_plugin_is_asked_again_when_its_token_has_expired(namespace: Namespace, config: Kubeconfig, tmp_path: Path) -> None:
    namespace.workload()
    namespace.kubectl("create", "rolebinding", "edit", "--clusterrole=edit", f"--serviceaccount={namespace.name}:default")
    token = namespace.kubectl("create", "token", "default").strip()
    plugin, counter = tmp_path / "plugin", tmp_path / "count"
    status = {"kind": "ExecCredential", "apiVersion": "client.authentication.k8s.io/v1", "status": {"token": "expired"}}
    good = json.dumps(status | {"status": {"token": token}})
    plugin.write_text(f"#!/bin/sh\necho x >>{counter}\n"
                      f"if [ $(wc -l <{counter}) = 1 ]; then echo '{json.dumps(status)}'; else echo '{good}'; fi\n")  # fmt: skip
    plugin.chmod(0o755)
    config.value["users"][0]["user"] = {
        "exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "./plugin", "interactiveMode": "Never"}
    }
    done = Cli(namespace.state, {"KUBECONFIG": str(config.write())}).run("env", "deploy/web", "-n", namespace.name)
    assert done.returncode == 0, done.stderr
    assert "FROM_IMAGE" in done.stdout
    assert counter.read_text().count("x") == 2


# Proxies


@pytest.fixture
def proxy(config: Kubeconfig) -> Iterator[HttpProxy]:
    """The only way to the API server: the kubeconfig calls it by a name that nobody but the proxy knows."""
    real = urlsplit(config.cluster["server"])
    assert real.hostname is not None
    config.cluster["server"] = f"https://api.nowhere.test:{real.port}"
    config.cluster.setdefault("tls-server-name", real.hostname)
    with HttpProxy(names={"api.nowhere.test": real.hostname}) as made:
        yield made


@pytest.mark.parametrize(("named", "via"), [("proxy-url", "port-forward"), ("HTTPS_PROXY", "exec")])
def test_K16_everything_goes_through_the_proxy(namespace: Namespace, config: Kubeconfig, proxy: HttpProxy, named: str, via: str) -> None:
    """Requests, a watch, exec and the carriers: without it the server's name leads nowhere. 4 MB pass each way."""
    namespace.deployments("web", "peer")
    (web,), (peer,) = namespace.pods("app=web"), namespace.pods("app=peer")
    environ = {"NO_PROXY": "10.0.0.0/8,shop.test"}
    if named == "proxy-url":
        config.cluster["proxy-url"] = proxy.url
    else:
        environ[named] = proxy.url
    program = f"""
import hashlib, json, os, socket, threading
data = os.urandom(4 << 20)
with socket.create_connection(({peer["status"]["podIP"]!r}, 8080), timeout=20) as sock:
    stream = sock.makefile("rb")
    hello = json.loads(stream.readline())
    threading.Thread(target=lambda: (sock.sendall(data), sock.shutdown(socket.SHUT_WR))).start()
    same = hashlib.sha256(stream.read()).digest() == hashlib.sha256(data).digest()
print(json.dumps(hello | {{"same": same, "from_image": os.environ["FROM_IMAGE"]}}))"""
    cli = Cli(namespace.state, {"KUBECONFIG": str(config.write()), **environ})
    done = cli.run("run", "deploy/web", "-n", namespace.name, "--via", via, TARGET_IMAGE, "python3", "-c", program)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["peer"], answer["same"], answer["from_image"]) == (web["status"]["podIP"], True, "image")
    assert proxy.through > 8 << 20
    assert {line.split()[1].partition(":")[0] for line in proxy.asked} == {"api.nowhere.test"}


def test_K16_a_proxy_gets_the_name_and_password_of_its_url(namespace: Namespace, config: Kubeconfig, proxy: HttpProxy) -> None:
    namespace.workload()
    config.cluster["proxy-url"] = proxy.url.replace("//", "//ana:ge%40heim@")
    done = Cli(namespace.state, {"KUBECONFIG": str(config.write())}).run("env", "deploy/web", "-n", namespace.name)
    assert done.returncode == 0, done.stderr
    assert all(f"Proxy-Authorization: Basic {base64.b64encode(b'ana:ge@heim').decode()}" in head for head in proxy.asked)


def test_K16_a_proxy_that_refuses_is_told_in_its_own_words(namespace: Namespace, config: Kubeconfig, proxy: HttpProxy) -> None:
    proxy.answer = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"
    config.cluster["proxy-url"] = proxy.url.replace("//", "//ana:geheim@")
    said = refused(namespace, "--kubeconfig", str(file := config.write()))
    server = config.cluster["server"]
    assert said.error == f"the proxy {proxy.url} does not connect to the server {server}: 407 Proxy Authentication Required"
    assert said.hint == f"the proxy is proxy-url of context '{config.value['current-context']}' in {file}"


def test_K16_a_proxy_that_is_away_is_named_within_five_seconds(namespace: Namespace, config: Kubeconfig, silent: str) -> None:
    server = config.cluster["server"]
    config.cluster["proxy-url"] = f"http://ana:geheim@{NOT_THERE}"
    said = refused(namespace, "--kubeconfig", str(config.write()))
    assert said.error == f"unable to connect to the proxy http://{NOT_THERE}, on the way to the server {server}: connection refused"
    at_once = said.seconds
    del config.cluster["proxy-url"]
    said = refused(namespace, "--kubeconfig", str(config.write()), HTTPS_PROXY=silent)
    assert said.error == f"unable to connect to the server {server} through the proxy http://{silent}: no answer in time"
    assert said.hint == "the proxy is the environment's HTTPS_PROXY"
    assert said.seconds - at_once < 5

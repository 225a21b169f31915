"""A20 to A22, A39 and A44: what goes to the target, what stays, what is refused; the app's own ports."""

from __future__ import annotations

import socket
import urllib.request
from pathlib import Path

import pytest

from tests.container.conftest import App, Bridge
from tests.lab.boxes import eventually
from tests.lab.dockerlab import Lab


def rules(folder: Path, *lines: str) -> tuple[str, str]:
    file = folder / "mbridge.yaml"
    file.write_text("outgoing:\n  rules:\n" + "".join(f"    - {line}\n" for line in lines))
    return "--config", str(file)


def test_A20_the_first_rule_that_matches_decides(lab: Lab, bridge: Bridge, tmp_path: Path) -> None:
    """One port of one address is denied before its network is let through, and a second rule never changes the first."""
    config = rules(
        tmp_path,
        f"{{to: '{lab.server_ip}:7001', verdict: deny}}",
        f"{{to: '{lab.server_ip}/32', verdict: cluster}}",
        f"{{to: '{lab.server_ip}:7002', verdict: deny}}",
    )
    with bridge(f"docker/{lab.target.name}", *config) as own:
        denied = own.probe("connect_times", host=lab.server_ip, port=7001, times=1)[0]
        assert denied[0] == "EACCES"
        assert denied[1] < 0.1
        assert own.probe("who", host=lab.server_ip)["peer"] == lab.target_ip


def test_A20_deny_by_network_port_range_protocol_and_name(lab: Lab, bridge: Bridge, tmp_path: Path) -> None:
    config = rules(
        tmp_path,
        f"{{to: '{lab.address(96)}/28', verdict: deny}}",
        f"{{to: '{lab.server_ip}:7003-7005', verdict: deny}}",
        f"{{to: '{lab.server_ip}:7001', protocol: udp, verdict: deny}}",
        "{to: '*.wild.lab.test', verdict: deny}",
    )
    with bridge(f"docker/{lab.target.name}", *config) as own:
        assert own.probe("connect_times", host=lab.address(98), port=80, times=1)[0][0] == "EACCES"
        for port in (7003, 7005):
            assert own.probe("connect_times", host=lab.server_ip, port=port, times=1)[0][0] == "EACCES"
        assert own.probe("connect", host=lab.server_ip, port=7006) == "connected"
        assert own.probe("udp", host=lab.server_ip, port=7001)["errno"] == "EACCES"
        assert own.probe("echo", host=lab.server_ip) == "hello"  # TCP of the same port is not meant


def test_A36_a_new_bridge_keeps_to_what_an_earlier_one_learned_of_names(lab: Lab, bridge: Bridge, tmp_path: Path) -> None:
    """The app looked the names up once, and goes on with their addresses."""
    config = rules(tmp_path, "{to: 'chain.lab.test:7001', verdict: deny}")
    with lab.another_target(59) as target, bridge(f"docker/{target.name}", *config) as own:

        def denied() -> object:
            return own.probe("connect_times", host=lab.server_ip, port=7001, times=1)[0][0]

        assert own.probe("connect", host=lab.server_ip, port=7001) == "connected", "nobody has named it yet"
        assert own.probe("addresses", host="chain.lab.test")["addresses"] == [lab.server_ip]
        assert denied() == "EACCES"
        part = own.part("bridge")
        started = part.attrs["State"]["StartedAt"]
        part.kill()
        while own.part("bridge").attrs["State"]["StartedAt"] == started:
            assert denied() == "EACCES", "while the bridge is dead"
        assert eventually(lambda: own.probe("who_or_error", host=lab.server_ip, port=7002, timeout=5.0), limit_s=30) == lab.address(59)
        assert denied() == "EACCES"


def test_A20_a_denied_name_is_refused_and_another_is_not(lab: Lab, bridge: Bridge, tmp_path: Path) -> None:
    """big.wild and server have one address in the lab's zone: the name decides only for a target of its own address."""
    config = rules(tmp_path, "{to: 'target*.lab.test', verdict: deny}", "{to: 'chain.lab.test:7001', verdict: deny}")
    with bridge(f"docker/{lab.target.name}", *config) as own:
        assert own.probe("connect_times", host="chain.lab.test", port=7001, times=1)[0][0] == "EACCES"
        assert own.probe("who", host="chain.lab.test")["peer"] == lab.target_ip  # the rule names port 7001 alone


def test_A20_direct_is_the_developers_network_and_not_the_target(lab: Lab, bridge: Bridge, tmp_path: Path) -> None:
    """A direct rule for an address that only the target's network has: it goes out by the app's own network, and is lost there."""
    before = len(lab.strays())
    config = rules(tmp_path, f"{{to: '{lab.address(97)}/32', verdict: direct}}", f"{{to: '{lab.server_ip}', verdict: cluster}}")
    with bridge(f"docker/{lab.target.name}", *config) as own:
        own.probe("connect", host=lab.address(97), port=80, timeout=0.5)
        assert own.probe("who", host=lab.server_ip)["peer"] == lab.target_ip
    new = lab.strays()[before:]
    assert {stray["target"] for stray in new} == {lab.address(97)}  # and so the sentinel does see what goes there


def test_A21_a_name_rule_follows_what_the_resolver_answered(lab: Lab, bridge: Bridge, tmp_path: Path) -> None:
    """counter.lab.test has another address at each question: the one that the app was told is the one that is denied."""
    with bridge(f"docker/{lab.target.name}", *rules(tmp_path, "{to: 'counter.lab.test:80', verdict: deny}")) as own:
        seen = own.run(
            "python3", "-c",
            "import socket, errno\n"
            "address = socket.gethostbyname('counter.lab.test')\n"
            "try:\n    socket.create_connection((address, 80), 5)\n"
            "except OSError as e:\n    print(errno.errorcode.get(e.errno, e))",
        )  # fmt: skip
        assert seen.out.strip() == "EACCES", seen


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def test_A22_a_published_port_answers_on_this_machine_while_the_app_is_bridged(lab: Lab, bridge: Bridge) -> None:
    port = free_port()
    before = len(lab.strays())
    serve = "trap 'exit 0' TERM; python3 -m http.server 8000 -d /programs & wait"  # process 1 ends at a SIGTERM only if it says so
    with bridge(f"docker/{lab.target.name}", "-p", f"127.0.0.1:{port}:8000", command=("sh", "-c", serve)) as own:

        def fetched() -> str:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/probe.js", timeout=2) as answer:
                    return str(answer.read().decode())
            except OSError:
                return ""

        assert "libuv" in eventually(fetched)
        assert own.probe("who", host=lab.server_ip)["peer"] == lab.target_ip
        assert any(str(port) in str(one) for one in own.status()["ports"])
    assert lab.strays()[before:] == []


def test_A22_a_neighbour_on_the_apps_network_reaches_it_too(lab: Lab, app: App) -> None:
    own = app.part("pause").attrs["NetworkSettings"]["Networks"][lab.outside]["IPAddress"]
    listening = app.probing("listen_once", port=18444)
    said = eventually(
        lambda: lab.outsider.probe("who_said", host=own, port=18444, limit_s=10),
        until=lambda said: str(said).startswith("hello"),
        limit_s=15,
    )
    assert said == f"hello {lab.outsider.addresses()[lab.outside]}"
    assert listening.answer() == lab.outsider.addresses()[lab.outside]


def test_A22_the_targets_address_is_not_answered_for_on_the_apps_network(lab: Lab, app: App) -> None:
    """ARP for the target's address, asked from beside the app: nobody there has it."""
    device = "eth0"
    code = (
        "import socket, struct, sys, time\n"
        f"mac = bytes.fromhex(open('/sys/class/net/{device}/address').read().strip().replace(':', ''))\n"
        f"own, wanted = (socket.inet_aton(a) for a in ('{lab.outsider.addresses()[lab.outside]}', sys.argv[1]))\n"
        f"s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806)); s.bind(('{device}', 0x0806))\n"
        "s.send(b'\\xff' * 6 + mac + b'\\x08\\x06' + struct.pack('!HHBBH', 1, 0x0800, 6, 4, 1) + mac + own + b'\\0' * 6 + wanted)\n"
        "ended = time.monotonic() + 1\n"
        "while time.monotonic() < ended:\n"
        "    s.settimeout(max(0.01, ended - time.monotonic()))\n"
        "    try:\n        f = s.recv(100)\n    except TimeoutError:\n        break\n"
        "    if f[20:22] == b'\\0\\x02' and f[28:32] == wanted:\n        print('answered'); break\n"
        "else:\n    pass\n"
    )
    own = app.part("pause").attrs["NetworkSettings"]["Networks"][lab.outside]["IPAddress"]
    assert lab.outsider.run("python3", "-c", code, own).out.strip() == "answered"  # the way of asking works
    assert lab.outsider.run("python3", "-c", code, lab.target_ip).out.strip() == ""


def test_A39_the_apps_network_may_be_the_targets(lab: Lab, bridge: Bridge) -> None:
    with bridge(f"docker/{lab.target.name}", "--network", lab.inside) as own:
        assert own.probe("who", host="server.lab.test")["peer"] in (lab.target_ip, lab.target_ip6)
        assert lab.insider.probe("echo", host=lab.target_ip) == "hello"  # the live target still has its address
        assert lab.insider.probe("who", host=lab.target_ip)["host"] == "target-host"


def test_A39_the_apps_network_may_contain_the_targets(lab: Lab, bridge: Bridge) -> None:
    """The target has a network out of the range that the app's own network has on this engine, and in it something that answers."""
    theirs, service = f"10.202.{lab.number}.193", f"10.202.{lab.number}.200"
    with lab.another_target(60) as target:
        for words in (
            "link add v0 type veth peer name v1",
            f"addr add {theirs}/26 dev v0",
            "link set v0 up",
            "link set v1 up",
            f"route add local {service}/32 dev lo",  # answered for, and no address of the target's own
        ):
            assert target.run("ip", *words.split()).code == 0
        with bridge(f"docker/{target.name}") as own:
            assert own.probe("who", host=service).get("host") == "target60-host"
            assert own.probe("who", host=lab.server_ip)["peer"] == lab.address(60)


@pytest.mark.parametrize("seat", ["app", "neighbour"])
def test_A44_nobody_gets_through_by_the_bridges_own_listeners(lab: Lab, app: App, seat: str) -> None:
    """Every TCP port that listens in the session's netns, tried from within and from the app's network: none is a way in."""
    listening = app.run("python3", "-c", "print(*{int(l.split()[1].split(':')[1], 16) for f in ('tcp', 'tcp6') "
                        "for l in open('/proc/net/' + f).readlines()[1:] if l.split()[3] == '0A'})")  # fmt: skip
    ports = [int(word) for word in listening.out.split()]
    assert ports, "the bridge listens for its redirected flows"
    own = app.part("pause").attrs["NetworkSettings"]["Networks"][lab.outside]["IPAddress"]
    box, hosts = (app, ["127.0.0.1", "::1", own]) if seat == "app" else (lab.outsider, [own])
    for port in ports:
        for host in hosts:
            assert box.probe("useless", host=host, port=port), f"{host}:{port} let us speak to something"


def test_A20_a_rule_by_name_holds_for_a_name_of_the_targets_own_hosts_file(lab: Lab, bridge: Bridge, tmp_path: Path) -> None:
    """The server's address has this name in the target's /etc/hosts alone."""
    with bridge(f"docker/{lab.target.name}", *rules(tmp_path, "{to: 'from-*:7001', verdict: deny}")) as own:
        for host in ("from-hosts", lab.server_ip):
            assert own.probe("connect_times", host=host, port=7001, times=1)[0][0] == "EACCES"
        assert own.probe("who", host="from-hosts")["peer"] == lab.target_ip  # another port


def test_A27_host_gateway_is_the_developers_own_machine_and_a_rule_by_name_holds_for_an_add_host(
    lab: Lab, bridge: Bridge, tmp_path: Path
) -> None:
    """The gateway is an address of none of the app's networks; the other's is one of the target's."""
    config = rules(tmp_path, "{to: barred.example, verdict: deny}")
    names = (f"{name}:{address}" for name, address in
             (("machine.example", "host-gateway"), ("barred.example", lab.server_ip), ("far.example", lab.address(61))))  # fmt: skip
    with socket.socket() as listener, lab.another_target(61), bridge(
        f"docker/{lab.target.name}", *config, *(word for text in names for word in ("--add-host", text))
    ) as own:  # fmt: skip
        listener.bind(("0.0.0.0", 0))
        listener.listen()
        listener.settimeout(10)
        assert own.probe("connect", host="machine.example", port=listener.getsockname()[1]) == "connected"
        connection, (peer, _) = listener.accept()
        connection.close()
        assert peer == own.part("pause").attrs["NetworkSettings"]["Networks"][lab.outside]["IPAddress"]
        assert own.probe("connect_times", host="barred.example", port=7002, times=1)[0][0] == "EACCES"
        assert own.probe("who", host="far.example")["peer"] == lab.target_ip

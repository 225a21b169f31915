"""A24 to A30 and A43: names, as the app's own resolver and real programs see them."""

from __future__ import annotations

import json

import pytest

from tests.container.conftest import App, Bridge
from tests.lab.boxes import Box, Ran
from tests.lab.dockerlab import Lab


def dig(box: Box, *words: str) -> list[str]:
    ran = box.run("dig", "+short", "+tries=1", *words)
    assert ran.code == 0, ran
    return sorted(ran.out.splitlines())


def status_of(ran: Ran) -> str:
    (line,) = [line for line in ran.out.splitlines() if "status:" in line]
    return line.split("status: ")[1].split(",")[0]


@pytest.mark.parametrize(
    "name", ["server", "server.lab.test", "server.lab.test.", "host", "host.sub.lab.test", "a.b.deep.lab.test", "from-hosts"]
)
def test_A24_every_form_of_a_name_resolves_as_beside_the_target(lab: Lab, app: App, name: str) -> None:
    """`host` is found in the second domain of the search list, a.b.deep has as many dots as ndots lets pass at once."""
    ours, theirs = (box.probe("addresses", host=name)["addresses"] for box in (app, lab.insider))
    assert ours == theirs
    assert lab.server_ip in ours


def test_A24_resolv_conf_has_the_targets_search_list_and_options(lab: Lab, app: App) -> None:
    ours = app.probe("read", path="/etc/resolv.conf")
    assert "search lab.test sub.lab.test" in ours
    assert "ndots:1" in ours
    assert "nameserver 127.0.0.11" in ours


@pytest.mark.parametrize(
    "question",
    [
        ("server.lab.test", "A"),
        ("server.lab.test", "AAAA"),
        ("_echo._tcp.lab.test", "SRV"),
        ("text.lab.test", "TXT"),
        ("lab.test", "MX"),
        ("chain.lab.test", "A"),
        ("chain.lab.test", "CNAME"),
        ("x.wild.lab.test", "A"),
        ("many.lab.test", "A"),
        ("big.lab.test", "TXT"),
    ],
    ids=" ".join,
)
def test_A25_every_kind_of_record_is_what_the_target_would_get(lab: Lab, app: App, question: tuple[str, str]) -> None:
    ours, theirs = (dig(box, *question) for box in (app, lab.insider))
    assert ours == theirs
    assert ours


def test_A25_an_answer_over_512_bytes_comes_by_udp_with_edns_and_by_tcp(lab: Lab, app: App) -> None:
    assert len(dig(app, "+bufsize=4096", "+ignore", "many.lab.test", "A")) == 40
    assert len(dig(app, "+noedns", "many.lab.test", "A")) == 40  # truncated, asked again over TCP
    assert len(dig(app, "+tcp", "big.lab.test", "TXT")) == 15


def test_A25_addresses_have_the_names_that_they_have_beside_the_target(lab: Lab, app: App) -> None:
    for address in (lab.server_ip, lab.server_ip6):
        ours, theirs = (dig(box, "-x", address) for box in (app, lab.insider))
        assert ours == theirs
        assert ours


def test_A26_a_name_that_does_not_exist_is_told_so_at_once(lab: Lab, app: App) -> None:
    ran = app.run("dig", "+tries=1", "nope.lab.test")
    assert status_of(ran) == "NXDOMAIN"
    seen = app.probe("addresses", host="nope.lab.test")
    assert seen["errno"] == "EAI_NONAME"
    assert seen["seconds"] < 1


def test_A26_a_name_without_that_kind_of_record_is_an_empty_answer(lab: Lab, app: App) -> None:
    ran = app.run("dig", "+tries=1", "nothere4.lab.test", "A")
    assert status_of(ran) == "NOERROR"
    assert "ANSWER: 0" in ran.out


def test_A26_a_failure_of_the_server_stays_one(lab: Lab, app: App) -> None:
    assert status_of(app.run("dig", "+tries=1", "broken.lab.test")) == "SERVFAIL"
    ours, theirs = (box.probe("addresses", host="broken.lab.test")["errno"] for box in (app, lab.insider))
    assert ours == theirs


def test_A26_no_answer_ends_with_the_resolvers_own_time_limit(lab: Lab, app: App) -> None:
    ran = app.run("dig", "+tries=1", "+time=2", "silent.lab.test")
    assert ran.code == 9, ran.out  # dig's code for "no reply from server"


def test_A27_names_of_the_targets_hosts_file_and_the_apps_own(lab: Lab, bridge: Bridge) -> None:
    with bridge(f"docker/{lab.target.name}", "--add-host", "mine.example:192.0.2.7") as own:
        assert own.probe("addresses", host="from-hosts")["addresses"] == [lab.server_ip]
        assert own.probe("addresses", host="mine.example")["addresses"] == ["192.0.2.7"]


def test_A28_a_sibling_a_name_of_the_target_and_a_direct_name_in_one_process(lab: Lab, bridge: Bridge, tmp_path) -> None:
    """`outsider` is a container on the app's own network, and a listener there is reached as itself, not through the target."""
    config = tmp_path / "mbridge.yaml"
    config.write_text(f"outgoing:\n  rules:\n    - {{to: 10.202.{lab.number}.0/24, verdict: direct}}\n")
    listening = lab.outsider.probing("listen_once", port=18333)
    with bridge(f"docker/{lab.target.name}", "--config", str(config)) as own:
        sibling = lab.outsider.name
        ran = own.run(
            "python3", "-c",
            "import json, socket, sys\n"
            "def said(host, port):\n"
            "    with socket.create_connection((host, port), 10) as s:\n"
            "        return s.makefile().read()\n"
            f"print(json.dumps([said('{sibling}', 18333), said('server.lab.test', 7002)]))",
        )  # fmt: skip
        direct, through = ran.json
        assert json.loads(through)["peer"] in (lab.target_ip, lab.target_ip6)
        own_address = own.part("pause").attrs["NetworkSettings"]["Networks"][lab.outside]["IPAddress"]
        assert direct == f"hello {own_address}"
    assert listening.answer() == own_address


def test_A29_a_changed_record_is_seen_after_its_time_to_live(lab: Lab, app: App) -> None:
    first = dig(app, "counter.lab.test", "A")
    before = lab.asked("counter.lab.test")
    assert dig(app, "counter.lab.test", "A") == first or lab.asked("counter.lab.test") > before
    app.run("sleep", "2.2")
    assert dig(app, "counter.lab.test", "A") != first


PROGRAMS = {
    "glibc": ("/programs/probe-glibc",),
    "musl, static": ("/programs/probe-musl",),
    "Go, static": ("/programs/probe-go",),
    "Node": ("node", "/programs/probe.js"),
    "Java": ("java", "-cp", "/programs", "Probe"),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_A30_every_runtimes_resolver_and_connect_agree(lab: Lab, app: App, program: str) -> None:
    """Node and Java also by their own DNS clients (`resolved`), which read resolv.conf and send UDP themselves."""
    seen = app.program(*PROGRAMS[program], "server.lab.test", "7002")
    assert lab.server_ip in seen["addresses"]
    assert len(seen["addresses"]) == 2
    assert seen["own"] == lab.target_ip
    assert json.loads(seen["said"])["peer"] == lab.target_ip
    assert seen.get("resolved", [lab.server_ip]) == [lab.server_ip]
    assert app.program(*PROGRAMS[program], "nope.lab.test", "7002") == {"resolve": "not found"}
    assert app.program(*PROGRAMS[program], "server.lab.test", "9")["connect"] == "refused"


@pytest.mark.parametrize("nameserver", ["127.0.0.11", "127.0.0.53", "169.254.20.10", "direct"])
def test_A43_the_targets_nameserver_may_be_a_loopback_or_link_local_address(lab: Lab, bridge: Bridge, nameserver: str) -> None:
    with lab.another_target(50) as target:
        address = lab.server_ip if nameserver == "direct" else nameserver
        if nameserver in ("127.0.0.53", "169.254.20.10"):
            serve = f"import asyncio, zone; asyncio.run(zone.serve('{lab.server_ip}', '{lab.server_ip6}', listen='{address}'))"
            forever = serve.replace("asyncio.run(", "loop = asyncio.new_event_loop(); loop.run_until_complete(") + "; loop.run_forever()"
            assert target.run("ip", "addr", "add", f"{address}/32", "dev", "lo").code == 0 or address.startswith("127.")
            target.container.exec_run(["python3", "-c", forever], detach=True, workdir="/lab")
        if nameserver != "127.0.0.11":
            assert target.run("sh", "-c", f"printf 'search lab.test\\nnameserver {address}\\n' >/etc/resolv.conf").code == 0
        with bridge(f"docker/{target.name}") as own:
            assert address in own.probe("read", path="/etc/resolv.conf")
            assert own.probe("addresses", host="server")["addresses"] == sorted([lab.server_ip, lab.server_ip6])
            assert dig(own, "text.lab.test", "TXT") == ['"first part" "second part"']
            assert status_of(own.run("dig", "+tries=1", "nope.lab.test")) == "NXDOMAIN"

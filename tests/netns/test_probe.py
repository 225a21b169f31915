"""`python -m bridge.sidecar probe`: what this kernel and these rights allow, told as JSON whatever lacks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from bridge.model.kernel import SETTINGS

PROBE = [sys.executable, "-m", "bridge.sidecar", "probe"]


@pytest.fixture(autouse=True)
def needs_root() -> None:
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("netns: this machine lacks root or setpriv")


def _run(*command: str) -> dict[str, object]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    return dict(json.loads(done.stdout))


def test_with_the_bridges_rights() -> None:
    found = _run("unshare", "-n", "sh", "-c", '"$@" && ! ip link show mb-probe 2>/dev/null', "sh", *PROBE)
    assert found["tun"] is True
    assert found["nft"] is True
    assert found["nfqueue"] in ("nft", "iptables")


def test_settings_that_are_not_as_a_sessions_are_named_with_what_they_cost() -> None:
    words = [word for setting in SETTINGS for word in ("-w", f"{setting.name}={setting.value}")]
    assert _run("unshare", "-n", "sh", "-c", f'sysctl -qe {" ".join(words)}; "$@"', "sh", *PROBE)["settings"] is True
    bent = _run("unshare", "-n", "sh", "-c", f'sysctl -qe {" ".join(words)} net.ipv4.fwmark_reflect=1; "$@"', "sh", *PROBE)["settings"]
    assert bent == "net.ipv4.fwmark_reflect is 1 here instead of 0: a refused connection times out"


def test_without_rights_each_lack_is_a_reason() -> None:
    found = _run("unshare", "-n", "setpriv", "--bounding-set", "-all", "--inh-caps", "-all", *PROBE)
    assert "not allowed" in str(found["tun"]) or "permitted" in str(found["tun"])
    assert isinstance(found["nft"], str)
    assert found["nfqueue"] is None

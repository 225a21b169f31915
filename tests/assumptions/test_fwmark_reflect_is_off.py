"""A reset that netfilter makes for a marked SYN must not carry the mark, or the rule that made it refuses the reset itself."""

from __future__ import annotations

import errno

import pytest

RULES = "table ip t {\nchain o {\ntype filter hook output priority -120;\nmeta mark 7 meta l4proto tcp reject with tcp reset\n}\n}\n"
MARK = "table ip s {\nchain o {\ntype filter hook output priority -150;\ntcp dport 80 tcp flags & (syn|ack) == syn meta mark set 7\n}\n}\n"


def test_it_is_off_in_a_new_netns(netns) -> None:
    assert netns.call("cat", "/proc/sys/net/ipv4/fwmark_reflect").strip() == "0"


@pytest.mark.parametrize(("reflect", "expected"), [(0, errno.ECONNREFUSED), (1, errno.EAGAIN)])
def test_a_refusal_arrives_only_without_it(netns, reflect: int, expected: int) -> None:
    netns.call("nft", "-f", "-", text=MARK)
    netns.call("nft", "-f", "-", text=RULES)
    netns.call("sysctl", "-qw", f"net.ipv4.fwmark_reflect={reflect}")
    with netns.listen("127.0.0.1", 80), netns.socket() as app:
        app.settimeout(0.5)
        assert app.connect_ex(("127.0.0.1", 80)) == expected

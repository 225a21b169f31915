"""The queue's rule is written by nft where the kernel has that expression, else by iptables. Both must at least parse."""

from __future__ import annotations

import pytest

from bridge.adapters import nft
from bridge.errors import KernelLacks


def test_the_iptables_form_stands(netns, monkeypatch: pytest.MonkeyPatch) -> None:
    run = nft._run

    def no_nft(command, text: str) -> None:
        if command[0] == "nft":
            raise KernelLacks("nft: left out by this test")
        run(command, text)

    monkeypatch.setattr(nft, "_run", no_nft)
    assert netns.run(nft.hold_syns, "mb-t", 7, (9092,)) == "iptables"
    rules = netns.call("iptables", "-t", "mangle", "-S", "OUTPUT")
    assert "-o mb-t" in rules
    assert "--dport 9092" in rules
    netns.run(nft.hold_syns, "mb-t", 7)  # a second time replaces the first
    assert netns.call("iptables", "-t", "mangle", "-S", "OUTPUT").count("NFQUEUE") == 1


def test_the_nft_form_is_understood(netns) -> None:
    """Where the kernel lacks the expression it says so; a mistake in our text would be a syntax error instead."""
    refusal = ""
    try:
        netns.call("nft", "-f", "-", text=nft.hold_ruleset("mb-t", 7, (9092,)))
    except OSError as exc:
        refusal = str(exc)
    assert "syntax error" not in refusal
    if "No such file or directory" in refusal:
        pytest.skip("lacks(nft queue)")
    assert "queue" in netns.call("nft", "list", "table", "inet", nft.HOLD_TABLE)


def test_the_table_is_replaced_whole(netns) -> None:
    first = nft.Redirects("mb-t", 15001, (("10.0.0.2", 15053), ("fd00::2", 15054)), (9092,), 0x10, 0x11, (1, 2, 3), (1,))
    second = nft.Redirects("mb-t", 15002, (), (), 0x10, 0x11, (1, 2, 3), (1,))
    netns.run(nft.apply, first)
    netns.run(nft.apply, second)
    table = netns.call("nft", "list", "table", "inet", nft.TABLE)
    assert ":15002" in table
    assert "15001" not in table
    assert "15053" not in table

"""What another process says in JSON: taken as it is meant, or refused by the one error that readers answer."""

from __future__ import annotations

import json
import math

import pytest

from bridge.errors import RemoteProtocolError
from bridge.model.facts import BridgeConfig, Facts
from bridge.model.fields import maybe_text, number, printable, read_object, seconds, text, texts

SAID = {"text": "ä", "null": None, "list": ["a", "b"], "number": 7, "time": 1.5}


def test_right_fields_are_taken() -> None:
    assert text(SAID, "text", "x", most=1) == "ä"
    assert (maybe_text(SAID, "null", "x"), maybe_text(SAID, "missing", "x"), maybe_text(SAID, "text", "x")) == (None, None, "ä")
    assert texts(SAID, "list", "x", most=1, most_items=2) == ("a", "b")
    assert texts(SAID, "missing", "x") == texts(SAID, "null", "x") == ()
    assert (number(SAID, "number", "x"), number(SAID, "missing", "x", 3)) == (7, 3)
    assert (seconds(SAID, "time", "x"), seconds(SAID, "number", "x")) == (1.5, 7.0)


@pytest.mark.parametrize("value", [None, 1, True, ["a"], "long", "\ud800"])
def test_what_is_no_short_text_is_refused(value: object) -> None:
    with pytest.raises(RemoteProtocolError, match="x: it"):
        text({"it": value}, "it", "x", most=3)


@pytest.mark.parametrize("value", [1, "ab", {"a": "b"}, ["a", 1], ["long"], ["a"] * 5, ["\udfff"]])
def test_what_is_no_short_list_of_short_texts_is_refused(value: object) -> None:
    with pytest.raises(RemoteProtocolError, match="x: it"):
        texts({"it": value}, "it", "x", most=3, most_items=4)


@pytest.mark.parametrize("value", [None, True, 1.0, "1", -1, 1 << 63])
def test_what_is_no_number_is_refused(value: object) -> None:
    with pytest.raises(RemoteProtocolError, match="x: it"):
        number({"it": value}, "it", "x")


@pytest.mark.parametrize("value", [None, True, "1", math.nan, math.inf, -math.inf, 10**400, -(10**400), -1, 1 << 40])
def test_what_is_no_time_is_refused(value: object) -> None:
    with pytest.raises(RemoteProtocolError, match="x: it"):
        seconds({"it": value}, "it", "x")


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff", b"[" * 100_000, b"[]", b"1", b'{"a": ' + b"1" * 5000 + b"}"])
def test_what_is_no_object_is_refused(raw: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="x: no"):
        read_object(raw, "x")


def test_words_of_a_far_end_are_one_short_line() -> None:
    assert printable("a\n\x1b[2J\u202e" + "b" * 1000) == "a??[2J?" + "b" * 249


@pytest.mark.parametrize(
    "wrong", [{"addresses": ["10.0.0.1/33"]}, {"addresses": ["orders"]}, {"ping": 1}, {"hosts": "\ud800"}, {"hostname": None}]
)
def test_facts_that_could_not_be_wired_are_refused(wrong: dict[str, object]) -> None:
    right = Facts("orders-1", ("10.0.3.7/24", "fd00::7/64"), "nameserver 10.0.0.1\n", "", "no ping socket").to_json()
    assert Facts.from_json(json.loads(json.dumps(right))).to_json() == right
    with pytest.raises(RemoteProtocolError, match="facts"):
        Facts.from_json({**right, **wrong})


@pytest.mark.parametrize("wrong", [{"loopback": [True]}, {"loopback": [65536]}, {"rules": [1]}, {"names": "a"}, {"session": 1}])
def test_a_configuration_of_another_type_is_refused(wrong: dict[str, object]) -> None:
    right = BridgeConfig("abcdef", "docker/x", "KEY", "ssh-ed25519 A", "00" * 8, ({"to": "*", "verdict": "direct"},), (9229,)).to_json()
    assert BridgeConfig.from_json(json.loads(json.dumps(right))).to_json() == right
    with pytest.raises(RemoteProtocolError, match="configure"):
        BridgeConfig.from_json({**right, **wrong})

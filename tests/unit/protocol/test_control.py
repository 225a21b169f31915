"""Control messages: what one side writes the other reads, and nothing else gets through."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.errors import RemoteProtocolError, VersionMismatch
from bridge.model.facts import Facts
from bridge.protocol import control
from bridge.protocol.control import Answer, Ask, FactsTold, Hand, Hello

short = st.text(max_size=60)
facts = st.builds(
    Facts,
    hostname=short,
    addresses=st.lists(st.builds("{}/{}".format, st.ip_addresses(), st.integers(0, 32)), max_size=4).map(tuple),
    resolv_conf=short,
    hosts=short,
    ping=st.one_of(st.booleans(), short),
    warnings=st.lists(short, max_size=3).map(tuple),
)
numbers = st.integers(0, 2**63 - 1)
messages = st.one_of(
    st.builds(Hello, st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1)), short, st.lists(short, max_size=5).map(tuple)),
    st.builds(FactsTold, facts),
    st.builds(Ask, numbers, short, st.binary(max_size=600), st.booleans()),
    st.builds(Answer, numbers, st.binary(max_size=600), st.one_of(st.none(), short)),
    st.builds(Hand, st.binary(max_size=64)),
)


@given(messages)
def test_what_is_written_is_read(message: control.Message) -> None:
    assert control.decode(control.encode(message)) == message


@given(
    st.one_of(
        st.binary(max_size=300),
        st.recursive(st.none() | st.integers() | short, lambda s: st.lists(s) | st.dictionaries(short, s)).map(
            lambda value: json.dumps(value).encode()
        ),
    )
)
def test_anything_else_is_ignored_or_refused_by_name(body: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        assert control.decode(body) is None


@pytest.mark.parametrize("kind", ["hello", "facts", "ask", "answer", "hand"])
@given(
    st.dictionaries(
        st.sampled_from(["id", "version", "release", "query", "answer", "nameserver", "facts", "text", "token"]),
        st.none() | st.integers() | short,
    )
)
def test_a_message_with_wrong_fields_never_passes_for_a_right_one(kind: str, fields: dict[str, object]) -> None:
    body = json.dumps({**fields, "type": kind}).encode()
    try:
        message = control.decode(body)
    except RemoteProtocolError:
        return
    assert message is not None
    assert control.decode(control.encode(message)) == message


def test_a_type_of_a_newer_minor_version_is_ignored() -> None:
    assert control.decode(b'{"type": "mirror", "port": 8080}') is None


def test_unknown_fields_of_a_newer_minor_version_are_ignored() -> None:
    assert control.decode(b'{"type": "answer", "id": 3, "answer": "", "error": null, "colour": "red"}') == Answer(3, b"")


def test_deep_nesting_is_refused_and_crashes_nothing() -> None:
    with pytest.raises(RemoteProtocolError):
        control.decode(b"[" * 200_000)


@pytest.mark.parametrize("minor", [0, 7])
def test_a_peer_of_the_same_major_version_works(minor: int) -> None:
    control.check_version(Hello((control.VERSION[0], minor), "0.9"), "agent")


def test_another_major_version_is_refused_with_both_named() -> None:
    with pytest.raises(VersionMismatch) as caught:
        control.check_version(Hello((9, 4), "7.1\x1b[31m"), "agent")
    assert "9.4" in caught.value.message
    assert f"{control.VERSION[0]}.{control.VERSION[1]}" in caught.value.message
    assert "\x1b" not in caught.value.message

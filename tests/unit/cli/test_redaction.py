"""Secrets do not leave the machine, whatever they stand under."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.cli.redaction import of_document, of_json, of_text

SECRET = "hunter2-hunter2"


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Bearer {SECRET}",
        f"Cookie: session={SECRET}; a=b",
        f"dial postgres://user:{SECRET}@db:5432/x failed",
        f"DB_PASSWORD={SECRET}",
        f"api_token: '{SECRET}'",
        f'AWS_SECRET_ACCESS_KEY="{SECRET}"',
        f"-----BEGIN OPENSSH PRIVATE KEY-----\n{SECRET}\n-----END OPENSSH PRIVATE KEY-----",
        f"-----BEGIN PRIVATE KEY-----\n{SECRET} (cut off)",
    ],
)
def test_a_secret_in_a_log_is_replaced(text: str) -> None:
    assert SECRET not in of_text(text)
    assert "(redacted)" in of_text(text)


@pytest.mark.parametrize(
    "text", ["= flow 12 tcp app 172.18.0.3:41512 -> orders:5432 => agent 10.0.3.7:5432 OPEN", "http://db:8080/x", "2 of 3"]
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert of_text(text) == text


@pytest.mark.parametrize(
    "name", ["env", "Env", "environ", "environment", "set", "password", "private_key", "apiKey", "auth_token", "app.env", "env.set"]
)
@given(value=st.recursive(st.just(SECRET), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.just("x"), inner), max_leaves=5))
def test_what_stands_under_a_secrets_name_is_gone_however_it_is_nested(name: str, value: object) -> None:
    assert SECRET not in json.dumps(of_json({name: value, "deep": [{name: value}, {name: {"value": value, "origin": "flag"}}]}))


def test_a_plan_keeps_what_helps() -> None:
    plan = {"session": "kqzwtb", "steps": [{"body": {"Image": "img", "Env": [f"A={SECRET}"]}, "networks": ["front"]}], "tty": True, "n": 3}
    assert json.loads(of_document(json.dumps(plan))) == {
        "session": "kqzwtb",
        "steps": [{"body": {"Image": "img", "Env": "(redacted)"}, "networks": ["front"]}],
        "tty": True,
        "n": 3,
    }


def test_a_document_that_is_no_json_is_a_text() -> None:
    assert of_document(f"password={SECRET}") == "password=(redacted)"

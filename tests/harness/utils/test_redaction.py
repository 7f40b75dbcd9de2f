"""Secrets are removed from texts and settings, and nothing else is."""

from __future__ import annotations

import json

import pytest

from harness.utils.redaction import REDACTED, Secrets, flatten_settings, is_secret_name, redact, redact_text

SECRET = "hunter22-x9"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://me:hunter22-x9@host:5000/a", "http://host:5000/a"),
        ("http://hunter22-x9@host", "http://host"),
        ("postgresql://me:pa@ss/hunter22-x9@host/db", "postgresql://host/db"),
        ("at http://me:hunter22-x9@host, no answer", "at http://host, no answer"),
        ("http://host:8080/x@y", "http://host:8080/x@y"),
        ("https://b.s3.amazonaws.com/k?X-Amz-Signature=hunter22-x9&part=1", "…?X-Amz-Signature=(left out)&part=1"),
        ("https://x.blob.core.windows.net/c?sv=2024&sig=hunter22-x9", "…?sv=2024&sig=(left out)"),
        ("s3://bucket/key?token=hunter22-x9", "…?token=(left out)"),
        ("sqlite:///mlflow.db?timeout=3", "sqlite:///mlflow.db?timeout=3"),
        ("use hf_abcdefghijklmnopqrst now", "use (left out) now"),
        ("Authorization: Bearer abcdef.123456", "Authorization: Bearer (left out)"),
        ("key AKIAABCDEFGHIJKLMNOP", "key (left out)"),
        ("a mean of 3 tokens; me@example.org", "a mean of 3 tokens; me@example.org"),
    ],
)
def test_text_loses_its_secrets_and_nothing_else(text, expected):
    redacted = redact_text(text)
    assert redacted == expected or (expected.startswith("…") and redacted.endswith(expected[1:]))
    assert SECRET not in redacted


@pytest.mark.parametrize(
    "name",
    ["token", "HF_TOKEN", "api_key", "apiKey", "accessToken", "aws_secret_access_key", "AWS_ACCESS_KEY_ID", "password",
     "storage.sas", "client_secret", "connection_string", "Authorization", "hub.credentials"],
)  # fmt: skip
def test_names_of_secrets_are_recognized(name):
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    ["max_new_tokens", "tokenizer", "pad_token", "eos_token", "loss_tokens", "secretary", "keys", "sort_key_order",
     "passwords_checked", "mitigations.token_masking"],
)  # fmt: skip
def test_names_similar_to_those_of_secrets_are_not_recognized(name):
    assert not is_secret_name(name)


def test_settings_of_file_systems_and_headers_are_removed_except_locations():
    settings = {
        "storage": {
            "key": "AAA",
            "anon": False,
            "endpoint_url": "http://me:hunter22-x9@s3.local",
            "client_kwargs": {"region_name": "eu", "x": "hunter22-x9"},
        },
        "headers": {"X-Own": "hunter22-x9"},
        "headings": {"user": "### User"},
    }
    assert redact(settings) == {
        "storage": {
            "key": REDACTED,
            "anon": False,
            "endpoint_url": "http://s3.local",
            "client_kwargs": {"region_name": "eu", "x": REDACTED},
        },
        "headers": {"X-Own": REDACTED},
        "headings": {"user": "### User"},
    }
    assert "hunter22-x9" not in json.dumps(flatten_settings(settings))


def test_collected_secrets_are_removed_wherever_they_appear():
    spec = {
        "hub": {"token": "tok-en-1234"},
        "list": ["http://me:s3cr%40t99@host/x"],
        "storage": {"x": "stor-age-77"},
        "template": {"chatml": {}},
    }
    secrets = Secrets.collect(spec, environment={"HF_TOKEN": "env-tok-8888", "HOME": "/root", "X_TOKEN": "disabled"})
    text = 'a tok-en-1234, b s3cr@t99, c s3cr%40t99, d stor-age-77, e env-tok-8888, f disabled, g /root, h "chatml"'
    redacted = secrets.redact(text)
    assert redacted.count(REDACTED) == 5
    assert redacted.endswith('f disabled, g /root, h "chatml"')
    escaped = Secrets.collect({"password": 'quo"te<9'}, environment={})
    assert escaped.redact(json.dumps({"x": 'quo"te<9'})) == json.dumps({"x": REDACTED})
    assert escaped.redact("<p>quo&quot;te&lt;9</p>") == f"<p>{REDACTED}</p>"
    assert Secrets.collect({}, environment={}).redact(text) == text


def test_folders_in_the_environment_are_not_secrets(tmp_path):
    environment = {
        "PWD": "/somewhere/else",
        "OLDPWD": "/another-place",
        "STORE_TOKEN": str(tmp_path),
        "X_PWD": "/no-f0lder",
    }
    assert Secrets.collect({}, environment=environment).literals == ("/no-f0lder",)

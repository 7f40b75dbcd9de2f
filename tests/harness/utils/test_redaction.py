"""Secrets are removed from texts and settings, and nothing else is."""

from __future__ import annotations

import json
import re

import pytest

from harness.utils import redaction
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


@pytest.mark.parametrize(
    "text", ["api_key: s3cr3t-Value99", "password=hunter2x", "'db_password': 'Pa55w0rd!'", "HF_TOKEN = abc123def456"]
)
def test_a_value_after_the_name_of_a_secret_is_redacted(text):
    redacted = redact_text(f"before {text} after")
    assert REDACTED in redacted
    assert redacted.startswith("before ")
    assert "after" in redacted
    assert not any(secret in redacted for secret in ("s3cr3t", "hunter2x", "Pa55w0rd", "abc123"))


@pytest.mark.parametrize(
    "text",
    [
        "the secret: flowers bloom",
        "eos_token: <|im_end|>",
        "tokens: 1,234,567",
        "signature: rouge1|stem:1",
        "token: 12",
    ],
)
def test_words_after_such_a_name_stay(text):
    assert redact_text(text) == text


PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("text", "redacted_text"),
    [
        ('password: "Pa55w0rd!" is his', f'password: "{REDACTED}" is his'),
        ('api_key=s3cr3t-Value99"', f'api_key={REDACTED}"'),
        ("api_key=s3cr3t-Value99\nnext", f"api_key={REDACTED}\nnext"),
        ("first\ntoken=s3cr3t-Value99", f"first\ntoken={REDACTED}"),
        ("first\nhf_abcdefghijklmnopqrst", f"first\n{REDACTED}"),
        ("password=Pa55\\w0rd-\u00e99", f"password={REDACTED}"),
        ("https://x.org/c?sig=s3cr3t99\\z\nnext", f"https://x.org/c?sig={REDACTED}\nnext"),
        ("http://me:s3cr3t99@host\nmail me@example.org", "http://host\nmail me@example.org"),
        ("http://host\nmail: me@example.org", "http://host\nmail: me@example.org"),
        (f"{PEM}\nnext", f"{REDACTED}\nnext"),
        ('-----BEGIN PRIVATE KEY-----\nMIIEow" and more', f'{REDACTED}" and more'),
        ("-----BEGIN PRIVATE KEY-----\nMIIEow\\", f"{REDACTED}\\"),
    ],
)
def test_redacted_json_is_json_with_the_redacted_text(text, redacted_text):
    document = json.dumps({"a": text, "b": [text, 1]})
    expected = {"a": redacted_text, "b": [redacted_text, 1]}
    assert json.loads(redact_text(document)) == expected
    assert json.loads(json.loads(redact_text(json.dumps({"nested": document})))["nested"]) == expected


def test_no_escape_of_json_is_cut_after_any_secret():
    secrets = ["api_key=", "http://me:pw123456@", "?sig=abc", "hf_" + "a" * 20, "Bearer abcdef12", "password: 'abc123"]
    tails = ["\\", '"', '\\"', "\\\\", "\n", "\\n", "\x00", "\u00e9", "\U0001f600", "/", "'"]
    for secret in [*secrets, "-----BEGIN PRIVATE KEY-----\nab"]:
        for tail in tails:
            for repeats in range(4):
                document = json.dumps({"a": f"{secret}{'s3cr3t' * (repeats > 0)}{tail * repeats}{secret} b@c.de"})
                assert list(json.loads(redact_text(document))) == ["a"]
                nested = json.dumps([document])
                json.loads(json.loads(redact_text(nested))[0])


def test_the_name_before_a_value_has_a_bounded_length():
    name = redaction._NAMED_VALUE.pattern.partition("(?P<value>")[0]
    assert not re.search(r"[*+]|\{\d+,\}", name)


@pytest.mark.parametrize(
    "part",
    [
        "a-",
        "a_",
        "-",
        "key-",
        "token ",
        "://a:",
        "?a.",
        "-----BEGIN ",
        "eyJ",
        "\\\\",
        "-----END PRIVATE KEY-----",
        '-----BEGIN PRIVATE KEY-----"',
        '"-- ',
        "\\n",
    ],
)
def test_a_long_line_is_redacted_in_linear_time(part):
    # With a quadratic search these lines would take minutes: the time limit of the tests ends them.
    line = part * (400_000 // len(part))
    assert redact_text(f"token: {line} password: s3cr3t-Value99").endswith(f"password: {REDACTED}")


def test_the_forms_of_literal_secrets_are_computed_once(monkeypatch):
    secrets, calls, real = Secrets(('pa\\ss"word-99\\', "other-99")), [], redaction.quote
    monkeypatch.setattr(redaction, "quote", lambda *given, **options: calls.append(given) or real(*given, **options))
    for secret in (*secrets.literals, *secrets.literals):
        assert json.loads(secrets.redact(json.dumps([secret]))) == [REDACTED]
    assert len(calls) == 2

"""Secrets in records are removed; similar words stay."""

from __future__ import annotations

import pytest

from harness.utils.redaction import redact, redact_text


def test_secrets_are_removed_and_similar_words_are_not():
    spec = {
        "hub": {"token": "t", "api_key": "k", "HF_TOKEN": "h", "password": None},
        "max_new_tokens": 64,
        "template": {"tokenizer": {}},
        "list": ["postgresql://me:pw@host/db"],
    }
    assert redact(spec) == {
        "hub": {"token": "(left out)", "api_key": "(left out)", "HF_TOKEN": "(left out)", "password": None},
        "max_new_tokens": 64,
        "template": {"tokenizer": {}},
        "list": ["postgresql://host/db"],
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://bucket/rows?X-Amz-Signature=abc123&part=2", "s3://bucket/rows?X-Amz-Signature=(left out)&part=2"),
        (
            "https://host/rows.jsonl?sig=a%2Fb&token=t#row",
            "https://host/rows.jsonl?sig=(left out)&token=(left out)#row",
        ),
        ("https://host/rows?max_tokens=5&design=blue", "https://host/rows?max_tokens=5&design=blue"),
        ("hf_" + "a" * 34, "(left out)"),
        ("the key is sk-" + "b" * 30 + ".", "the key is (left out)."),
        ("hf_model and sk-learn", "hf_model and sk-learn"),
        ("mysql://me:pw@host/db", "mysql://host/db"),
    ],
)
def test_text_keeps_everything_except_its_secrets(text: str, expected: str) -> None:
    assert redact_text(text) == expected


@pytest.mark.parametrize("key", ["aws_secret_access_key", "aws_access_key_id", "Authorization", "private_key"])
def test_cloud_keys_and_headers_are_secrets(key: str) -> None:
    assert redact({key: "x", "key": "y"}) == {key: "(left out)", "key": "y"}

"""What is secret is left out, wherever it stands; what only looks like it stays."""

from __future__ import annotations

import pytest

from harness.utils.redaction import redact, redact_text


def test_secrets_are_left_out_and_words_like_them_are_not():
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
    ("given", "told"),
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
def test_text_keeps_all_but_its_secrets(given: str, told: str) -> None:
    assert redact_text(given) == told


@pytest.mark.parametrize("key", ["aws_secret_access_key", "aws_access_key_id", "Authorization", "private_key"])
def test_keys_of_clouds_and_headers_are_secrets(key: str) -> None:
    assert redact({key: "x", "key": "y"}) == {key: "(left out)", "key": "y"}

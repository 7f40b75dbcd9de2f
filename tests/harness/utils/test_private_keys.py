"""Private keys are redacted as a whole, however their lines are written."""

from __future__ import annotations

import json

import pytest

from harness.utils.redaction import REDACTED, Secrets, flatten_settings, redact, redact_text

LINES = ["MIIEowIBAAKCAQEA7x1aBcDeFgHiJkLm", "QmFzZTY0TGluZVR3b3d3d3d3d3d3d3d3", "c2VjcmV0TGluZQ=="]
PEM = ["-----BEGIN RSA PRIVATE KEY-----", *LINES, "-----END RSA PRIVATE KEY-----"]
KINDS = {
    "rsa": PEM,
    "openssh": ["-----BEGIN OPENSSH PRIVATE KEY-----", *LINES, "-----END OPENSSH PRIVATE KEY-----"],
    "pkcs8": ["-----BEGIN PRIVATE KEY-----", *LINES, "-----END PRIVATE KEY-----"],
    "headers": [PEM[0], "Proc-Type: 4,ENCRYPTED", 'DEK-Info: AES-128-CBC,"0A"', "", *PEM[1:]],
    "pgp": ["-----BEGIN PGP PRIVATE KEY BLOCK-----", "", *LINES, "-----END PGP PRIVATE KEY BLOCK-----"],
    "ssh2": ["---- BEGIN SSH2 ENCRYPTED PRIVATE KEY ----", *LINES, "---- END SSH2 ENCRYPTED PRIVATE KEY ----"],
}
WRITERS = {
    "lines": "\n".join,
    "lines of Windows": "\r\n".join,
    "indented": lambda lines: "\n".join(f"    {line}" for line in lines),
    "prefix of a log": lambda lines: "\n".join(f"2026-01-31 INFO {line}" for line in lines),
    "strings of code": lambda lines: "\n".join(f'"{line}\\n"' for line in lines),
    "list of lines": json.dumps,
    "indented list": lambda lines: json.dumps(lines, indent=2),
    "JSON": lambda lines: json.dumps({"key": "\n".join(lines)}),
    "list in JSON": lambda lines: json.dumps(json.dumps({"key": lines})),
    "repr": lambda lines: repr("\n".join(lines)),
    "environment": lambda lines: "KEY='" + "\n".join(lines) + "'",
    "value of a name": lambda lines: "private_key: " + "\n".join(lines),
    "value of a query": lambda lines: "https://host/?a=1&key=" + "\n".join(lines),
    "within quotes": lambda lines: 'it\'s "quoted"\n' + "\n".join([lines[0], "it's a key", *lines[1:]]),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("is_complete", [True, False])
def test_no_line_of_a_key_is_left(kind, writer, is_complete):
    if not is_complete and (kind == "headers" or writer == "within quotes"):
        pytest.skip("without an end, a key ends at a quote")
    lines = KINDS[kind] if is_complete else KINDS[kind][:-2]
    text = WRITERS[writer](lines)
    redacted = redact_text(f"before {text} after" if is_complete else f"before {text}")
    assert redacted.startswith("before ")
    assert redacted.endswith(" after") or not is_complete
    assert REDACTED in redacted
    assert not [line for line in lines[1:] if line and line in redacted]
    if "JSON" in writer or "list" in writer:
        json.loads(redact_text(text))


def test_what_is_around_a_key_stays():
    key = "\n".join(PEM)
    assert redact_text(f"a: 1\n{key}\nb: 2\n{key}\nc: 3") == f"a: 1\n{REDACTED}\nb: 2\n{REDACTED}\nc: 3"
    assert redact_text(json.dumps([*PEM, "and more"])) == json.dumps([*[REDACTED] * 5, "and more"])
    public = "-----BEGIN PUBLIC KEY-----\nMIIBIjANBg\n-----END PUBLIC KEY-----"
    assert redact_text(public) == public
    assert redact_text("a PRIVATE KEY is private") == "a PRIVATE KEY is private"


@pytest.mark.parametrize("redact_list", [redact, Secrets().redact_value])
def test_a_list_of_the_lines_of_a_key_is_redacted(redact_list):
    value = {"lines": ["first", *PEM, "last line", 3], "nested": [[*PEM[:2], "other text"], "plain"]}
    assert redact_list(value) == {
        "lines": ["first", *[REDACTED] * 5, "last line", 3],
        "nested": [[REDACTED, REDACTED, "other text"], "plain"],
    }
    assert redact_list(["\n".join(PEM), "plain"]) == [REDACTED, "plain"]
    assert list(flatten_settings({"a": PEM}).values()) == [json.dumps([REDACTED] * 5)]


def test_a_known_key_is_redacted_line_by_line():
    secrets = Secrets.collect({"connection": "\n".join(PEM)}, environment={})
    assert secrets.redact(f"read {LINES[0]} and") == f"read {REDACTED} and"


def test_a_document_of_many_keys_is_redacted_in_linear_time():
    # With a quadratic search this text would take minutes: the time limit of the tests ends it.
    key = json.dumps(PEM)
    assert redact_text("\n".join([key] * 4000)) == "\n".join([json.dumps([REDACTED] * 5)] * 4000)
    unended = f'{PEM[0]} "{LINES[0]}", '
    assert LINES[0] not in redact_text(unended * 8000)

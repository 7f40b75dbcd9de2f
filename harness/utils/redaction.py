"""Remove secrets from settings and texts that others may read, and flatten settings to text.

Imports nothing heavy.
"""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

REDACTED = "(left out)"
MAX_VALUE_LENGTH = 500
MAX_NAME_LENGTH = 250
TRUNCATION_MARK = "… (truncated; see spec.json)"

_SECRET_NAMES = (
    r"token|password|passwd|passphrase|pwd|secret|credentials?|sas|signature|authorization|cookie|bearer|"
    r"(?:api|access|secret|private|account|shared|encryption)_?keys?(?:_?id)?|connection_?string"
)
SECRET_NAME_PATTERN = re.compile(rf"(?:^|[._\s-])(?:{_SECRET_NAMES})$", re.IGNORECASE)
_NOT_SECRET_NAMES = re.compile(r"(?:^|[._-])(?:bos|eos|pad|unk|mask|sep|cls|stop|image|special)_token$", re.IGNORECASE)
_GUARDED_KEYS = re.compile(r"^(?:storage|storage_options|client_kwargs|config_kwargs|headers)$", re.IGNORECASE)
_UNGUARDED_KEYS = {"endpoint_url", "region", "region_name", "protocol", "project", "account_name"}

# A password may hold "@" and "/", whatever the standard says, so it ends at the last "@": better redact too much.
_URL_CREDENTIALS = re.compile(r"(?<=://)(?:[^/:@\s'\"<>]*:(?!\d+(?:/|$))(?:(?!://)[^\s'\"<>,])*@|[^/@\s'\"<>]+@)")
_SECRET_QUERY_VALUE = re.compile(
    rf"([?&;#](?:[\w.%-]*[._-])?(?:{_SECRET_NAMES}|key|auth|session|sig|passw|pass)=)([^&#;\s'\"<>]+)", re.IGNORECASE
)
_TOKEN_PATTERNS = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}|\bsk-[\w-]{16,}|\bgh[pousr]_\w{16,}|\bgithub_pat_\w{16,}|\bglpat-[\w-]{12,}"
    r"|\bxox[abprs]-[\w-]{10,}|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bdapi[0-9a-f]{32}\b"
    r"|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]+"
    r"|(?<=\bBearer )[\w.~+/=-]{8,}|(?<=\bBasic )[\w+/=-]{8,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)",
    re.DOTALL,
)


def redact_text(text: str) -> str:
    """Return the text without credentials in URLs, query values named like secrets, and tokens of a known shape."""
    text = _URL_CREDENTIALS.sub("", text)
    text = _SECRET_QUERY_VALUE.sub(rf"\1{REDACTED}", text)
    return _TOKEN_PATTERNS.sub(REDACTED, text)


def redact(value: Any, key: str = "") -> Any:
    """Return the value without secrets.

    Removed are the values of keys named like secrets (`token`, `api_key`, `aws_secret_access_key` …), texts in the
    settings of a file system or in headers, and what `redact_text` removes from every other text.

    Args:
        value: Settings: mappings, lists and plain values.
        key: The key under which the settings hold the value.
    """
    if isinstance(value, Mapping):
        if _GUARDED_KEYS.match(key):
            return {name: _redact_guarded(element, str(name)) for name, element in value.items()}
        return {name: redact(element, str(name)) for name, element in value.items()}
    if is_secret_name(key) and value is not None:
        return REDACTED
    if isinstance(value, list | tuple):
        return [redact(element) for element in value]
    return redact_text(value) if isinstance(value, str) else value


def is_secret_name(name: str) -> bool:
    """Return whether the value of a key with this name is a secret, by the name alone."""
    snake_case = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return bool(SECRET_NAME_PATTERN.search(snake_case)) and not _NOT_SECRET_NAMES.search(snake_case)


@dataclass(frozen=True)
class Secrets:
    """Secrets that are known literally, to be removed from whatever is written elsewhere.

    Attributes:
        literals: The secrets as a text holds them, the longest first.
    """

    literals: tuple[str, ...] = ()

    @classmethod
    def collect(cls, *values: Any, environment: Mapping[str, str] | None = None) -> Secrets:
        """Collect the secrets in settings and in environment variables named like a secret.

        Words that a text could hold by chance (`password`, `disabled`) do not count as secrets. Neither do folders: the
        shell's `PWD` is the working directory, and every path below it would be redacted.

        Args:
            values: Settings.
            environment: The environment variables; None: those of this process.
        """
        variables = os.environ if environment is None else environment
        secrets = {value for name, value in variables.items() if is_secret_name(name) and not _is_folder(name, value)}
        for value in [*values, *variables.values()]:
            secrets |= set(_find_secrets(value))
        secrets |= {unquote(secret) for secret in secrets}
        return cls(tuple(sorted(filter(_is_distinctive, secrets), key=lambda secret: (-len(secret), secret))))

    def redact(self, text: str) -> str:
        """Return the text without any of the secrets, as they are or as JSON, HTML and URLs write them."""
        for secret in self.literals:
            for form in dict.fromkeys((secret, json.dumps(secret)[1:-1], html.escape(secret), quote(secret, safe=""))):
                text = text.replace(form, REDACTED)
        return text


def flatten_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings as `key.of.the.spec` -> text of at most 500 characters, without secrets.

    A longer text is truncated and marked. Lists and empty objects become JSON text. Names that an MLflow server refuses
    are changed, and stay distinct.
    """
    flat: dict[str, str] = {}
    for path, value in _iter_leaves(redact(settings), prefix):
        name = mlflow_name(path)
        while name in flat:
            name = f"{name[: MAX_NAME_LENGTH - 1]}_"
        flat[name] = truncate_value(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    return flat


def truncate_value(text: str) -> str:
    """Return the text in at most 500 characters, the limit of every MLflow server; a truncated text is marked."""
    return text if len(text) <= MAX_VALUE_LENGTH else text[: MAX_VALUE_LENGTH - len(TRUNCATION_MARK)] + TRUNCATION_MARK


def mlflow_name(name: str) -> str:
    """Return the name with the characters that MLflow refuses replaced by `_`, at most 250 characters long."""
    text = re.sub(r"[^\w./ :-]", "_", name)
    # MLflow treats names as paths, and refuses those that a path library would normalize.
    parts = [part if part.strip(".") else part.replace(".", "_") for part in text.split("/") if part]
    return ("/".join(parts) or "_")[:MAX_NAME_LENGTH]


def _redact_guarded(value: Any, key: str) -> Any:
    if isinstance(value, Mapping):
        return {name: _redact_guarded(element, str(name)) for name, element in value.items()}
    if value is None or isinstance(value, bool):
        return value
    return redact(value, key) if key in _UNGUARDED_KEYS else REDACTED


def _find_secrets(value: Any, key: str = "", guarded: bool = False) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, element in value.items():
            yield from _find_secrets(element, str(name), guarded or bool(_GUARDED_KEYS.match(key)))
    elif isinstance(value, list | tuple):
        for element in value:
            yield from _find_secrets(element, key, guarded)
    elif isinstance(value, str):
        if is_secret_name(key) or ((guarded or _GUARDED_KEYS.match(key)) and key not in _UNGUARDED_KEYS):
            yield value
        for credentials in _URL_CREDENTIALS.findall(value):
            yield credentials[:-1].partition(":")[2]
        yield from (secret for _, secret in _SECRET_QUERY_VALUE.findall(value))
        yield from _TOKEN_PATTERNS.findall(value)


def _is_folder(name: str, value: str) -> bool:
    return name in ("PWD", "OLDPWD") or (os.path.isabs(value) and os.path.isdir(value))


def _is_distinctive(word: str) -> bool:
    """Return whether a text is unlikely to hold the word by chance."""
    return len(word) >= 12 or (len(word) >= 6 and not word.isalpha() and not word.isdigit())


def _iter_leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, element in value.items():
            yield from _iter_leaves(element, f"{path}.{key}" if path else str(key))
    else:
        yield path, value

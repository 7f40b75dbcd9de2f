"""What of a run anybody may read: settings and texts without secrets, and settings as flat text.

Knows how secrets look, not where they are written. Imports nothing heavy.
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
TRUNCATION_MARK = "… (cut; whole in spec.json)"

_SECRET_NAMES = (
    r"token|password|passwd|passphrase|pwd|secret|credentials?|sas|signature|authorization|cookie|bearer|"
    r"(?:api|access|secret|private|account|shared|encryption)_?keys?(?:_?id)?|connection_?string"
)
SECRET_NAME_PATTERN = re.compile(rf"(?:^|[._\s-])(?:{_SECRET_NAMES})$", re.IGNORECASE)
_NOT_SECRET_NAMES = re.compile(r"(?:^|[._-])(?:bos|eos|pad|unk|mask|sep|cls|stop|image|special)_token$", re.IGNORECASE)
_GUARDED_KEYS = re.compile(r"^(?:storage|storage_options|client_kwargs|config_kwargs|headers)$", re.IGNORECASE)
_UNGUARDED_KEYS = {"endpoint_url", "region", "region_name", "protocol", "project", "account_name"}

# A password may hold "@" and "/", whatever the standard says, so it ends at the last "@": rather too much than a bit.
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
    """The text without names and passwords of URLs, query values named like secrets, and tokens of a known shape."""
    text = _URL_CREDENTIALS.sub("", text)
    text = _SECRET_QUERY_VALUE.sub(rf"\1{REDACTED}", text)
    return _TOKEN_PATTERNS.sub(REDACTED, text)


def redact(value: Any, key: str = "") -> Any:
    """The value without what nobody else should read.

    Left out are: what stands under a secret's name (`token`, `api_key`, `aws_secret_access_key` …), texts in the
    settings of a file system or in headers, and what `redact_text` leaves out of every other text.
    """
    if isinstance(value, Mapping):
        if _GUARDED_KEYS.match(key):
            return {name: _redact_guarded(one, str(name)) for name, one in value.items()}
        return {name: redact(one, str(name)) for name, one in value.items()}
    if is_secret_name(key) and value is not None:
        return REDACTED
    if isinstance(value, list | tuple):
        return [redact(one) for one in value]
    return redact_text(value) if isinstance(value, str) else value


def is_secret_name(name: str) -> bool:
    """Whether what stands under this name is a secret, by the name alone."""
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return bool(SECRET_NAME_PATTERN.search(snake)) and not _NOT_SECRET_NAMES.search(snake)


@dataclass(frozen=True)
class Secrets:
    """Secrets that are known word for word, to be taken out of whatever is written elsewhere.

    literals: as they stand in a text, the longest first.
    """

    literals: tuple[str, ...] = ()

    @classmethod
    def collect(cls, *values: Any, environment: Mapping[str, str] | None = None) -> Secrets:
        """Those that settings hold, and those of environment variables named like a secret. environment: None: ours.

        Words that a text could hold by chance (`password`, `disabled`) are not taken for secrets.
        """
        given = os.environ if environment is None else environment
        found = {value for name, value in given.items() if is_secret_name(name)}
        for value in [*values, *given.values()]:
            found |= set(_find_secrets(value))
        found |= {unquote(one) for one in found}
        return cls(tuple(sorted(filter(_is_distinctive, found), key=lambda one: (-len(one), one))))

    def redact(self, text: str) -> str:
        """The text without any of the secrets, as they are or as JSON, HTML and URLs write them."""
        for one in self.literals:
            for form in dict.fromkeys((one, json.dumps(one)[1:-1], html.escape(one), quote(one, safe=""))):
                text = text.replace(form, REDACTED)
        return text


def flatten_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as `key.of.the.spec` -> text of at most 500 characters; a longer one is cut and says so.

    Lists and empty objects are JSON text. Names that an MLflow server refuses are changed, and stay apart.
    """
    flat: dict[str, str] = {}
    for path, value in _iter_leaves(redact(settings), prefix):
        name = mlflow_name(path)
        while name in flat:
            name = f"{name[: MAX_NAME_LENGTH - 1]}_"
        flat[name] = truncate_value(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    return flat


def truncate_value(text: str) -> str:
    """The text in at most 500 characters, the longest value that every MLflow server takes; a cut one says so."""
    return text if len(text) <= MAX_VALUE_LENGTH else text[: MAX_VALUE_LENGTH - len(TRUNCATION_MARK)] + TRUNCATION_MARK


def mlflow_name(name: str) -> str:
    """The name with what MLflow refuses in names replaced by `_`, at most 250 characters long."""
    text = re.sub(r"[^\w./ :-]", "_", name)
    # MLflow takes names for paths, and refuses those that a path library would write otherwise.
    parts = [part if part.strip(".") else part.replace(".", "_") for part in text.split("/") if part]
    return ("/".join(parts) or "_")[:MAX_NAME_LENGTH]


def _redact_guarded(value: Any, key: str) -> Any:
    if isinstance(value, Mapping):
        return {name: _redact_guarded(one, str(name)) for name, one in value.items()}
    if value is None or isinstance(value, bool):
        return value
    return redact(value, key) if key in _UNGUARDED_KEYS else REDACTED


def _find_secrets(value: Any, key: str = "", guarded: bool = False) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, one in value.items():
            yield from _find_secrets(one, str(name), guarded or bool(_GUARDED_KEYS.match(key)))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _find_secrets(one, key, guarded)
    elif isinstance(value, str):
        if is_secret_name(key) or ((guarded or _GUARDED_KEYS.match(key)) and key not in _UNGUARDED_KEYS):
            yield value
        for user in _URL_CREDENTIALS.findall(value):
            yield user[:-1].partition(":")[2]
        yield from (secret for _, secret in _SECRET_QUERY_VALUE.findall(value))
        yield from _TOKEN_PATTERNS.findall(value)


def _is_distinctive(word: str) -> bool:
    """Whether a word is one that no text holds by chance."""
    return len(word) >= 12 or (len(word) >= 6 and not word.isalpha() and not word.isdigit())


def _iter_leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, one in value.items():
            yield from _iter_leaves(one, f"{path}.{key}" if path else str(key))
    else:
        yield path, value

"""Remove secrets from settings and texts that others may read, and flatten settings to text.

Imports nothing heavy.
"""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from functools import cached_property
from pathlib import PurePath
from typing import Any
from urllib.parse import quote, unquote

from harness.utils import copying
from harness.utils.private_keys import find_key_lines, is_part_of_key, redact_private_keys

REDACTED = "(left out)"
MAX_VALUE_LENGTH = 500
MAX_NAME_LENGTH = 250
TRUNCATION_MARK = "… (truncated; see spec.json)"

_SECRET_NAMES = (
    r"token|password|passwd|passphrase|pwd|secret|credentials?|sas|signature|authorization|cookie|bearer|"
    r"(?:api|access|secret|private|account|shared|encryption)_?keys?(?:_?id)?|connection_?string"
)
SECRET_NAME_PATTERN = re.compile(rf"(?:^|[._\s-])(?:{_SECRET_NAMES})$", re.IGNORECASE)
_MARKER_TOKENS = r"(?:bos|eos|pad|unk|mask|sep|cls|stop|image|special)"
_NOT_SECRET_NAMES = re.compile(rf"(?:^|[._-]){_MARKER_TOKENS}_token$", re.IGNORECASE)
_GUARDED_KEYS = re.compile(r"^(?:storage|storage_options|client_kwargs|config_kwargs|headers)$", re.IGNORECASE)
_UNGUARDED_KEYS = {"endpoint_url", "region", "region_name", "protocol", "project", "account_name"}

# In a text that is JSON, a secret consists of complete escapes, so that the redacted text is JSON too. The backslashes
# before a quote or a line break belong to it, also in JSON within JSON. A backslash before another character is plain
# text.
_ESCAPED = r"\\(?-i:\\(?!\\{0,7}[bfnrt\"'])|u[0-9A-Fa-f]{4}|[ac-eg-moqsv-zA-Z0-9])"
_AFTER_JSON_ESCAPE = r"(?-i:(?<=\\[bfnrt]))"
"""A word may begin here too: JSON writes a line break as a backslash and a letter."""

# A password may hold "@" and "/", whatever the standard says, so it ends at the last "@": better redact too much.
_URL_CREDENTIALS = re.compile(
    rf"(?<=://)(?:(?:[^/:@\s'\"<>\\]|{_ESCAPED})*:(?!\d+(?:/|$))(?:(?!://)[^\s'\"<>,\\]|{_ESCAPED})*@"
    rf"|(?:[^/@\s'\"<>\\]|{_ESCAPED})+@)"
)
_SECRET_QUERY_VALUE = re.compile(
    rf"([?&;#](?:[\w.%-]*[._-])?(?:{_SECRET_NAMES}|key|auth|session|sig|passw|pass)=)"
    rf"((?:[^&#;\s'\"<>\\]|{_ESCAPED})+)",
    re.IGNORECASE,
)
_NAMED_VALUE = re.compile(
    rf"(?:\b|(?<=_)|{_AFTER_JSON_ESCAPE})"
    r"(?P<name>token|password|passwd|passphrase|pwd|secret|(?:api|access|secret|private|account|encryption)[_-]?key)"
    r"(?P<assignment>(?:\\{0,7}[\"'])?\s{0,3}[:=]\s{0,3}(?:\\{0,7}[\"'])?)"
    rf"(?P<value>(?:[^\s\"',;&<>(){{}}\[\]|\\]|{_ESCAPED}){{6,200}})",
    re.IGNORECASE,
)
"""`name: value` and `name=value` in a text, where the name may be the end of a longer one.

The longer name is not matched: a search for its beginning at each of its parts would take quadratic time.
"""
_NOT_SECRET_NAME_END = re.compile(rf"(?:(?<![A-Za-z0-9])|{_AFTER_JSON_ESCAPE}){_MARKER_TOKENS}_token$", re.IGNORECASE)
_MAX_MARKER_TOKEN = 16
"""Maximum characters before `token` in the names that `_NOT_SECRET_NAME_END` finds."""
_TOKEN_PATTERNS = re.compile(
    rf"(?:\b|{_AFTER_JSON_ESCAPE})(?:hf_[A-Za-z0-9]{{16,}}|sk-[\w-]{{16,}}|gh[pousr]_\w{{16,}}|github_pat_\w{{16,}}"
    r"|glpat-[\w-]{12,}|xox[abprs]-[\w-]{10,}|(?:AKIA|ASIA)[0-9A-Z]{16}\b|dapi[0-9a-f]{32}\b"
    r"|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]+)"
    r"|(?<=\bBearer )[\w.~+/=-]{8,}|(?<=\bBasic )[\w+/=-]{8,}"
)

# A regular expression is searched only in a text with one of these: most texts have none, and this is faster to find.
_QUERY_MARKS = (
    *("token=", "password=", "passwd=", "passphrase=", "pwd=", "secret=", "credential=", "credentials=", "sas="),
    *("signature=", "authorization=", "cookie=", "bearer=", "key=", "keys=", "id=", "string=", "auth=", "session="),
    *("sig=", "passw=", "pass="),
)
_NAME_MARKS = ("token", "password", "passwd", "passphrase", "pwd", "secret", "key")
_ASSIGNMENT = re.compile(r"(?:\\{0,7}[\"'])?\s{0,3}[:=]")
_TOKEN_MARKS = (
    *("hf_", "sk-", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "xox", "AKIA", "ASIA", "dapi"),
    *("eyJ", "Bearer ", "Basic "),
)


def redact_text(text: str) -> str:
    """Return the text without what looks like a secret; a JSON document stays one.

    These are private keys, credentials in URLs, query values named like secrets, tokens of a known shape, and values
    after a name like `api_key: ` or `password = ` that are unlikely to be words.
    """
    text = _remove_url_credentials(redact_private_keys(text, REDACTED))
    folded = text.casefold()
    if "=" in text and _has_any(text, "?&;#") and _has_any(folded, _QUERY_MARKS):
        text = _SECRET_QUERY_VALUE.sub(rf"\1{REDACTED}", text)
    if _has_any(text, _TOKEN_MARKS):
        text = _TOKEN_PATTERNS.sub(REDACTED, text)
    if any(_is_assigned(folded, mark) for mark in _NAME_MARKS):
        text = _NAMED_VALUE.sub(_redact_named_value, text)
    return text


def _has_any(text: str, marks: Iterable[str]) -> bool:
    return any(mark in text for mark in marks)


def _is_assigned(text: str, name: str) -> bool:
    """Return whether `:` or `=` follows the name somewhere in the text."""
    start = text.find(name)
    while start >= 0:
        if _ASSIGNMENT.match(text, start + len(name)):
            return True
        start = text.find(name, start + 1)
    return False


def _remove_url_credentials(text: str) -> str:
    return _URL_CREDENTIALS.sub("", text) if "://" in text and "@" in text else text


def _redact_named_value(match: re.Match[str]) -> str:
    if not _is_distinctive(match["value"]) or not _names_a_secret(match):
        return match[0]
    return f"{match['name']}{match['assignment']}{REDACTED}"


def _names_a_secret(match: re.Match[str]) -> bool:
    """Return whether a match of `_NAMED_VALUE` does not end a name such as `eos_token`."""
    earliest = max(0, match.start() - _MAX_MARKER_TOKEN)
    return not _NOT_SECRET_NAME_END.search(match.string, earliest, match.end("name"))


def redact(value: Any, key: str = "") -> Any:
    """Return the value without secrets.

    Removed are the values of keys named like secrets (`token`, `api_key`, `aws_secret_access_key` …), texts in the
    settings of a file system or in headers, and what `redact_text` removes from every other text.

    Args:
        value: Settings: mappings, lists and plain values.
        key: The key under which the settings hold the value, or its path with dots, e.g. `sources.a.jsonl.storage`.
    """
    *parents, own = key.split(".")
    if any(map(_GUARDED_KEYS.match, parents)):
        return _redact_guarded(value, own)
    if isinstance(value, Mapping):
        redact_element = _redact_guarded if _GUARDED_KEYS.match(own) else redact
        return {name: redact_element(element, str(name)) for name, element in value.items()}
    if is_secret_name(key) and value is not None:
        return REDACTED
    if isinstance(value, list | tuple):
        of_key = is_part_of_key(value)
        return [REDACTED if is_of_key else redact(element) for element, is_of_key in zip(value, of_key, strict=True)]
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

    @cached_property
    def _forms(self) -> tuple[str, ...]:
        """The secrets as a text, JSON, HTML and URLs write them, the longest first."""
        forms = {
            form
            for secret in self.literals
            for form in (secret, json.dumps(secret)[1:-1], html.escape(secret), quote(secret, safe=""))
        }
        return tuple(sorted(forms, key=lambda form: (-len(form), form)))

    def redact(self, text: str) -> str:
        """Return the text without any secret.

        Removed are the collected secrets, as they are or as JSON, HTML and URLs write them, and what `redact_text`
        removes.
        """
        text = _remove_url_credentials(text)  # first, since a replaced password would no longer be found in its URL
        for form in self._forms:
            text = text.replace(form, REDACTED)
        return redact_text(text)

    def redact_value(self, value: Any, key: str = "") -> Any:
        """Return a copy of a value, e.g. of an event, without any secret in its texts and keys at any depth.

        Texts under keys named like secrets, and in the settings of a file system or in headers, are removed too.
        Dataclasses are copied with their fields, mappings become dicts. What holds no secret is returned as it is.

        Args:
            value: The value.
            key: The key under which a mapping holds the value.
        """
        if isinstance(value, str):
            return REDACTED if is_secret_name(key) and value else self.redact(value)
        if isinstance(value, PurePath):
            text = self.redact(str(value))
            return value if text == str(value) else type(value)(text)
        if isinstance(value, Mapping):
            if any(map(_GUARDED_KEYS.match, key.split("."))):
                value = redact(value, key)
            names = {self.redact(name) if isinstance(name, str) else name: name for name in value}
            items = {new: self.redact_value(value[name], str(name)) for new, name in names.items()}
            is_clean = all(new == name and items[new] is value[name] for new, name in names.items())
            return value if is_clean and len(items) == len(value) else items
        if isinstance(value, list | tuple | set | frozenset):
            elements = [self.redact_value(element) for element in value]
            if isinstance(value, list | tuple):
                of_key = zip(elements, is_part_of_key(value), strict=True)
                elements = [REDACTED if is_of_key else element for element, is_of_key in of_key]
            if all(new is old for new, old in zip(elements, value, strict=True)):
                return value
            return type(value)(*elements) if hasattr(value, "_fields") else type(value)(elements)
        if is_dataclass(value) and not isinstance(value, type):
            attributes = copying.attributes_of(value)
            redacted = {name: self.redact_value(element) for name, element in attributes.items()}
            return copying.with_attributes(value, redacted)
        return value


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
            yield from _find_secrets(element, str(name), guarded or any(map(_GUARDED_KEYS.match, key.split("."))))
    elif isinstance(value, list | tuple):
        for element in value:
            yield from _find_secrets(element, key, guarded)
    elif isinstance(value, str):
        *parents, own = key.split(".")
        guarded = guarded or any(map(_GUARDED_KEYS.match, (*parents, own)))
        if is_secret_name(key) or (guarded and own not in _UNGUARDED_KEYS):
            yield value
        for credentials in _URL_CREDENTIALS.findall(value):
            yield credentials[:-1].partition(":")[2]
        yield from (secret for _, secret in _SECRET_QUERY_VALUE.findall(value))
        yield from _TOKEN_PATTERNS.findall(value)
        yield from find_key_lines(value)
        yield from (match["value"] for match in _NAMED_VALUE.finditer(value) if _names_a_secret(match))


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

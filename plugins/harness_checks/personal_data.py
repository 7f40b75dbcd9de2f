"""The check `pii`: e-mail addresses, phone numbers and card numbers in the messages of rows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence

from harness import Check, Component, ComponentExample, Example, Finding, Message

COMPONENTS = {
    "pii": Component(
        summary="Finds e-mail addresses, phone numbers and card numbers.",
        factory="harness_checks.personal_data:PersonalData",
        example=ComponentExample(flagged="Write to ann.smith@brambolo.net."),
        options={
            "kinds": {
                "type": "array",
                "items": {"enum": ["email", "phone", "card"]},
                "minItems": 1,
                "uniqueItems": True,
                "default": ["email", "phone", "card"],
                "description": "What to look for.",
            },
            "ignore": {
                "type": "array",
                "items": {"type": "string", "minLength": 1},
                "default": ["@example.com", "@example.org", "@example.net"],
                "description": "Texts that make a match harmless if it contains one of them.",
            },
        },
    )
}

_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.)+[^\W\d_]{2,24}(?![\w-])")
_PHONE = re.compile(
    r"(?<![\w+.-])(?:\+\d{1,3}(?:[ ./-]?\(?\d{1,5}\)?){2,6}"
    r"|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}[.-]\d{3}[.-]\d{4})(?![\w-])"
)
_CARD = re.compile(r"(?<![\w.-])\d(?:[ -]?\d){12,18}(?![\w-]|\.\d)")
_NOUNS = {"email": "an e-mail address", "phone": "a phone number", "card": "a card number"}


class PersonalData(Check):
    """Matches patterns; a finding does not repeat the match, so that the report holds no personal data."""

    def __init__(self, kinds: Sequence[str], ignore: Sequence[str]) -> None:
        """Create a check.

        Args:
            kinds: Some of `email`, `phone` (international, or American with separators) and `card` (13 to 19 digits
                with a valid Luhn checksum).
            ignore: Texts that make a match harmless.
        """
        self._kinds, self._ignore = tuple(kinds), tuple(ignore)

    def find_issues(self, rows: Iterable[Example], *, name: str, is_training: bool) -> Iterator[Finding]:
        """Yield a finding for each kind in each message."""
        for example in rows:
            for number, message in enumerate(example.messages, start=1):
                text = _message_text(message)
                for kind in self._kinds:
                    if self._contains(kind, text):
                        where = "the text" if message.role == "text" else f"message {number} ({message.role})"
                        yield Finding(example.location, f"{_NOUNS[kind]} in {where}")

    def _contains(self, kind: str, text: str) -> bool:
        pattern = {"email": _EMAIL, "phone": _PHONE, "card": _CARD}[kind]
        return any(
            _is_plausible(kind, match) and not any(harmless in match for harmless in self._ignore)
            for match in pattern.findall(text)
        )


def _is_plausible(kind: str, match: str) -> bool:
    digits = [int(character) for character in match if character.isdigit()]
    if kind == "card":
        return passes_luhn(digits)
    return kind == "email" or 8 <= len(digits) <= 15


def passes_luhn(digits: Sequence[int]) -> bool:
    """Return whether the last digit is the Luhn checksum of the others (ISO/IEC 7812-1)."""
    doubled = [digit if index % 2 == 0 else sum(divmod(2 * digit, 10)) for index, digit in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0 and any(digits)


def _message_text(message: Message) -> str:
    calls = [json.dumps(call.arguments, ensure_ascii=False, default=str) for call in message.tool_calls]
    return "\n".join(filter(None, [message.content, message.input, message.reasoning, *calls]))

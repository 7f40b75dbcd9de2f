"""What a conversation is here, and the hashes that tell one from another.

Knows no row form and no file. Every hash is of content alone, so it is the same in every file and on every machine.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Sequence

from harness.contracts import Example, Message

ROLES = ("system", "user", "assistant")


class BadRow(Exception):
    """A row that is no conversation. what: what is wrong, as a predicate ("has no response"). hint: the remedy."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what, self.hint = what, hint


def example(messages: Sequence[Message], place: str) -> Example:
    """The example of a row's messages; system messages that are blank are left out.

    Raises BadRow unless the messages are: at most one system message, then user and assistant in turn, ending with
    the assistant, each with some text.
    """
    kept = tuple(message for message in messages if message.role != "system" or message.content.strip())
    _check(kept)
    return Example(example_id(kept), kept, place)


def _check(messages: Sequence[Message]) -> None:
    if not messages or messages[-1].role != "assistant":
        last = f": its last turn is the {messages[-1].role}'s" if messages else ""
        raise BadRow(f"has no response{last}", "a row ends with what the assistant is to answer")
    if not messages[-1].content.strip():
        raise BadRow("has no response: it is blank", "a row ends with what the assistant is to answer")
    turns = messages[1:] if messages[0].role == "system" else messages
    for number, message in enumerate(turns, 1):
        expected = "user" if number % 2 else "assistant"
        if message.role == "system":
            raise BadRow("has a system message that is not its first message", "put one at the start, or none")
        if message.role != expected:
            what = f"has turn {number} from the {message.role} where the {expected} speaks"
            raise BadRow(what, "user and assistant take turns, and the user begins")
        if not message.content.strip():
            raise BadRow(f"has nothing in turn {number}, the {message.role}'s", "give it text, or leave the row out")
    for message in messages:
        _encodable(message.content)
        _encodable(message.input or "")


def _encodable(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise BadRow("has half of a surrogate pair, which is no character", "mend the escape \\ud800 … in it") from None


def example_id(messages: Sequence[Message]) -> str:
    """The first 16 hex digits of the SHA-256 over roles and exact texts, Unicode-normalised (NFC).

    An input that is kept apart counts as if it stood below the content, as it does in other row forms.
    """
    return _digest([[message.role, _text(message)] for message in messages])


def prompt_id(example: Example) -> str:
    """The hash of all that comes before the response, runs of white space counted as one space.

    Two rows with the same question have the same hash, whatever their answers.
    """
    return _digest([[message.role, " ".join(_text(message).split())] for message in example.messages[:-1]])


def _text(message: Message) -> str:
    text = message.content if message.input is None else f"{message.content}\n\n{message.input}"
    return unicodedata.normalize("NFC", text)


def _digest(value: list[list[str]]) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]

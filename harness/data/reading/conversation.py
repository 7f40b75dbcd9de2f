"""What a conversation is here, and the hashes that tell one from another.

Knows no row form and no file. Every hash is of content alone, so it is the same in every file and on every machine.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from harness.types import Example, Message

ROLES = ("system", "user", "assistant", "tool", "text")

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
_sorted = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False, sort_keys=True).encode


class BadRow(Exception):
    """A row that is no conversation. what: what is wrong, as a predicate ("has no response"). hint: the remedy."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what, self.hint = what, hint


def example(
    messages: Sequence[Message], place: str, tools: Sequence[Mapping[str, Any]] = (), choices: Sequence[str] = ()
) -> Example:
    """The example of a row's messages; system messages that are blank are left out.

    Raises BadRow unless the messages are one `text`, or: at most one system message, first; then user and assistant
    in turn, ending with the assistant; tools answer between an assistant's turn that calls some and its next turn.
    Each has some text; an assistant's turn with calls, and what a tool answers, may be blank. Something is trained.
    """
    kept = tuple(message for message in messages if message.role != "system" or message.content.strip())
    if kept and kept[0].role == "text":
        _check_text(kept)
    else:
        _check(kept)
    try:
        return Example(example_id(kept, tools, choices), kept, place, tuple(tools), tuple(choices))
    except UnicodeEncodeError:
        raise BadRow("has half of a surrogate pair, which is no character", "mend the escape \\ud800 … in it") from None
    except (TypeError, ValueError, RecursionError) as error:  # Arrow has dates and bytes, and Python NaN; JSON has none
        raise BadRow(f"has a call or a tool that JSON cannot hold: {error}", "mend the row") from None


def _check_text(messages: Sequence[Message]) -> None:
    if len(messages) > 1:
        raise BadRow("has other messages beside its text", "a plain text stands alone")
    if not messages[0].content.strip():
        raise BadRow("has a text of white space alone", "give it text, or leave the row out")


def _check(messages: Sequence[Message]) -> None:
    if not messages or messages[-1].role != "assistant":
        last = f": its last turn is the {messages[-1].role}'s" if messages else ""
        raise BadRow(f"has no response{last}", "a row ends with what the assistant is to answer")
    if not messages[-1].content.strip() and not messages[-1].calls:
        raise BadRow("has no response: it is blank", "a row ends with what the assistant is to answer")
    turns = messages[1:] if messages[0].role == "system" else messages
    before: Message | None = None
    trained = False
    for number, message in enumerate(turns, 1):
        role = message.role
        if role == "assistant":
            fits = before is not None and before.role in ("user", "tool")
            trained = trained or message.trained
        elif role == "user":
            fits = before is None or before.role == "assistant"
        else:
            fits = role == "tool" and before is not None and (before.role == "tool" or bool(before.calls))
        if not fits:
            raise _misplaced(number, message, before)
        if not message.content.strip() and role != "tool" and not message.calls:
            raise BadRow(f"has nothing in turn {number}, the {role}'s", "give it text, or leave the row out")
        before = message
    if not trained:
        raise BadRow("has nothing to train: no response is flagged as trained", "leave the row out, or flag one")


def _misplaced(number: int, message: Message, before: Message | None) -> BadRow:
    if message.role == "system":
        return BadRow("has a system message that is not its first message", "put one at the start, or none")
    if message.role == "tool":
        what = f"has turn {number} from a tool, and the turn before calls none"
        return BadRow(what, "a tool answers after an assistant's turn with calls")
    expected = "user" if before is None or before.role == "assistant" else "assistant"
    what = f"has turn {number} from the {message.role} where the {expected} speaks"
    return BadRow(what, "user and assistant take turns, and the user begins")


def example_id(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), choices: Sequence[str] = ()
) -> str:
    """The first 16 hex digits of the SHA-256 over roles, exact texts, calls, tools' names, the tools on offer and the
    choices of a question.

    Texts are Unicode-normalised (NFC). An input that is kept apart counts as if it stood below the content, as it does
    in other row forms. Which turns are trained is no content.
    """
    value: list[Any] = [[message.role, _text(message), *_more(message)] for message in messages]
    if tools:
        value.append({"tools": _normal(_sorted(list(tools)))})
    if choices:
        value.append({"choices": [_normal(choice) for choice in choices]})
    return _digest(value)


def prompt_id(example: Example) -> str:
    """The hash of all that is said before the response, runs of white space counted as one space; of a text: all of it.

    Two rows with the same question have the same hash, whatever their answers and the tools on offer.
    """
    return prompt_ids(example)[0]


def prompt_ids(example: Example) -> tuple[str, str, tuple[str, ...]]:
    """`prompt_id`; the hash of the opening, which is all that is said before the first response; and the hashes of the
    prompts of the earlier responses that are trained, each the `prompt_id` of a row that ends with that response.

    Of a text, and of a conversation with one response, the opening is the prompt.
    """
    messages = example.messages
    asked = messages if messages[0].role == "text" else messages[:-1]
    opening, earlier = "", []
    hashed = hashlib.sha256(b"[")  # grows turn by turn into what `_digest` hashes of their list
    for index, message in enumerate(asked):
        if message.role == "assistant" and (message.trained or not opening):
            upto = _closed(hashed)
            opening = opening or upto
            earlier += [upto] if message.trained else []
        turn = [message.role, " ".join(_text(message).split()), *_more(message)]
        hashed.update(("," * (index > 0) + _encode(turn)).encode())
    whole = _closed(hashed)
    return whole, opening or whole, tuple(earlier)


def _closed(hashed: Any) -> str:
    """What a hash would be with the end of the list."""
    end = hashed.copy()
    end.update(b"]")
    return str(end.hexdigest()[:16])


def _more(message: Message) -> list[Any]:
    """What a turn holds beside its text; nothing for the turns of a conversation without tools."""
    more: list[Any] = []
    if message.calls:
        more.append({"calls": [[call.name, _normal(_sorted(call.arguments))] for call in message.calls]})
    if message.name is not None:
        more.append({"name": message.name})
    return more


def _text(message: Message) -> str:
    return _normal(message.content if message.input is None else f"{message.content}\n\n{message.input}")


def _normal(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _digest(value: list[Any]) -> str:
    return hashlib.sha256(_encode(value).encode()).hexdigest()[:16]

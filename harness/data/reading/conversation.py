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

_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
_to_sorted_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False, sort_keys=True).encode


class InvalidRow(Exception):
    """A row that is no conversation. what: what is wrong, as a predicate ("has no response"). hint: the remedy."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what, self.hint = what, hint


def build_example(
    messages: Sequence[Message], location: str, tools: Sequence[Mapping[str, Any]] = (), choices: Sequence[str] = ()
) -> Example:
    """The example of a row's messages; system messages that are blank are left out.

    Raises InvalidRow unless the messages are one `text`, or: at most one system message, first; then user and assistant
    in turn, ending with the assistant; tools answer between an assistant's turn that calls some and its next turn.
    Each has some text; an assistant's turn with calls, and what a tool answers, may be blank. Something is trained.
    """
    kept = tuple(message for message in messages if message.role != "system" or message.content.strip())
    if kept and kept[0].role == "text":
        _validate_text(kept)
    else:
        _validate_turns(kept)
    try:
        return Example(example_id(kept, tools, choices), kept, location, tuple(tools), tuple(choices))
    except UnicodeEncodeError:
        raise InvalidRow(
            "has half of a surrogate pair, which is no character", "mend the escape \\ud800 … in it"
        ) from None
    except (TypeError, ValueError, RecursionError) as error:  # Arrow has dates and bytes, and Python NaN; JSON has none
        raise InvalidRow(f"has a call or a tool that JSON cannot hold: {error}", "mend the row") from None


def _validate_text(messages: Sequence[Message]) -> None:
    if len(messages) > 1:
        raise InvalidRow("has other messages beside its text", "a plain text stands alone")
    if not messages[0].content.strip():
        raise InvalidRow("has a text of white space alone", "give it text, or leave the row out")


def _validate_turns(messages: Sequence[Message]) -> None:
    if not messages or messages[-1].role != "assistant":
        last = f": its last turn is the {messages[-1].role}'s" if messages else ""
        raise InvalidRow(f"has no response{last}", "a row ends with what the assistant is to answer")
    if not messages[-1].content.strip() and not messages[-1].tool_calls:
        raise InvalidRow("has no response: it is blank", "a row ends with what the assistant is to answer")
    turns = messages[1:] if messages[0].role == "system" else messages
    before: Message | None = None
    trained = False
    for number, message in enumerate(turns, 1):
        role = message.role
        if role == "assistant":
            fits = before is not None and before.role in ("user", "tool")
            trained = trained or message.train
        elif role == "user":
            fits = before is None or before.role == "assistant"
        else:
            fits = role == "tool" and before is not None and (before.role == "tool" or bool(before.tool_calls))
        if not fits:
            raise _turn_order_error(number, message, before)
        if not message.content.strip() and role != "tool" and not message.tool_calls:
            raise InvalidRow(f"has nothing in turn {number}, the {role}'s", "give it text, or leave the row out")
        before = message
    if not trained:
        raise InvalidRow("has nothing to train: no response is flagged as trained", "leave the row out, or flag one")


def _turn_order_error(turn_number: int, message: Message, previous: Message | None) -> InvalidRow:
    if message.role == "system":
        return InvalidRow("has a system message that is not its first message", "put one at the start, or none")
    if message.role == "tool":
        what = f"has turn {turn_number} from a tool, and the turn before calls none"
        return InvalidRow(what, "a tool answers after an assistant's turn with calls")
    expected = "user" if previous is None or previous.role == "assistant" else "assistant"
    what = f"has turn {turn_number} from the {message.role} where the {expected} speaks"
    return InvalidRow(what, "user and assistant take turns, and the user begins")


def example_id(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), choices: Sequence[str] = ()
) -> str:
    """The first 16 hex digits of the SHA-256 over roles, exact texts, calls, tools' names, the tools on offer and the
    choices of a question.

    Texts are Unicode-normalised (NFC). An input that is kept apart counts as if it stood below the content, as it does
    in other row forms. Which turns are trained is no content.
    """
    value: list[Any] = [[message.role, _normalized_text(message), *_tool_content(message)] for message in messages]
    if tools:
        value.append({"tools": _normalize_unicode(_to_sorted_json(list(tools)))})
    if choices:
        value.append({"choices": [_normalize_unicode(choice) for choice in choices]})
    return _short_digest(value)


def prompt_hash(example: Example) -> str:
    """The hash of all that is said before the response, runs of white space counted as one space; of a text: all of it.

    Two rows with the same question have the same hash, whatever their answers and the tools on offer.
    """
    return prompt_hashes(example)[0]


def prompt_hashes(example: Example) -> tuple[str, str, tuple[str, ...]]:
    """`prompt_hash`; the hash of the opening, which is all that is said before the first response; and the hashes of
    the prompts of the earlier responses that are trained, each the `prompt_hash` of a row that ends with that response.

    Of a text, and of a conversation with one response, the opening is the prompt.
    """
    messages = example.messages
    asked = messages if messages[0].role == "text" else messages[:-1]
    opening, earlier = "", []
    hashed = hashlib.sha256(b"[")  # grows turn by turn into what `_short_digest` hashes of their list
    for index, message in enumerate(asked):
        if message.role == "assistant" and (message.train or not opening):
            upto = _list_digest(hashed)
            opening = opening or upto
            earlier += [upto] if message.train else []
        turn = [message.role, " ".join(_normalized_text(message).split()), *_tool_content(message)]
        hashed.update(("," * (index > 0) + _to_json(turn)).encode())
    whole = _list_digest(hashed)
    return whole, opening or whole, tuple(earlier)


def _list_digest(hasher: Any) -> str:
    """What a hash would be with the end of the list."""
    end = hasher.copy()
    end.update(b"]")
    return str(end.hexdigest()[:16])


def _tool_content(message: Message) -> list[Any]:
    """What a turn holds beside its text; nothing for the turns of a conversation without tools."""
    more: list[Any] = []
    if message.tool_calls:
        more.append(
            {"calls": [[call.name, _normalize_unicode(_to_sorted_json(call.arguments))] for call in message.tool_calls]}
        )
    if message.name is not None:
        more.append({"name": message.name})
    return more


def _normalized_text(message: Message) -> str:
    return _normalize_unicode(message.content if message.input is None else f"{message.content}\n\n{message.input}")


def _normalize_unicode(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _short_digest(value: list[Any]) -> str:
    return hashlib.sha256(_to_json(value).encode()).hexdigest()[:16]

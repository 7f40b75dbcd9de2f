"""Build an `Example` from the messages of a row, validate it, and compute the hashes of its content.

Every hash depends on the content alone, so it is the same in every file and on every machine.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from harness.errors import InvalidRow
from harness.types import Example, Message

_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
_to_sorted_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False, sort_keys=True).encode


def build_example(
    messages: Sequence[Message],
    location: str,
    tools: Sequence[Mapping[str, Any]] = (),
    choices: Sequence[str] = (),
    *,
    assistant_may_begin: bool = False,
) -> Example:
    """Build the example of a row; blank system messages are dropped.

    Valid messages are one `text`, or a conversation: at most one system message, which is the first; then user and
    assistant alternate, and the assistant ends. Tool messages follow an assistant's turn with calls, before its next
    turn. Every message has text, except an assistant's turn with calls and a tool message. At least one response is
    trained.

    Args:
        messages: The messages in order.
        location: Where the row is stored, for errors.
        tools: The tools on offer, as JSON Schemas of functions.
        choices: The choices of a multiple-choice question.
        assistant_may_begin: Whether the assistant may have the first turn.

    Raises:
        InvalidRow: The messages are not a valid conversation, or a call or a tool is not JSON.
    """
    messages = tuple(message for message in messages if message.role != "system" or message.content.strip())
    if messages and messages[0].role == "text":
        _validate_text(messages)
    else:
        _validate_turns(messages, assistant_may_begin)
    try:
        return Example(example_id(messages, tools, choices), messages, location, tuple(tools), tuple(choices))
    except UnicodeEncodeError:
        raise InvalidRow(
            "has half of a surrogate pair, which is not a character", "fix the escape \\ud800 … in it"
        ) from None
    except (TypeError, ValueError, RecursionError) as error:  # Arrow has dates and bytes, and Python NaN; JSON has none
        raise InvalidRow(f"has a call or a tool that JSON cannot hold: {error}", "fix the row") from None


def _validate_text(messages: Sequence[Message]) -> None:
    if len(messages) > 1:
        raise InvalidRow("has a text and other messages", "make the text a row without them")
    if not messages[0].content.strip():
        raise InvalidRow("has a text of white space only", "write the text, or remove the row")


def _validate_turns(messages: Sequence[Message], assistant_may_begin: bool) -> None:
    if not messages or messages[-1].role != "assistant":
        last = f": its last turn is the {messages[-1].role}'s" if messages else ""
        hint = "end the row with the assistant's answer"
        if any(message.role == "assistant" for message in messages):
            hint += ', or drop the turns after the last answer: "incomplete": "drop"'
        raise InvalidRow(f"has no response{last}", hint)
    if not messages[-1].content.strip() and not messages[-1].tool_calls:
        raise InvalidRow("has no response: it is blank", "end the row with the assistant's answer")
    turns = messages[1:] if messages[0].role == "system" else messages
    previous: Message | None = None
    has_trained_response = False
    for turn_number, message in enumerate(turns, 1):
        role = message.role
        if role == "assistant":
            in_order = assistant_may_begin if previous is None else previous.role in ("user", "tool")
            has_trained_response = has_trained_response or message.train
        elif role == "user":
            in_order = previous is None or previous.role == "assistant"
        else:
            in_order = (
                role == "tool" and previous is not None and (previous.role == "tool" or bool(previous.tool_calls))
            )
        if not in_order:
            raise _turn_order_error(turn_number, message, previous)
        if not message.content.strip() and role != "tool" and not message.tool_calls:
            raise InvalidRow(f"has a blank turn {turn_number}, the {role}'s", "write its text, or remove the row")
        previous = message
    if not has_trained_response:
        raise InvalidRow(
            "has nothing to train: no response is flagged as trained", "remove the row, or flag a response as trained"
        )


def _turn_order_error(turn_number: int, message: Message, previous: Message | None) -> InvalidRow:
    if message.role == "system":
        return InvalidRow("has a system message that is not its first message", "move it to the start, or remove it")
    if message.role == "tool":
        what = f"has turn {turn_number} from a tool, and the turn before has no calls"
        hint = 'write the calls of the turn before in its "tool_calls", or in its text as '
        return InvalidRow(what, hint + '<tool_call>{"name": …, "arguments": {…}}</tool_call>')
    expected = "user" if previous is None or previous.role == "assistant" else "assistant"
    what = f"has turn {turn_number} from the {message.role}, expected the {expected}"
    hint = "alternate user and assistant, starting with the user"
    if previous is None and message.role == "assistant":
        hint += ', or do not train the first turn: "first_assistant": "context" (or "drop")'
    elif previous is not None and previous.role == message.role:
        hint += ', or join the turns: "merge_turns": true'
    return InvalidRow(what, hint)


def example_id(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), choices: Sequence[str] = ()
) -> str:
    """Return the first 16 hex digits of the SHA-256 of an example's content.

    The content is: roles, exact texts, reasoning, calls, names of tools, the tools on offer, and the choices of a
    question. Texts are Unicode-normalized (NFC). A separate `input` counts as text below the content, where other row
    formats have it. Which turns are trained is not part of the content.
    """
    value: list[Any] = [
        [
            message.role,
            _normalized_text(message),
            *_tool_content(message),
            *([] if message.reasoning is None else [{"reasoning": _normalize_unicode(message.reasoning)}]),
        ]
        for message in messages
    ]
    if tools:
        value.append({"tools": _normalize_unicode(_to_sorted_json(list(tools)))})
    if choices:
        value.append({"choices": [_normalize_unicode(choice) for choice in choices]})
    return _short_digest(value)


def prompt_hashes(example: Example) -> tuple[str, str, tuple[str, ...]]:
    """Return the hashes of an example's prompts, 16 hex digits each.

    Returns:
        1. The hash of everything before the last response, or of a whole plain text. A run of white space counts as
           one space. Rows with the same question have the same hash, whatever their answers and the tools on offer.
        2. The hash of the opening, which is everything before the first response to a user. It equals the first hash
           for a plain text and for a conversation with one response.
        3. For each earlier response that is trained, the first hash of a row that ends with that response.
    """
    messages = example.messages
    prompt = messages if messages[0].role == "text" else messages[:-1]
    opening_hash, earlier_hashes = "", []
    has_question = False
    hasher = hashlib.sha256(b"[")  # updated turn by turn with the JSON array that `_short_digest` would hash
    for index, message in enumerate(prompt):
        has_question = has_question or message.role == "user"
        if has_question and message.role == "assistant" and (message.train or not opening_hash):
            hash_so_far = _list_digest(hasher)
            opening_hash = opening_hash or hash_so_far
            earlier_hashes += [hash_so_far] if message.train else []
        turn = [message.role, " ".join(_normalized_text(message).split()), *_tool_content(message)]
        hasher.update(("," * (index > 0) + _to_json(turn)).encode())
    full_hash = _list_digest(hasher)
    return full_hash, opening_hash or full_hash, tuple(earlier_hashes)


def _list_digest(hasher: Any) -> str:
    """Return the digest of the JSON array that the hasher has seen so far, with its closing bracket."""
    closed = hasher.copy()
    closed.update(b"]")
    return str(closed.hexdigest()[:16])


def _tool_content(message: Message) -> list[Any]:
    """Return the hashed content of a turn besides its text: its calls and the name of the tool; often empty."""
    content: list[Any] = []
    if message.tool_calls:
        calls = [[call.name, _normalize_unicode(_to_sorted_json(call.arguments))] for call in message.tool_calls]
        content.append({"calls": calls})
    if message.name is not None:
        content.append({"name": message.name})
    return content


def _normalized_text(message: Message) -> str:
    return _normalize_unicode(message.content if message.input is None else f"{message.content}\n\n{message.input}")


def _normalize_unicode(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _short_digest(value: list[Any]) -> str:
    return hashlib.sha256(_to_json(value).encode()).hexdigest()[:16]

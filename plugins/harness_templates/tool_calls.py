"""JSON of tools as Hugging Face's `tojson` writes it, and the ids that match tool calls with answers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from harness import Message

CallIds = list[tuple[str, ...]]
"""For each message the ids of the calls that it makes, or of the one call that it answers."""

MISTRAL_CALL_ID = re.compile("[a-zA-Z0-9]{9}")
"""An id as Mistral's formats require it (github.com/mistralai/mistral-common, the validator of tokenizers v3)."""


@dataclass(frozen=True)
class _UnansweredCall:
    """A call without an answer so far: its tool, its id in the data and the id that is written."""

    tool: str
    data_id: str | None
    written_id: str


def dump_json(value: Any, indent: int | None = None) -> str:
    """Return JSON as in the models' training data: keys in the order of the data, escapes only where required."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def to_openai_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tool in OpenAI's shape, from its function's schema."""
    return {"type": "function", "function": dict(tool)}


def assign_call_ids(messages: Sequence[Message], *, mistral_ids: bool = True) -> CallIds:
    """Return the ids of a conversation's calls: the data's own, else numbered through the conversation.

    A numbered id is nine letters and digits: a model that has to write an id should be able to know it. All calls of
    a turn are numbered if one of them has no usable id.

    An answer with the id of a call answers that call. Another answers the first unanswered call of its tool, or the
    first of all if the data does not name the tool.

    Args:
        messages: The conversation.
        mistral_ids: Use an id of the data only if it is nine letters and digits.
    """
    ids: CallIds = []
    unanswered: list[_UnansweredCall] = []
    count = 0
    for index, message in enumerate(messages):
        if message.role == "tool":
            call = _find_answered_call(message, unanswered, messages[index + 1 :])
            unanswered.remove(call)
            ids.append((call.written_id,))
        else:
            data_ids = [
                call.id
                for call in message.tool_calls
                if call.id is not None and (not mistral_ids or MISTRAL_CALL_ID.fullmatch(call.id))
            ]
            numbered = [f"call{count + number:05d}" for number in range(1, len(message.tool_calls) + 1)]
            count += len(numbered)
            ids.append(tuple(data_ids if len(data_ids) == len(numbered) else numbered))
            unanswered = [
                _UnansweredCall(call.name, call.id, written_id)
                for call, written_id in zip(message.tool_calls, ids[-1], strict=True)
            ]
    return ids


def _find_answered_call(
    message: Message, unanswered: Sequence[_UnansweredCall], later_messages: Sequence[Message]
) -> _UnansweredCall:
    if message.tool_call_id is not None:
        for call in unanswered:
            if call.data_id == message.tool_call_id:
                return call
    # A call that a later answer names by its id is not available to this one.
    later_answers = takewhile(lambda later: later.role == "tool", later_messages)
    claimed_ids = {answer.tool_call_id for answer in later_answers} - {None}
    available = [call for call in unanswered if call.data_id not in claimed_ids] or unanswered
    return next((call for call in available if call.tool == message.name), available[0])

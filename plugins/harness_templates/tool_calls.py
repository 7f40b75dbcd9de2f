"""Tools as the formats write them: JSON as Hugging Face's `tojson` gives it, and ids that pair calls with answers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from harness import Message

CallIds = list[tuple[str, ...]]
"""For each message the ids of the calls that it makes, or of the one that it answers."""

MISTRAL_CALL_ID = re.compile("[a-zA-Z0-9]{9}")
"""An id as Mistral's formats want it (github.com/mistralai/mistral-common, the validator of tokenizers v3)."""


def dump_json(value: Any, indent: int | None = None) -> str:
    """JSON as models have seen it: keys in the order of the data, and no character escaped that need not be."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def to_openai_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool in OpenAI's shape, from its function's schema."""
    return {"type": "function", "function": dict(tool)}


def assign_call_ids(messages: Sequence[Message], *, mistral_ids: bool = True) -> CallIds:
    """The ids of a conversation's calls: the data's own, else counted through the conversation.

    Counted ones are nine letters and digits: what a model has to write should be something that it can know. A turn
    has ids of one kind: where one of its calls has none, all are counted. mistral_ids: so they are where one of them
    is not nine letters and digits, too.
    An answer that names its call has that call's id. Another belongs to the first call of its tool that is still open,
    or to the first of all where the data does not name the tool.
    """
    ids: CallIds = []
    waiting: list[tuple[str, str | None, str]] = []  # tool, own id and id of each call that is not answered yet
    count = 0
    for index, message in enumerate(messages):
        if message.role == "tool":
            answered = _find_answered_call(message, waiting, messages[index + 1 :])
            waiting.remove(answered)
            ids.append((answered[2],))
        else:
            own = [
                call.id
                for call in message.tool_calls
                if call.id is not None and (not mistral_ids or MISTRAL_CALL_ID.fullmatch(call.id))
            ]
            counted = [f"call{count + number:05d}" for number in range(1, len(message.tool_calls) + 1)]
            count += len(counted)
            ids.append(tuple(own if len(own) == len(counted) else counted))
            waiting = [(call.name, call.id, made) for call, made in zip(message.tool_calls, ids[-1], strict=True)]
    return ids


def _find_answered_call(
    message: Message, unanswered: Sequence[tuple[str, str | None, str]], later_messages: Sequence[Message]
) -> tuple[str, str | None, str]:
    if message.tool_call_id is not None:
        for call in unanswered:
            if call[1] == message.tool_call_id:
                return call
    claimed = {other.tool_call_id for other in takewhile(lambda other: other.role == "tool", later_messages)} - {None}
    free = [call for call in unanswered if call[1] not in claimed] or unanswered
    return next((call for call in free if call[0] == message.name), free[0])

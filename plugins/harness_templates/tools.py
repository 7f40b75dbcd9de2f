"""Tools as the formats write them: JSON as Hugging Face's `tojson` gives it, and ids that pair calls with answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from harness import Message


def dumps(value: Any, indent: int | None = None) -> str:
    """JSON as models have seen it: keys in the order of the data, and no character escaped that need not be."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def declared(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool in OpenAI's shape, from its function's schema."""
    return {"type": "function", "function": dict(tool)}


def call_ids(messages: Sequence[Message]) -> list[tuple[str, ...]]:
    """For each message the ids of the calls that it makes, or of the one that it answers.

    Ids are nine letters and digits, as Mistral's formats want them, counted through the conversation: whatever a
    model has to write should be something that it can know. An answer belongs to the first call of its tool that is
    still open, or to the first of all where the data does not name the tool.
    """
    ids: list[tuple[str, ...]] = []
    waiting: list[tuple[str, str]] = []
    count = 0
    for message in messages:
        if message.role == "tool":
            named = [call for call in waiting if call[0] == message.name]
            answered = (named or waiting)[0]
            waiting.remove(answered)
            ids.append((answered[1],))
        else:
            waiting = [(call.name, f"call{count + number:05d}") for number, call in enumerate(message.calls, 1)]
            count += len(waiting)
            ids.append(tuple(identity for _, identity in waiting))
    return ids

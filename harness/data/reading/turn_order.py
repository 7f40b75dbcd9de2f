"""Arrange the turns of a row as the options of its source say, before their order is validated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from harness.data.reading.row_options import RowOptions
from harness.errors import InvalidRow
from harness.types import Message


def arrange_turns(messages: Sequence[Message], options: RowOptions) -> list[Message]:
    """Return the turns: merged, without those after the last response, and a first response not trained or dropped.

    Each of the three happens only if its option is set.

    Raises:
        InvalidRow: Two turns to merge have different training flags.
    """
    turns = _merge_turns(messages) if options.merge_turns else list(messages)
    if options.incomplete == "drop" and any(message.role == "assistant" for message in turns):
        while turns[-1].role != "assistant":
            turns.pop()
    start = next((index for index, message in enumerate(turns) if message.role != "system"), len(turns))
    if options.first_assistant != "error" and start < len(turns) and turns[start].role == "assistant":
        turns[start : start + 1] = [without_training(turns[start])] if options.first_assistant == "context" else []
    return turns


def split_responses(messages: Sequence[Message]) -> list[list[Message]]:
    """Return one conversation for each trained response, which ends with it and trains nothing else."""
    return [
        [*(without_training(message) for message in messages[:index]), message]
        for index, message in enumerate(messages)
        if message.role == "assistant" and message.train
    ]


def train_only_last(messages: Sequence[Message]) -> list[Message]:
    """Return the messages with no response trained but the last."""
    return [*(without_training(message) for message in messages[:-1]), *messages[-1:]]


def without_training(message: Message) -> Message:
    """Return a message that is not trained."""
    return replace(message, train=False) if message.role == "assistant" and message.train else message


def _merge_turns(messages: Sequence[Message]) -> list[Message]:
    """Join successive turns of one role, a line break between their texts. Answers of tools stay separate."""
    merged: list[Message] = []
    for message in messages:
        last = merged[-1] if merged else None
        if last is None or last.role != message.role or message.role in ("tool", "text"):
            merged.append(message)
            continue
        if last.train != message.train:
            what = f"has two {message.role}'s turns in a row, of which one is trained"
            raise InvalidRow(what, "give both the same training flag")
        reasoning = [text for text in (last.reasoning, message.reasoning) if text is not None]
        merged[-1] = replace(
            last,
            content="\n".join(text for text in (last.content, message.content) if text.strip()),
            tool_calls=last.tool_calls + message.tool_calls,
            reasoning="\n".join(reasoning) or None,
        )
    return merged

"""Return the prompt, the response and the text of an example, for comparisons of wording."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from harness.types import Example, Message


def conversation_text(messages: Iterable[Message]) -> str:
    """Return the text of messages, one part per line: contents, inputs, and the calls with their arguments."""
    return "\n".join(part for message in messages for part in _message_texts(message))


def _message_texts(message: Message) -> Iterator[str]:
    yield message.content
    if message.input:
        yield message.input
    for call in message.tool_calls:
        yield f"{call.name} {json.dumps(call.arguments, ensure_ascii=False)}"


def prompt_messages(example: Example) -> tuple[Message, ...]:
    """Return the messages before the response; empty for a plain text."""
    return example.messages[:-1]


def earlier_trained_prompts(example: Example) -> Iterator[tuple[Message, ...]]:
    """Yield the messages before each trained response except the last one."""
    for index, message in enumerate(example.messages[:-1]):
        if message.role == "assistant" and message.train:
            yield example.messages[:index]


def response_message(example: Example) -> Message:
    """Return the last message: the response, or the plain text itself."""
    return example.messages[-1]

"""What the templates share: taking a conversation apart, and refusing one that a format has no place for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness import HarnessError, Message, Span

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Turn:
    """A user's message and the response to it; the last turn of an open conversation has none."""

    user: Message
    response: str | None


def refusal(template: str, what: str, hint: str) -> HarnessError:
    """The error of a template that has no place for a conversation. Who knows the row adds its place."""
    return HarnessError(f"template {template}", what, hint)


def has_input(message: Message) -> bool:
    """Whether the message keeps an input apart from its content. A blank one counts as none, as in Alpaca's data."""
    return message.input is not None and bool(message.input.strip())


def text_of(message: Message) -> str:
    """The whole text of a message, its input below the content, for formats with no place of its own for an input."""
    return f"{message.content}\n\n{message.input}" if has_input(message) else message.content


def frame(text: str, *, trained: bool = False) -> Span:
    """Text that the format writes, in which special tokens count as such."""
    return Span(text, trained=trained, frame=True)


def check_roles(messages: Sequence[Message], *, open: bool, template: str) -> None:
    """Raise HarnessError unless every role is known and the conversation ends where it must.

    open: it must end before a response; otherwise with one.
    """
    for message in messages:
        if message.role not in ROLES:
            raise refusal(template, f"there is no place for the role {message.role!r}", f"use {', '.join(ROLES)}")
    last = messages[-1].role if messages else "nothing"
    if open and last == "assistant":
        raise refusal(template, "a prompt cannot end with a response", "end it with the user's message")
    if not open and last != "assistant":
        raise refusal(template, f"the conversation ends with {last}", "end it with the assistant's response")
    if all(message.role == "system" for message in messages):
        raise refusal(template, "the conversation has no user message", "begin it with one")


def take_apart(messages: Sequence[Message], *, open: bool, template: str) -> tuple[str | None, tuple[Turn, ...]]:
    """The system message, if any, and the turns of a conversation in which user and assistant alternate.

    Raises HarnessError when they do not, or when a system message stands anywhere but first.
    """
    check_roles(messages, open=open, template=template)
    system = messages[0].content if messages[0].role == "system" else None
    rest = messages[1:] if system is not None else messages
    for index, message in enumerate(rest):
        expected = ("user", "assistant")[index % 2]
        if message.role != expected:
            what = f"message {index + 1} after the system message is {message.role!r} where {expected!r} must stand"
            hint = "let user and assistant alternate, or choose a template that is free in this, such as chatml"
            raise refusal(template, what, hint)
    turns = tuple(
        Turn(rest[index], rest[index + 1].content if index + 1 < len(rest) else None)
        for index in range(0, len(rest), 2)
    )
    return system, turns


def end_of_sequence(tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    """The tokenizer's end-of-sequence token. Raises HarnessError when it has none: nothing would end a response."""
    if not tokenizer.eos_token:
        raise refusal(template, "the tokenizer has no end-of-sequence token", "set one, or choose another template")
    return str(tokenizer.eos_token)

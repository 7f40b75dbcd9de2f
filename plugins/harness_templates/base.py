"""What the templates share: taking a conversation apart, and refusing one that a format has no place for."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

from harness import HarnessError, Message, Span, Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


ROLES = ("system", "user", "assistant")
WITH_TOOLS = "choose one that has: qwen, llama3 or mistral, or the model's own (tokenizer)"
ALTERNATE = "let user and assistant alternate, or choose a template that is free in this, such as chatml"


@dataclass(frozen=True)
class Turn:
    """A user's message and the response to it; the last turn of an open conversation has none."""

    user: Message
    response: Message | None


def refusal(template: str, what: str, hint: str) -> HarnessError:
    """The error of a template that has no place for a conversation. Who knows the row adds its place."""
    return HarnessError(f"template {template}", what, hint)


def has_input(message: Message) -> bool:
    """Whether the message keeps an input apart from its content. A blank one counts as none, as in Alpaca's data."""
    return message.input is not None and bool(message.input.strip())


def text_of(message: Message) -> str:
    """The whole text of a message, its input below the content, for formats with no place of its own for an input."""
    return f"{message.content}\n\n{message.input}" if has_input(message) else message.content


@lru_cache(maxsize=1024)
def frame(text: str, *, trained: bool = False) -> Span:
    """Text that the format writes, in which special tokens count as such. A format has few, so they are kept."""
    return Span(text, trained=trained, frame=True)


def joined(spans: Iterable[Span]) -> tuple[Span, ...]:
    """The spans without those that are empty."""
    return tuple(span for span in spans if span.text)


def is_trained(message: Message) -> bool:
    """Whether the loss is taken on the message: only responses can be trained, and a row may leave some of them out."""
    return message.role == "assistant" and message.trained


def with_system(messages: Sequence[Message], system: str | None) -> Sequence[Message]:
    """The conversation, begun with `system` where it has no system message of its own."""
    if system is None or not messages or messages[0].role == "system":
        return messages
    return (Message("system", system), *messages)


# -- what a format has no place for -----------------------------------------------------------------------------------


def check(
    messages: Sequence[Message],
    *,
    template: str,
    open: bool,
    tools: Sequence[Mapping[str, Any]] = (),
    takes_tools: bool = False,
) -> None:
    """Raise HarnessError unless every role is known and the conversation ends where it must.

    open: it must end before a response; otherwise with one. takes_tools: whether the format has a place for tools, for
    calls of them and for what they answer.
    """
    if not takes_tools:
        _check_no_tools(messages, tools, template)
    roles = (*ROLES, "tool") if takes_tools else ROLES
    unanswered = 0
    for number, message in enumerate(messages, 1):
        if message.role not in roles:
            raise refusal(template, f"there is no place for the role {message.role!r}", f"use {', '.join(roles)}")
        if message.calls and message.role != "assistant":
            what = f"message {number} ({message.role}) calls a tool"
            raise refusal(template, what, "only the assistant calls tools: mend the row")
        unanswered = unanswered - 1 if message.role == "tool" else len(message.calls)
        if unanswered < 0:
            what = f"message {number} is what a tool answers, and no call before it is left to answer"
            raise refusal(template, what, "let it follow the assistant's message that calls the tool")
    last = messages[-1].role if messages else "nothing"
    if open and last == "assistant":
        raise refusal(template, "a prompt cannot end with a response", "end it with the user's message")
    if not open and last != "assistant":
        raise refusal(template, f"the conversation ends with {last}", "end it with the assistant's response")
    if all(message.role == "system" for message in messages):
        raise refusal(template, "the conversation has no user message", "begin it with one")


def _check_no_tools(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], template: str) -> None:
    if tools:
        raise refusal(template, "the format has no place for tools", WITH_TOOLS)
    for number, message in enumerate(messages, 1):
        if message.calls:
            raise refusal(template, f"the format has no place for tool calls (message {number})", WITH_TOOLS)
        if message.role == "tool":
            raise refusal(template, f"the format has no place for what a tool answers (message {number})", WITH_TOOLS)


def check_alternation(messages: Sequence[Message], template: str) -> None:
    """Raise HarnessError unless a system message stands first or nowhere, and user and assistant alternate after it.

    What tools answer counts to the assistant's turn, which goes on after it.
    """
    start = _start(messages)
    expected = "user"
    for index, message in enumerate(messages[start:], 1):
        if message.role == "tool":
            expected = "assistant"
            continue
        if message.role != expected:
            after = " after the system message" if start else ""
            what = f"message {index}{after} is {message.role!r} where {expected!r} must stand"
            raise refusal(template, what, ALTERNATE)
        expected = "user" if message.role == "assistant" else "assistant"


def take_apart(
    messages: Sequence[Message], *, open: bool, template: str, tools: Sequence[Mapping[str, Any]] = ()
) -> tuple[str | None, tuple[Turn, ...]]:
    """The system message, if any, and the turns of a conversation in which user and assistant alternate.

    Raises HarnessError when they do not, when a system message stands anywhere but first, or when there are tools.
    """
    check(messages, open=open, template=template, tools=tools)
    check_alternation(messages, template)
    start = _start(messages)
    rest = messages[start:]
    turns = tuple(
        Turn(rest[index], rest[index + 1] if index + 1 < len(rest) else None) for index in range(0, len(rest), 2)
    )
    return (messages[0].content if start else None), turns


def _start(messages: Sequence[Message]) -> int:
    return int(messages[0].role == "system")


def day_of(date: str, template: str) -> datetime.date:
    """The day that the option `date` names. Raises HarnessError when the calendar has no such day."""
    try:
        return datetime.date.fromisoformat(date)
    except ValueError as error:
        where, what = f"template.{template}.date", f"{date!r} is no date ({error})"
        raise HarnessError(where, what, "write it as 2024-07-26") from error


# -- what a format needs of a tokenizer -------------------------------------------------------------------------------


def end_of_sequence(tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    """The tokenizer's end-of-sequence token. Raises HarnessError when it has none: nothing would end a response."""
    if not tokenizer.eos_token:
        raise refusal(template, "the tokenizer has no end-of-sequence token", "set one, or choose another template")
    return str(tokenizer.eos_token)


def require(tokenizer: PreTrainedTokenizerBase, tokens: tuple[str, ...], template: str) -> None:
    """Raise HarnessError unless the tokenizer knows each of the format's own tokens.

    In pieces, they would be text like any other, and a user's text could end a turn.
    """
    fit = _fit.setdefault(tokenizer, set())
    if tokens in fit:
        return
    known = tokenizer.added_tokens_encoder
    for token in tokens:
        if token not in known:
            hint = "choose a template that needs none, such as alpaca, or another model"
            raise refusal(template, f"the tokenizer has no token {token}", hint)
    fit.add(tokens)


_fit: WeakKeyDictionary[PreTrainedTokenizerBase, set[tuple[str, ...]]] = WeakKeyDictionary()
"""Tokenizers and what they have been seen to know: asking takes long where there are many tokens."""


class Turns(Template):
    """Header, content, end of turn. Subclasses say how these look, and may write a turn otherwise.

    tokens: what the tokenizer must know as tokens of its own, or any text could be a header.
    gap: what stands between two turns; it is never trained, as a model that has ended its turn is done.
    """

    name: ClassVar[str]
    tokens: ClassVar[tuple[str, ...]] = ()
    gap: ClassVar[str] = "\n"
    takes_tools: bool = False

    def render(
        self,
        messages: Sequence[Message],
        tokenizer: PreTrainedTokenizerBase,
        *,
        open: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> tuple[Span, ...]:
        """The conversation as spans. Raises HarnessError when the tokenizer does not know the format's tokens."""
        self.check(messages, tokenizer, open, tools)
        spans = self.begin(tokenizer)
        for message in messages:
            spans += self.turn(message.role, self.body(message), tokenizer, trained=is_trained(message))
        if open:
            spans.append(frame(self.header("assistant")))
        return joined(spans)

    def stops(self, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
        """The end of turn, and the end-of-sequence token where that is another one."""
        return tuple(dict.fromkeys(stop for stop in (self.end(tokenizer), tokenizer.eos_token) if stop))

    # -- what a format says -------------------------------------------------------------------------------------------

    def header(self, role: str) -> str:
        """What stands before a turn of this role."""
        raise NotImplementedError

    def end(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """What ends every turn."""
        raise NotImplementedError

    def begin(self, tokenizer: PreTrainedTokenizerBase) -> list[Span]:
        """What stands before the first turn."""
        return []

    def body(self, message: Message) -> list[Span]:
        """What stands between header and end of turn."""
        return [Span(text_of(message), trained=is_trained(message))]

    # -- what they share ----------------------------------------------------------------------------------------------

    def check(
        self,
        messages: Sequence[Message],
        tokenizer: PreTrainedTokenizerBase,
        open: bool,
        tools: Sequence[Mapping[str, Any]],
    ) -> None:
        """Raise HarnessError when the format has no place for the conversation, or the tokenizer lacks its tokens."""
        check(messages, open=open, template=self.name, tools=tools, takes_tools=self.takes_tools)
        require(tokenizer, self.tokens, self.name)

    def turn(
        self, role: str, body: Sequence[Span], tokenizer: PreTrainedTokenizerBase, *, trained: bool = False
    ) -> list[Span]:
        """One turn with its header, end and gap."""
        return [frame(self.header(role)), *body, frame(self.end(tokenizer), trained=trained), frame(self.gap)]


class Headings(Template):
    """Instruction, input and response, each below its heading; the response ends with the end-of-sequence token.

    A row's system message stands in the place of the preface. Further turns repeat the headings, which are plain text:
    a user's text can look like one. Only the template can write the end-of-sequence token that ends a response. There
    is no place for tools.
    """

    name: ClassVar[str]
    instruction: ClassVar[str]
    input: ClassVar[str]
    response: ClassVar[str]
    preface: ClassVar[str] = ""
    preface_with_input: ClassVar[str] = ""

    def render(
        self,
        messages: Sequence[Message],
        tokenizer: PreTrainedTokenizerBase,
        *,
        open: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> tuple[Span, ...]:
        """The conversation as spans. Raises HarnessError where user and assistant do not alternate."""
        system, turns = take_apart(messages, open=open, template=self.name, tools=tools)
        end = end_of_sequence(tokenizer, self.name)
        spans: list[Span] = []
        if system is not None and system.strip():
            spans += [Span(system), frame("\n\n")]
        elif self.preface:
            spans.append(frame(self.preface_with_input if has_input(turns[0].user) else self.preface))
        for index, turn in enumerate(turns):
            spans += [frame(("\n\n" if index else "") + self.instruction), Span(turn.user.content)]
            if has_input(turn.user):
                spans += [frame("\n\n" + self.input), Span(turn.user.input or "")]
            spans.append(frame("\n\n" + self.response))
            if turn.response is not None:
                trained = is_trained(turn.response)
                spans += [Span(turn.response.content, trained=trained), frame(end, trained=trained)]
        return joined(spans)

    def stops(self, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
        """The end-of-sequence token."""
        return (end_of_sequence(tokenizer, self.name),)

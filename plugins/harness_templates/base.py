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
HINT_TOOL_TEMPLATES = "choose one that has: qwen, llama3 or mistral, or the model's own (tokenizer)"
HINT_ALTERNATE = "let user and assistant alternate, or choose a template that is free in this, such as chatml"


@dataclass(frozen=True)
class TurnPair:
    """A user's message and the response to it; the last turn of an open conversation has none."""

    user: Message
    response: Message | None


def unsupported_error(template: str, what: str, hint: str) -> HarnessError:
    """The error of a template that has no place for a conversation. Who knows the row adds its place."""
    return HarnessError(f"template {template}", what, hint)


def has_input(message: Message) -> bool:
    """Whether the message keeps an input apart from its content. A blank one counts as none, as in Alpaca's data."""
    return message.input is not None and bool(message.input.strip())


def message_text(message: Message) -> str:
    """The whole text of a message, its input below the content, for formats with no place of its own for an input."""
    return f"{message.content}\n\n{message.input}" if has_input(message) else message.content


@lru_cache(maxsize=1024)
def markup_span(text: str, *, trained: bool = False) -> Span:
    """Text that the format writes, in which special tokens count as such. A format has few, so they are kept."""
    return Span(text, train=trained, markup=True)


def drop_empty_spans(spans: Iterable[Span]) -> tuple[Span, ...]:
    """The spans without those that are empty."""
    return tuple(span for span in spans if span.text)


def is_trained(message: Message) -> bool:
    """Whether the loss is taken on the message: only responses can be trained, and a row may leave some of them out."""
    return message.role == "assistant" and message.train


def add_system_message(messages: Sequence[Message], system: str | None) -> Sequence[Message]:
    """The conversation, begun with `system` where it has no system message of its own."""
    if system is None or not messages or messages[0].role == "system":
        return messages
    return (Message("system", system), *messages)


# -- what a format has no place for -----------------------------------------------------------------------------------


def validate_conversation(
    messages: Sequence[Message],
    *,
    template: str,
    add_generation_prompt: bool,
    tools: Sequence[Mapping[str, Any]] = (),
    supports_tools: bool = False,
) -> None:
    """Raise HarnessError unless every role is known and the conversation ends where it must.

    add_generation_prompt: it must end before a response; otherwise with one. supports_tools: whether the format has a
    place for tools, for calls of them and for what they answer.
    """
    if not supports_tools:
        _validate_no_tools(messages, tools, template)
    roles = (*ROLES, "tool") if supports_tools else ROLES
    unanswered = 0
    for number, message in enumerate(messages, 1):
        if message.role not in roles:
            raise unsupported_error(
                template, f"there is no place for the role {message.role!r}", f"use {', '.join(roles)}"
            )
        if message.tool_calls and message.role != "assistant":
            what = f"message {number} ({message.role}) calls a tool"
            raise unsupported_error(template, what, "only the assistant calls tools: mend the row")
        unanswered = unanswered - 1 if message.role == "tool" else len(message.tool_calls)
        if unanswered < 0:
            what = f"message {number} is what a tool answers, and no call before it is left to answer"
            raise unsupported_error(template, what, "let it follow the assistant's message that calls the tool")
    last = messages[-1].role if messages else "nothing"
    if add_generation_prompt and last == "assistant":
        raise unsupported_error(template, "a prompt cannot end with a response", "end it with the user's message")
    if not add_generation_prompt and last != "assistant":
        raise unsupported_error(template, f"the conversation ends with {last}", "end it with the assistant's response")
    if all(message.role == "system" for message in messages):
        raise unsupported_error(template, "the conversation has no user message", "begin it with one")


def _validate_no_tools(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], template: str) -> None:
    if tools:
        raise unsupported_error(template, "the format has no place for tools", HINT_TOOL_TEMPLATES)
    for number, message in enumerate(messages, 1):
        if message.tool_calls:
            raise unsupported_error(
                template, f"the format has no place for tool calls (message {number})", HINT_TOOL_TEMPLATES
            )
        if message.role == "tool":
            raise unsupported_error(
                template, f"the format has no place for what a tool answers (message {number})", HINT_TOOL_TEMPLATES
            )


def validate_alternation(messages: Sequence[Message], template: str) -> None:
    """Raise HarnessError unless a system message stands first or nowhere, and user and assistant alternate after it.

    What tools answer counts to the assistant's turn, which goes on after it.
    """
    start = _first_turn_index(messages)
    expected = "user"
    for index, message in enumerate(messages[start:], 1):
        if message.role == "tool":
            expected = "assistant"
            continue
        if message.role != expected:
            after = " after the system message" if start else ""
            what = f"message {index}{after} is {message.role!r} where {expected!r} must stand"
            raise unsupported_error(template, what, HINT_ALTERNATE)
        expected = "user" if message.role == "assistant" else "assistant"


def split_turns(
    messages: Sequence[Message], *, add_generation_prompt: bool, template: str, tools: Sequence[Mapping[str, Any]] = ()
) -> tuple[str | None, tuple[TurnPair, ...]]:
    """The system message, if any, and the turns of a conversation in which user and assistant alternate.

    Raises HarnessError when they do not, when a system message stands anywhere but first, or when there are tools.
    """
    validate_conversation(messages, add_generation_prompt=add_generation_prompt, template=template, tools=tools)
    validate_alternation(messages, template)
    start = _first_turn_index(messages)
    rest = messages[start:]
    turns = tuple(
        TurnPair(rest[index], rest[index + 1] if index + 1 < len(rest) else None) for index in range(0, len(rest), 2)
    )
    return (messages[0].content if start else None), turns


def _first_turn_index(messages: Sequence[Message]) -> int:
    return int(messages[0].role == "system")


def parse_date(date: str, template: str) -> datetime.date:
    """The day that the option `date` names. Raises HarnessError when the calendar has no such day."""
    try:
        return datetime.date.fromisoformat(date)
    except ValueError as error:
        where, what = f"template.{template}.date", f"{date!r} is no date ({error})"
        raise HarnessError(where, what, "write it as 2024-07-26") from error


# -- what a format needs of a tokenizer -------------------------------------------------------------------------------


def require_eos_token(tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    """The tokenizer's end-of-sequence token. Raises HarnessError when it has none: nothing would end a response."""
    if not tokenizer.eos_token:
        raise unsupported_error(
            template, "the tokenizer has no end-of-sequence token", "set one, or choose another template"
        )
    return str(tokenizer.eos_token)


def require_tokens(tokenizer: PreTrainedTokenizerBase, tokens: tuple[str, ...], template: str) -> None:
    """Raise HarnessError unless the tokenizer knows each of the format's own tokens.

    In pieces, they would be text like any other, and a user's text could end a turn.
    """
    fit = _verified_tokens.setdefault(tokenizer, set())
    if tokens in fit:
        return
    known = tokenizer.added_tokens_encoder
    for token in tokens:
        if token not in known:
            hint = "choose a template that needs none, such as alpaca, or another model"
            raise unsupported_error(template, f"the tokenizer has no token {token}", hint)
    fit.add(tokens)


_verified_tokens: WeakKeyDictionary[PreTrainedTokenizerBase, set[tuple[str, ...]]] = WeakKeyDictionary()
"""Tokenizers and what they have been seen to know: asking takes long where there are many tokens."""


class ChatTurnsTemplate(Template):
    """Header, content, end of turn. Subclasses say how these look, and may write a turn otherwise.

    required_tokens: what the tokenizer must know as tokens of its own, or any text could be a header.
    turn_separator: what stands between two turns; it is never trained, as a model that has ended its turn is done.
    """

    name: ClassVar[str]
    required_tokens: ClassVar[tuple[str, ...]] = ()
    turn_separator: ClassVar[str] = "\n"
    supports_tools: bool = False

    def render(
        self,
        messages: Sequence[Message],
        tokenizer: PreTrainedTokenizerBase,
        *,
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> tuple[Span, ...]:
        """The conversation as spans. Raises HarnessError when the tokenizer does not know the format's tokens."""
        self.validate(messages, tokenizer, add_generation_prompt, tools)
        spans = self.conversation_start(tokenizer)
        for message in messages:
            spans += self.render_turn(message.role, self.render_body(message), tokenizer, trained=is_trained(message))
        if add_generation_prompt:
            spans.append(markup_span(self.turn_header("assistant")))
        return drop_empty_spans(spans)

    def stop_strings(self, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
        """The end of turn, and the end-of-sequence token where that is another one."""
        return tuple(dict.fromkeys(stop for stop in (self.turn_end(tokenizer), tokenizer.eos_token) if stop))

    # -- what a format says -------------------------------------------------------------------------------------------

    def turn_header(self, role: str) -> str:
        """What stands before a turn of this role."""
        raise NotImplementedError

    def turn_end(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """What ends every turn."""
        raise NotImplementedError

    def conversation_start(self, tokenizer: PreTrainedTokenizerBase) -> list[Span]:
        """What stands before the first turn."""
        return []

    def render_body(self, message: Message) -> list[Span]:
        """What stands between header and end of turn."""
        return [Span(message_text(message), train=is_trained(message))]

    # -- what they share ----------------------------------------------------------------------------------------------

    def validate(
        self,
        messages: Sequence[Message],
        tokenizer: PreTrainedTokenizerBase,
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]],
    ) -> None:
        """Raise HarnessError when the format has no place for the conversation, or the tokenizer lacks its tokens."""
        validate_conversation(
            messages,
            add_generation_prompt=add_generation_prompt,
            template=self.name,
            tools=tools,
            supports_tools=self.supports_tools,
        )
        require_tokens(tokenizer, self.required_tokens, self.name)

    def render_turn(
        self, role: str, body: Sequence[Span], tokenizer: PreTrainedTokenizerBase, *, trained: bool = False
    ) -> list[Span]:
        """One turn with its header, end and gap."""
        return [
            markup_span(self.turn_header(role)),
            *body,
            markup_span(self.turn_end(tokenizer), trained=trained),
            markup_span(self.turn_separator),
        ]


class HeadingsTemplate(Template):
    """Instruction, input and response, each below its heading; the response ends with the end-of-sequence token.

    A row's system message stands in the place of the preface. Further turns repeat the headings, which are plain text:
    a user's text can look like one. Only the template can write the end-of-sequence token that ends a response. There
    is no place for tools.
    """

    name: ClassVar[str]
    instruction_heading: ClassVar[str]
    input_heading: ClassVar[str]
    response_heading: ClassVar[str]
    preface: ClassVar[str] = ""
    preface_with_input: ClassVar[str] = ""

    def render(
        self,
        messages: Sequence[Message],
        tokenizer: PreTrainedTokenizerBase,
        *,
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> tuple[Span, ...]:
        """The conversation as spans. Raises HarnessError where user and assistant do not alternate."""
        system, turns = split_turns(
            messages, add_generation_prompt=add_generation_prompt, template=self.name, tools=tools
        )
        end = require_eos_token(tokenizer, self.name)
        spans: list[Span] = []
        if system is not None and system.strip():
            spans += [Span(system), markup_span("\n\n")]
        elif self.preface:
            spans.append(markup_span(self.preface_with_input if has_input(turns[0].user) else self.preface))
        for index, turn in enumerate(turns):
            spans += [markup_span(("\n\n" if index else "") + self.instruction_heading), Span(turn.user.content)]
            if has_input(turn.user):
                spans += [markup_span("\n\n" + self.input_heading), Span(turn.user.input or "")]
            spans.append(markup_span("\n\n" + self.response_heading))
            if turn.response is not None:
                trained = is_trained(turn.response)
                spans += [Span(turn.response.content, train=trained), markup_span(end, trained=trained)]
        return drop_empty_spans(spans)

    def stop_strings(self, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
        """The end-of-sequence token."""
        return (require_eos_token(tokenizer, self.name),)

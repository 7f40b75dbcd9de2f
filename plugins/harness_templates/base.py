"""Base classes and helpers of the built-in templates: splitting a conversation, and refusing one.

A format refuses a conversation that it cannot express: leaving a part out would train a model on half a row.
"""

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
HINT_TOOL_TEMPLATES = "choose a template with tools: qwen, llama3 or mistral, or the model's own (tokenizer)"
HINT_REASONING = (
    'choose the template of a reasoning model (tokenizer), or set the source\'s option "reasoning" to "drop"'
)
HINT_ALTERNATE = "let user and assistant alternate, or choose a template without this rule, such as chatml"


def system_option(default: str | None, null_meaning: str) -> dict[str, Any]:
    """Return the option `system`, the system message of conversations without one.

    Args:
        default: The option's default.
        null_meaning: What null means, as the end of a sentence.
    """
    description = f"The system message of conversations without one. null: {null_meaning}."
    return {"system": {"type": ["string", "null"], "default": default, "description": description}}


def date_option(shown_by: str) -> dict[str, Any]:
    """Return the option `date`, which replaces today's date, so that a run does not depend on the day.

    Args:
        shown_by: What shows the date, as the subject of a sentence.
    """
    return {
        "date": {
            "type": "string",
            "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}$",
            "default": "2024-07-26",
            "description": f"What {shown_by} shows as today's date, so that a run does not depend on the day.",
        }
    }


@dataclass(frozen=True)
class TurnPair:
    """A user's message and the response to it.

    Attributes:
        user: The user's message.
        response: The response; None in the last turn of a conversation that ends before a response.
    """

    user: Message
    response: Message | None


def has_input(message: Message) -> bool:
    """Return whether the message has an input besides its content. A blank one counts as none, as in Alpaca's data."""
    return message.input is not None and bool(message.input.strip())


def message_text(message: Message) -> str:
    """Return the content with the input below it, for formats without headings for inputs."""
    return f"{message.content}\n\n{message.input}" if has_input(message) else message.content


@lru_cache(maxsize=1024)
def markup_span(text: str, *, trained: bool = False) -> Span:
    """Return text that the format writes, in which special tokens are such. A format has few, so they are cached."""
    return Span(text, train=trained, markup=True)


def drop_empty_spans(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Return the spans that have text."""
    return tuple(span for span in spans if span.text)


def is_trained(message: Message) -> bool:
    """Return whether the loss includes the message: a response, unless the row excludes it."""
    return message.role == "assistant" and message.train


def add_system_message(messages: Sequence[Message], system: str | None) -> Sequence[Message]:
    """Return the conversation with the system message `system`, unless it has one."""
    if system is None or not messages or messages[0].role == "system":
        return messages
    return (Message("system", system), *messages)


# -- conversations that a format cannot express -----------------------------------------------------------------------


def unsupported_error(template: str, what: str, hint: str) -> HarnessError:
    """Return the error of a template for a conversation that its format cannot express; the caller adds the row."""
    return HarnessError(f"template {template}", what, hint)


def validate_conversation(
    messages: Sequence[Message],
    *,
    template: str,
    add_generation_prompt: bool,
    tools: Sequence[Mapping[str, Any]] = (),
    supports_tools: bool = False,
    supports_reasoning: bool = False,
) -> None:
    """Check the roles, the order of tool calls and answers, and the end of a conversation.

    Args:
        messages: The conversation.
        template: The template's name, for errors.
        add_generation_prompt: The conversation must end before a response; otherwise with one.
        tools: The tools of the row.
        supports_tools: Whether the format supports tools, their calls and their answers.
        supports_reasoning: Whether the format writes the reasoning of a response.

    Raises:
        HarnessError: One of these is wrong.
    """
    if not supports_tools:
        _validate_no_tools(messages, tools, template)
    if not supports_reasoning and not add_generation_prompt:
        for number, message in enumerate(messages, 1):
            # Many templates drop the reasoning of earlier turns; but what is trained must be complete.
            if message.reasoning is not None and is_trained(message):
                what = f"the format does not write the reasoning of message {number}"
                raise unsupported_error(template, what, HINT_REASONING)
    roles = (*ROLES, "tool") if supports_tools else ROLES
    unanswered_calls = 0
    for number, message in enumerate(messages, 1):
        if message.role not in roles:
            what = f"the format has no role {message.role!r}"
            raise unsupported_error(template, what, f"use {', '.join(roles)}")
        if message.tool_calls and message.role != "assistant":
            what = f"message {number} ({message.role}) calls a tool"
            raise unsupported_error(template, what, "move the call to an assistant's message")
        unanswered_calls = unanswered_calls - 1 if message.role == "tool" else len(message.tool_calls)
        if unanswered_calls < 0:
            what = f"message {number} is a tool's answer without an unanswered call before it"
            raise unsupported_error(template, what, "put it after the assistant's message that calls the tool")
    last_role = messages[-1].role if messages else "nothing"
    if add_generation_prompt and last_role == "assistant":
        raise unsupported_error(template, "a prompt cannot end with a response", "end it with the user's message")
    if not add_generation_prompt and last_role != "assistant":
        what = f"the conversation ends with {last_role}"
        raise unsupported_error(template, what, "end it with the assistant's response")
    if all(message.role == "system" for message in messages):
        raise unsupported_error(template, "the conversation has no user message", "begin it with one")


def _validate_no_tools(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], template: str) -> None:
    if tools:
        raise unsupported_error(template, "the format does not support tools", HINT_TOOL_TEMPLATES)
    for number, message in enumerate(messages, 1):
        if message.tool_calls:
            what = f"the format does not support tool calls (message {number})"
            raise unsupported_error(template, what, HINT_TOOL_TEMPLATES)
        if message.role == "tool":
            what = f"the format does not support tool answers (message {number})"
            raise unsupported_error(template, what, HINT_TOOL_TEMPLATES)


def validate_alternation(messages: Sequence[Message], template: str) -> None:
    """Check that user and assistant alternate, after at most one system message at the beginning.

    Tool answers belong to the assistant's turn, which continues after them.

    Raises:
        HarnessError: They do not alternate.
    """
    start = _first_turn_index(messages)
    expected = "user"
    for number, message in enumerate(messages[start:], 1):
        if message.role == "tool":
            expected = "assistant"
            continue
        if message.role != expected:
            after = " after the system message" if start else ""
            what = f"message {number}{after} is {message.role!r} instead of {expected!r}"
            raise unsupported_error(template, what, HINT_ALTERNATE)
        expected = "user" if message.role == "assistant" else "assistant"


def split_turns(
    messages: Sequence[Message], *, add_generation_prompt: bool, template: str, tools: Sequence[Mapping[str, Any]] = ()
) -> tuple[str | None, tuple[TurnPair, ...]]:
    """Return the system message, if any, and the turns of a conversation without tools.

    Args:
        messages: The conversation.
        add_generation_prompt: Whether the conversation ends before a response.
        template: The template's name, for errors.
        tools: The tools of the row.

    Raises:
        HarnessError: User and assistant do not alternate, a system message is not the first message, or there are
            tools.
    """
    validate_conversation(messages, add_generation_prompt=add_generation_prompt, template=template, tools=tools)
    validate_alternation(messages, template)
    start = _first_turn_index(messages)
    turns = messages[start:]
    pairs = tuple(
        TurnPair(turns[index], turns[index + 1] if index + 1 < len(turns) else None)
        for index in range(0, len(turns), 2)
    )
    return (messages[0].content if start else None), pairs


def _first_turn_index(messages: Sequence[Message]) -> int:
    return int(messages[0].role == "system")


def parse_date(date: str, template: str) -> datetime.date:
    """Return the day that the option `date` names.

    Raises:
        HarnessError: There is no such day.
    """
    try:
        return datetime.date.fromisoformat(date)
    except ValueError as error:
        where, what = f"template.{template}.date", f"{date!r} is not a date ({error})"
        raise HarnessError(where, what, "write it as 2024-07-26") from error


# -- tokens that a format needs ---------------------------------------------------------------------------------------


def require_eos_token(tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    """Return the tokenizer's end-of-sequence token.

    Raises:
        HarnessError: It has none: nothing would end a response.
    """
    if not tokenizer.eos_token:
        what = "the tokenizer has no end-of-sequence token"
        raise unsupported_error(template, what, "set one, or choose another template")
    return str(tokenizer.eos_token)


def require_tokens(tokenizer: PreTrainedTokenizerBase, tokens: tuple[str, ...], template: str) -> None:
    """Check that each of the format's markers is one token of the tokenizer.

    A marker of several tokens would be text like any other, and a user's text could end a turn.

    Raises:
        HarnessError: The tokenizer lacks one.
    """
    verified = _verified_tokens.setdefault(tokenizer, set())
    if tokens in verified:
        return
    added_tokens = tokenizer.added_tokens_encoder
    for token in tokens:
        if token not in added_tokens:
            hint = "choose a template that needs none, such as alpaca, or another model"
            raise unsupported_error(template, f"the tokenizer has no token {token}", hint)
    verified.add(tokens)


_verified_tokens: WeakKeyDictionary[PreTrainedTokenizerBase, set[tuple[str, ...]]] = WeakKeyDictionary()
"""Tokenizers and the tokens they have: `added_tokens_encoder` is slow where there are many tokens."""


# -- base classes -----------------------------------------------------------------------------------------------------


class ChatTurnsTemplate(Template):
    """A format whose turns are a header, the content and an end of turn. Subclasses define these.

    Attributes:
        name: The template's name, for errors.
        required_tokens: The markers that must be tokens of the tokenizer, or any text could be a header.
        turn_separator: The text between two turns. It is never trained: a model has finished at its end of turn.
        supports_tools: Whether the format supports tools.
        system: The system message of conversations without one; None: no system turn.
    """

    name: ClassVar[str]
    required_tokens: ClassVar[tuple[str, ...]] = ()
    turn_separator: ClassVar[str] = "\n"
    supports_tools: bool = False
    system: str | None = None

    def render(
        self,
        messages: Sequence[Message],
        tokenizer: PreTrainedTokenizerBase,
        *,
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> tuple[Span, ...]:
        """Render the conversation turn by turn.

        Raises:
            HarnessError: The format cannot express the conversation, or the tokenizer lacks one of its tokens.
        """
        messages = add_system_message(messages, self.system)
        self.validate(messages, tokenizer, add_generation_prompt, tools)
        spans = self.conversation_start(tokenizer)
        for message in messages:
            spans += self.render_turn(message.role, self.render_body(message), tokenizer, trained=is_trained(message))
        if add_generation_prompt:
            spans.append(markup_span(self.turn_header("assistant")))
        return drop_empty_spans(spans)

    def stop_strings(self, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
        """Return the end of turn, and the end-of-sequence token if it differs."""
        return tuple(dict.fromkeys(stop for stop in (self.turn_end(tokenizer), tokenizer.eos_token) if stop))

    def turn_header(self, role: str) -> str:
        """Return the header of a turn of this role."""
        raise NotImplementedError

    def turn_end(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """Return the end of every turn."""
        raise NotImplementedError

    def conversation_start(self, tokenizer: PreTrainedTokenizerBase) -> list[Span]:
        """Return the spans before the first turn."""
        return []

    def render_body(self, message: Message) -> list[Span]:
        """Return the spans between header and end of turn."""
        return [Span(message_text(message), train=is_trained(message))]

    def validate(
        self,
        messages: Sequence[Message],
        tokenizer: PreTrainedTokenizerBase,
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]],
    ) -> None:
        """Check conversation and tokenizer.

        Raises:
            HarnessError: The format cannot express the conversation, or the tokenizer lacks one of its tokens.
        """
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
        """Return one turn: header, body, end of turn (trained or not) and separator."""
        return [
            markup_span(self.turn_header(role)),
            *body,
            markup_span(self.turn_end(tokenizer), trained=trained),
            markup_span(self.turn_separator),
        ]


class EosTemplate(Template):
    """A format whose responses end with the end-of-sequence token.

    Attributes:
        name: The template's name, for errors.
    """

    name: ClassVar[str]

    def stop_strings(self, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
        """Return the end-of-sequence token.

        Raises:
            HarnessError: The tokenizer has none.
        """
        return (require_eos_token(tokenizer, self.name),)


class TurnPairTemplate(EosTemplate):
    """A format without tools, which writes each user message with the response to it."""

    def render(
        self,
        messages: Sequence[Message],
        tokenizer: PreTrainedTokenizerBase,
        *,
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> tuple[Span, ...]:
        """Render the conversation turn by turn.

        Raises:
            HarnessError: User and assistant do not alternate, there are tools, or the tokenizer has no end-of-sequence
                token.
        """
        system, turns = split_turns(
            messages, add_generation_prompt=add_generation_prompt, template=self.name, tools=tools
        )
        end = require_eos_token(tokenizer, self.name)
        return drop_empty_spans(self.render_pairs(system, turns, tokenizer, end))

    def render_pairs(
        self, system: str | None, turns: Sequence[TurnPair], tokenizer: PreTrainedTokenizerBase, end: str
    ) -> list[Span]:
        """Return the spans of a conversation.

        Args:
            system: The system message; None: the row has none.
            turns: The user messages, each with its response; a prompt's last turn has none.
            tokenizer: The tokenizer that the spans are for.
            end: The end-of-sequence token, which ends a response.
        """
        raise NotImplementedError


class HeadingsTemplate(TurnPairTemplate):
    """A format with instruction, input and response, each below its heading.

    A row's system message replaces the preface. Further turns repeat the headings. These are plain text, so a user's
    text can look like one; but only the template can write the end-of-sequence token that ends a response. Tools are
    not supported.

    Attributes:
        instruction_heading: The heading of the user's message.
        input_heading: The heading of its input.
        response_heading: The heading of the response.
        preface: The text before the first heading.
        preface_with_input: The same, where the first message has an input.
    """

    instruction_heading: ClassVar[str]
    input_heading: ClassVar[str]
    response_heading: ClassVar[str]
    preface: ClassVar[str] = ""
    preface_with_input: ClassVar[str] = ""

    def render_pairs(
        self, system: str | None, turns: Sequence[TurnPair], tokenizer: PreTrainedTokenizerBase, end: str
    ) -> list[Span]:
        """Return the turns below their headings."""
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
        return spans

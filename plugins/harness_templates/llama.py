"""Llama 3's format (arXiv:2407.21783): `<|start_header_id|>role<|end_header_id|>`, the content, `<|eot_id|>`.

Two versions of the chat templates that Meta published with the models:
  3.1  also of Llama 3.2 and 3.3. Every conversation begins with a system turn that tells the date. Tools stand in the
       first user turn, a call is one JSON object with `parameters`, and what a tool answers is the role `ipython`'s.
  3    of Llama 3: the turns alone, and no tools.
Contents are stripped, as published. Llama's built-in tools (`<|python_tag|>`) have no place here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness import Message, Span, Template
from harness_templates.base import (
    ChatTurnsTemplate,
    drop_empty_spans,
    is_trained,
    markup_span,
    message_text,
    parse_date,
    require_eos_token,
    split_turns,
    unsupported_error,
)
from harness_templates.tool_calls import dump_json, to_openai_tool

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Llama2(Template):
    """Llama 2's chat format. With a tokenizer that has no begin-of-sequence token, none is written."""

    name = "llama2"

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
        for index, turn in enumerate(turns):
            spans.append(markup_span(f"{tokenizer.bos_token or ''}[INST] "))
            user = message_text(turn.user)
            if index == 0 and system is not None:
                # Stripped as one text in the original: only its end can change.
                spans += [markup_span("<<SYS>>\n"), Span(system), markup_span("\n<</SYS>>\n\n"), Span(user.rstrip())]
            else:
                spans.append(Span(user.strip()))
            spans.append(markup_span(" [/INST]"))
            if turn.response is not None:
                # The space goes with the answer: a prompt ends at [/INST], and most tokenizers join it to the word.
                trained = is_trained(turn.response)
                spans += [Span(f" {turn.response.content.strip()} ", train=trained), markup_span(end, trained=trained)]
        return drop_empty_spans(spans)

    def stop_strings(self, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
        """The end-of-sequence token."""
        return (require_eos_token(tokenizer, self.name),)


HEADER_START, HEADER_END, END_OF_TURN = "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"
MONTH_NAMES = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
TOOLS_PROMPT = (
    "Given the following functions, please respond with a JSON for a function call with its proper arguments that "
    'best answers the given prompt.\n\nRespond in the format {"name": function name, "parameters": dictionary of '
    "argument name and its value}.Do not use variables.\n\n"
)


class Llama3(ChatTurnsTemplate):
    """Llama 3's format. version: `3.1` or `3`. date: the day that 3.1 tells as today's, YYYY-MM-DD."""

    name = "llama3"
    required_tokens = (HEADER_START, HEADER_END, END_OF_TURN)
    turn_separator = ""

    def __init__(self, version: str, date: str) -> None:
        self.version = version
        self.supports_tools = version != "3"
        day = parse_date(date, self.name)
        self.today = f"{day.day:02d} {MONTH_NAMES[day.month - 1]} {day.year}"

    def render(
        self,
        messages: Sequence[Message],
        tokenizer: PreTrainedTokenizerBase,
        *,
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> tuple[Span, ...]:
        """The conversation as spans. Raises HarnessError when the tokenizer does not know the format's tokens, when a
        turn calls several tools or calls one beside its text, or when the version has no tools."""
        if self.version == "3":
            return super().render(messages, tokenizer, add_generation_prompt=add_generation_prompt, tools=tools)
        self.validate(messages, tokenizer, add_generation_prompt, tools)
        system = messages[0].content.strip() if messages[0].role == "system" else ""
        rest = messages[1:] if messages[0].role == "system" else messages
        spans = self.conversation_start(tokenizer) + self.render_turn(
            "system", [markup_span(self._system_preamble(tools)), Span(system)], tokenizer
        )
        for index, message in enumerate(rest):
            body = self.render_body(message)
            if tools and index == 0:
                if message.role != "user":
                    what = f"the tools stand in the first user turn, and the conversation begins with {message.role}"
                    raise unsupported_error(self.name, what, "begin it with the user's message")
                body = [
                    markup_span(TOOLS_PROMPT),
                    *(s for t in tools for s in (Span(dump_json(to_openai_tool(t), 4)), markup_span("\n\n"))),
                    *body,
                ]
            role = "ipython" if message.role == "tool" else message.role
            spans += self.render_turn(role, body, tokenizer, trained=is_trained(message))
        if add_generation_prompt:
            spans.append(markup_span(self.turn_header("assistant")))
        return drop_empty_spans(spans)

    def turn_header(self, role: str) -> str:
        return f"{HEADER_START}{role}{HEADER_END}\n\n"

    def turn_end(self, tokenizer: PreTrainedTokenizerBase) -> str:
        return END_OF_TURN

    def conversation_start(self, tokenizer: PreTrainedTokenizerBase) -> list[Span]:
        return [markup_span(tokenizer.bos_token or "")]

    def render_body(self, message: Message) -> list[Span]:
        """The content stripped, or the one call; what a tool answers as a JSON string, as published."""
        if message.role == "tool":
            return [Span(dump_json(message.content))]
        if not message.tool_calls:
            return [Span(message_text(message).strip(), train=is_trained(message))]
        if len(message.tool_calls) > 1 or message.content.strip():
            what = (
                "a turn calls several tools" if len(message.tool_calls) > 1 else "a turn calls a tool beside its text"
            )
            raise unsupported_error(
                self.name, f"{what}, and the format has one call or text", "split the turn, or choose qwen"
            )
        (call,) = message.tool_calls
        written = f'{{"name": {dump_json(call.name)}, "parameters": {dump_json(call.arguments)}}}'
        return [Span(written, train=is_trained(message))]

    def _system_preamble(self, tools: Sequence[Mapping[str, Any]]) -> str:
        environment = "Environment: ipython\n" if tools else ""
        return f"{environment}Cutting Knowledge Date: December 2023\nToday Date: {self.today}\n\n"

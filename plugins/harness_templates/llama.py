"""Llama's formats: Llama 2 (arXiv:2307.09288) and Llama 3 (arXiv:2407.21783).

Llama 3 writes `<|start_header_id|>role<|end_header_id|>`, the content, `<|eot_id|>`. There are two versions of the chat
templates that Meta published with the models:

    3.1  Llama 3.1, 3.2 and 3.3. Every conversation begins with a system turn that has the date. Tools are declared in
         the first user turn, a call is one JSON object with `parameters`, and a tool answers in the role `ipython`.
    3    Llama 3: only the turns, and no tools.

Contents are stripped, as published. Llama's built-in tools (`<|python_tag|>`) are not supported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness import Component, Message, Span
from harness_templates.base import (
    ChatTurnsTemplate,
    TurnPair,
    TurnPairTemplate,
    date_option,
    drop_empty_spans,
    is_trained,
    markup_span,
    message_text,
    parse_date,
    unsupported_error,
)
from harness_templates.tool_calls import dump_json, to_openai_tool

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COMPONENTS: dict[str, Component] = {
    "llama2": Component(
        summary="Llama 2's chat format: [INST] … [/INST] with a <<SYS>> block, one <s> … </s> per turn.",
        factory="harness_templates.llama:Llama2",
    ),
    "llama3": Component(
        summary="Llama 3's format, by default that of 3.1 to 3.3 with a dated system turn and tools.",
        factory="harness_templates.llama:Llama3",
        options={
            "version": {
                "enum": ["3.1", "3"],
                "default": "3.1",
                "description": "3.1: Llama 3.1, 3.2 and 3.3: each conversation begins with a system turn that has the "
                "date, and tools are supported. 3: Llama 3, only the turns.",
            },
            **date_option("the system turn of 3.1"),
        },
    ),
}


class Llama2(TurnPairTemplate):
    """Llama 2's chat format. If the tokenizer has no begin-of-sequence token, none is written."""

    name = "llama2"

    def render_pairs(
        self, system: str | None, turns: Sequence[TurnPair], tokenizer: PreTrainedTokenizerBase, end: str
    ) -> list[Span]:
        """Return the turns."""
        spans: list[Span] = []
        for index, turn in enumerate(turns):
            spans.append(markup_span(f"{tokenizer.bos_token or ''}[INST] "))
            user = message_text(turn.user)
            if index == 0 and system is not None:
                # The original strips both as one text, which can only change the end.
                spans += [markup_span("<<SYS>>\n"), Span(system), markup_span("\n<</SYS>>\n\n"), Span(user.rstrip())]
            else:
                spans.append(Span(user.strip()))
            spans.append(markup_span(" [/INST]"))
            if turn.response is not None:
                # The space belongs to the answer: a prompt ends at [/INST], and most tokenizers join space and word.
                trained = is_trained(turn.response)
                spans += [Span(f" {turn.response.content.strip()} ", train=trained), markup_span(end, trained=trained)]
        return spans


HEADER_START, HEADER_END, END_OF_TURN = "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"
MONTH_NAMES = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
TOOLS_PROMPT = (
    "Given the following functions, please respond with a JSON for a function call with its proper arguments that "
    'best answers the given prompt.\n\nRespond in the format {"name": function name, "parameters": dictionary of '
    "argument name and its value}.Do not use variables.\n\n"
)


class Llama3(ChatTurnsTemplate):
    """Llama 3's format."""

    name = "llama3"
    required_tokens = (HEADER_START, HEADER_END, END_OF_TURN)
    turn_separator = ""

    def __init__(self, version: str, date: str) -> None:
        """Create the template.

        Args:
            version: `3.1` or `3`.
            date: The date in the system turn of 3.1, YYYY-MM-DD.

        Raises:
            HarnessError: There is no such day.
        """
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
        """Render the conversation turn by turn; version 3.1 adds a system turn with the date and declares the tools.

        Raises:
            HarnessError: A turn calls several tools, or one in addition to its text; the version does not support
                tools; or the tokenizer lacks one of the format's tokens.
        """
        if self.version == "3":
            return super().render(messages, tokenizer, add_generation_prompt=add_generation_prompt, tools=tools)
        self.validate(messages, tokenizer, add_generation_prompt, tools)
        system = messages[0].content.strip() if messages[0].role == "system" else ""
        turns = messages[1:] if messages[0].role == "system" else messages
        spans = self.conversation_start(tokenizer) + self.render_turn(
            "system", [markup_span(self._system_preamble(tools)), Span(system)], tokenizer
        )
        for index, message in enumerate(turns):
            body = self.render_body(message)
            if tools and index == 0:
                if message.role != "user":
                    what = f"the first user turn declares the tools, but the conversation begins with {message.role}"
                    raise unsupported_error(self.name, what, "begin it with the user's message")
                body = [
                    markup_span(TOOLS_PROMPT),
                    *(span for tool in tools for span in _tool_schema_spans(tool)),
                    *body,
                ]
            role = "ipython" if message.role == "tool" else message.role
            spans += self.render_turn(role, body, tokenizer, trained=is_trained(message))
        if add_generation_prompt:
            spans.append(markup_span(self.turn_header("assistant")))
        return drop_empty_spans(spans)

    def turn_header(self, role: str) -> str:
        """Return `<|start_header_id|>role<|end_header_id|>`."""
        return f"{HEADER_START}{role}{HEADER_END}\n\n"

    def turn_end(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """Return `<|eot_id|>`."""
        return END_OF_TURN

    def conversation_start(self, tokenizer: PreTrainedTokenizerBase) -> list[Span]:
        """Return the begin-of-sequence token, if the tokenizer has one."""
        return [markup_span(tokenizer.bos_token or "")]

    def render_body(self, message: Message) -> list[Span]:
        """Return the stripped content, or the only call, or a tool's answer as a JSON string, as published.

        Raises:
            HarnessError: The turn calls several tools, or one in addition to its text.
        """
        if message.role == "tool":
            return [Span(dump_json(message.content))]
        if not message.tool_calls:
            return [Span(message_text(message).strip(), train=is_trained(message))]
        if len(message.tool_calls) > 1 or message.content.strip():
            calls = "calls several tools" if len(message.tool_calls) > 1 else "has text and a tool call"
            what = f"a turn {calls}, but the format supports either text or one call"
            raise unsupported_error(self.name, what, "split the turn, or choose qwen")
        (call,) = message.tool_calls
        call_json = f'{{"name": {dump_json(call.name)}, "parameters": {dump_json(call.arguments)}}}'
        return [Span(call_json, train=is_trained(message))]

    def _system_preamble(self, tools: Sequence[Mapping[str, Any]]) -> str:
        environment = "Environment: ipython\n" if tools else ""
        return f"{environment}Cutting Knowledge Date: December 2023\nToday Date: {self.today}\n\n"


def _tool_schema_spans(tool: Mapping[str, Any]) -> tuple[Span, ...]:
    return Span(dump_json(to_openai_tool(tool), 4)), markup_span("\n\n")

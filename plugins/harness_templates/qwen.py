"""Qwen's format: ChatML with a system message by default, and tools as Hermes writes them (Qwen2.5, arXiv:2412.15115).

The system turn declares the tools, one line of JSON each between <tools> and </tools>. A call is a line of JSON between
<tool_call> and </tool_call> in the assistant's turn. Tool answers are in a user turn, each between <tool_response> and
</tool_response>.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from harness import Component, Message, Span
from harness_templates.base import (
    ChatTurnsTemplate,
    add_system_message,
    drop_empty_spans,
    is_trained,
    markup_span,
    message_text,
    system_option,
)
from harness_templates.chatml import IM_END, IM_START
from harness_templates.tool_calls import dump_json, to_openai_tool

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_SYSTEM_PROMPT = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."

COMPONENTS: dict[str, Component] = {
    "qwen": Component(
        summary="Qwen's format: ChatML with a default system message, tools as <tool_call> and <tool_response>.",
        factory="harness_templates.qwen:Qwen",
        options=system_option(DEFAULT_SYSTEM_PROMPT, "no default one, as in Qwen3's chat template"),
    ),
}

TOOLS_PREFIX = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
TOOLS_SUFFIX = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n'
    "</tool_call>"
)


class Qwen(ChatTurnsTemplate):
    """Qwen's format."""

    name = "qwen"
    required_tokens = (IM_START, IM_END)
    supports_tools = True

    def __init__(self, system: str | None) -> None:
        """Create the template.

        Args:
            system: The system message of conversations without one; None: no system turn, as in Qwen3's template. With
                None a conversation without reasoning is the same in Qwen3's format (Qwen3-Instruct-2507).
        """
        self.system = system

    def render(
        self,
        messages: Sequence[Message],
        tokenizer: PreTrainedTokenizerBase,
        *,
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> tuple[Span, ...]:
        """Render the conversation turn by turn, with successive tool answers in one user turn.

        Raises:
            HarnessError: A tool answers without a call, or the tokenizer lacks <|im_start|> or <|im_end|>.
        """
        messages = add_system_message(messages, self.system)
        self.validate(messages, tokenizer, add_generation_prompt, tools)
        spans: list[Span] = []
        if tools:
            system = [Span(messages[0].content), markup_span("\n\n")] if messages[0].role == "system" else []
            spans += self.render_turn("system", [*system, *_tool_list_spans(tools)], tokenizer)
            messages = messages[1:] if system else messages
        for is_tool_answer, group in groupby(messages, lambda message: message.role == "tool"):
            if is_tool_answer:
                spans += [
                    markup_span(f"{IM_START}user"),
                    *(span for message in group for span in _tool_result_spans(message)),
                ]
                spans += [markup_span(IM_END), markup_span(self.turn_separator)]
                continue
            for message in group:
                spans += self.render_turn(
                    message.role, self.render_body(message), tokenizer, trained=is_trained(message)
                )
        if add_generation_prompt:
            spans.append(markup_span(self.turn_header("assistant")))
        return drop_empty_spans(spans)

    def turn_header(self, role: str) -> str:
        """Return `<|im_start|>role`."""
        return f"{IM_START}{role}\n"

    def turn_end(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """Return `<|im_end|>`."""
        return IM_END

    def render_body(self, message: Message) -> list[Span]:
        """Return the content, and each call on separate lines."""
        trained, text = is_trained(message), message_text(message)
        spans = [Span(text, train=trained)]
        for index, call in enumerate(message.tool_calls):
            line_break = "\n" if index or text else ""
            call_json = f'{{"name": {dump_json(call.name)}, "arguments": {dump_json(call.arguments)}}}'
            spans += [markup_span(f"{line_break}<tool_call>\n", trained=trained), Span(call_json, train=trained)]
            spans.append(markup_span("\n</tool_call>", trained=trained))
        return spans


def _tool_list_spans(tools: Sequence[Mapping[str, Any]]) -> Iterator[Span]:
    yield markup_span(TOOLS_PREFIX)
    for tool in tools:
        yield markup_span("\n")
        yield Span(dump_json(to_openai_tool(tool)))
    yield markup_span(TOOLS_SUFFIX)


def _tool_result_spans(message: Message) -> tuple[Span, ...]:
    return markup_span("\n<tool_response>\n"), Span(message.content), markup_span("\n</tool_response>")

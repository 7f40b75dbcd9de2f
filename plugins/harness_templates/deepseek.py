"""DeepSeek-V3's format (arXiv:2412.19437): `<｜User｜>`, the content, `<｜Assistant｜>`, the content, the end.

Tool calls follow the response's text, each with its arguments as a block of JSON. Tool answers are enclosed in their
own tokens, directly followed by the response to them. The published template does not open the second block of calls
or of answers in a conversation; here each block is opened. The format cannot declare which tools exist. Reasoning in a
response is part of its text: the models that reason have other formats.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness import Component, Message, Span, Template
from harness_templates.base import (
    drop_empty_spans,
    is_trained,
    markup_span,
    message_text,
    require_tokens,
    unsupported_error,
    validate_alternation,
    validate_conversation,
)
from harness_templates.tool_calls import dump_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COMPONENTS: dict[str, Component] = {
    "deepseek": Component(
        summary="DeepSeek-V3's format: <｜User｜> … <｜Assistant｜> …, with tool calls and tool answers.",
        factory="harness_templates.deepseek:DeepSeek",
    ),
}

USER_TOKEN, ASSISTANT_TOKEN, END_OF_SENTENCE = "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"
CALLS_BEGIN, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL_BEGIN, CALL_SEPARATOR, CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
OUTPUTS_BEGIN, OUTPUTS_END = "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>"
OUTPUT_BEGIN, OUTPUT_END = "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>"
TOOL_TOKENS = (
    *(CALLS_BEGIN, CALLS_END, CALL_BEGIN, CALL_SEPARATOR, CALL_END),
    *(OUTPUTS_BEGIN, OUTPUTS_END, OUTPUT_BEGIN, OUTPUT_END),
)


class DeepSeek(Template):
    """DeepSeek-V3's format."""

    name = "deepseek"
    control_tokens = (USER_TOKEN, ASSISTANT_TOKEN, *TOOL_TOKENS)

    def render(
        self,
        messages: Sequence[Message],
        tokenizer: PreTrainedTokenizerBase,
        *,
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> tuple[Span, ...]:
        """Render the conversation message by message.

        Raises:
            HarnessError: User and assistant do not alternate, tools are declared, or the tokenizer lacks one of the
                format's tokens.
        """
        if tools:
            hint = "describe them in the system message, or choose a template with tools: qwen, llama3, mistral"
            raise unsupported_error(self.name, "the format cannot declare which tools exist", hint)
        validate_conversation(
            messages, add_generation_prompt=add_generation_prompt, template=self.name, supports_tools=True
        )
        validate_alternation(messages, self.name)
        tool_tokens = TOOL_TOKENS if any(message.tool_calls for message in messages) else ()
        require_tokens(tokenizer, (USER_TOKEN, ASSISTANT_TOKEN, END_OF_SENTENCE, *tool_tokens), self.name)
        spans, previous_role = [markup_span(tokenizer.bos_token or "")], ""
        for message in messages:
            spans += _message_spans(message, previous_role)
            previous_role = message.role
        if add_generation_prompt:
            spans.append(markup_span(_response_header(previous_role)))
        return drop_empty_spans(spans)

    def stop_strings(self, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
        """Return the end of a response, and the end-of-sequence token if it differs."""
        return tuple(dict.fromkeys(stop for stop in (END_OF_SENTENCE, tokenizer.eos_token) if stop))


def _message_spans(message: Message, previous_role: str) -> Iterator[Span]:
    if message.role == "system":
        yield Span(message.content)
    elif message.role == "user":
        yield markup_span(USER_TOKEN)
        yield Span(message_text(message))
    elif message.role == "tool":
        yield markup_span("" if previous_role == "tool" else OUTPUTS_BEGIN)
        yield markup_span(OUTPUT_BEGIN)
        yield Span(message.content)
        yield markup_span(OUTPUT_END)
    else:
        yield markup_span(_response_header(previous_role))
        yield from _response_spans(message)
        yield markup_span(END_OF_SENTENCE, trained=is_trained(message))


def _response_header(previous_role: str) -> str:
    return OUTPUTS_END if previous_role == "tool" else ASSISTANT_TOKEN


def _response_spans(message: Message) -> Iterator[Span]:
    trained = is_trained(message)
    yield Span(message_text(message), train=trained)
    for index, call in enumerate(message.tool_calls):
        yield markup_span(("\n" if index else CALLS_BEGIN) + f"{CALL_BEGIN}function{CALL_SEPARATOR}", trained=trained)
        yield Span(call.name, train=trained)
        yield markup_span("\n```json\n", trained=trained)
        yield Span(dump_json(call.arguments), train=trained)
        yield markup_span(f"\n```{CALL_END}", trained=trained)
    if message.tool_calls:
        yield markup_span(CALLS_END, trained=trained)

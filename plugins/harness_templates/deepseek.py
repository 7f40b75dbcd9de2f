"""DeepSeek-V3's format (arXiv:2412.19437): `<｜User｜>`, the content, `<｜Assistant｜>`, the content, the end.

Calls stand after the response's text, each with its arguments as a block of JSON, and what tools answer stands between
tokens of its own, the response to it right behind. The published template forgets to open the second block of calls or
of answers in a conversation; here each is opened. It has no place to tell what tools there are. Reasoning in a
response is part of its text: the models that reason have other formats.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness import Message, Span, Template
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

USER_TOKEN, ASSISTANT_TOKEN, END_OF_SENTENCE = "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"
CALLS_BEGIN, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL_BEGIN, CALL_SEPARATOR, CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
OUTPUTS_BEGIN, OUTPUTS_END = "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>"
OUTPUT_BEGIN, OUTPUT_END = "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>"
TOOL_TOKENS = (
    CALLS_BEGIN,
    CALLS_END,
    CALL_BEGIN,
    CALL_SEPARATOR,
    CALL_END,
    OUTPUTS_BEGIN,
    OUTPUTS_END,
    OUTPUT_BEGIN,
    OUTPUT_END,
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
        """The conversation as spans. Raises HarnessError when the tokenizer does not know the format's tokens, where
        user and assistant do not alternate, or when there are tools to be told of."""
        if tools:
            hint = "describe them in the system message, or choose a template that has a place: qwen, llama3, mistral"
            raise unsupported_error(self.name, "the format has no place to tell what tools there are", hint)
        validate_conversation(
            messages, add_generation_prompt=add_generation_prompt, template=self.name, supports_tools=True
        )
        validate_alternation(messages, self.name)
        tooled = any(message.tool_calls for message in messages)
        require_tokens(
            tokenizer, (USER_TOKEN, ASSISTANT_TOKEN, END_OF_SENTENCE, *(TOOL_TOKENS if tooled else ())), self.name
        )
        spans, before = [markup_span(tokenizer.bos_token or "")], ""
        for message in messages:
            if message.role == "system":
                spans.append(Span(message.content))
            elif message.role == "user":
                spans += [markup_span(USER_TOKEN), Span(message_text(message))]
            elif message.role == "tool":
                spans += [
                    markup_span("" if before == "tool" else OUTPUTS_BEGIN),
                    markup_span(OUTPUT_BEGIN),
                    Span(message.content),
                ]
                spans.append(markup_span(OUTPUT_END))
            else:
                spans += [
                    markup_span(_response_header(before)),
                    *_response_spans(message),
                    markup_span(END_OF_SENTENCE, trained=is_trained(message)),
                ]
            before = message.role
        if add_generation_prompt:
            spans.append(markup_span(_response_header(before)))
        return drop_empty_spans(spans)

    def stop_strings(self, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
        """The end of a response, and the end-of-sequence token where that is another one."""
        return tuple(dict.fromkeys(stop for stop in (END_OF_SENTENCE, tokenizer.eos_token) if stop))


def _response_header(previous_role: str) -> str:
    return OUTPUTS_END if previous_role == "tool" else ASSISTANT_TOKEN


def _response_spans(message: Message) -> Iterator[Span]:
    trained = is_trained(message)
    yield Span(message_text(message), train=trained)
    for number, call in enumerate(message.tool_calls):
        yield markup_span(("\n" if number else CALLS_BEGIN) + f"{CALL_BEGIN}function{CALL_SEPARATOR}", trained=trained)
        yield Span(call.name, train=trained)
        yield markup_span("\n```json\n", trained=trained)
        yield Span(dump_json(call.arguments), train=trained)
        yield markup_span(f"\n```{CALL_END}", trained=trained)
    if message.tool_calls:
        yield markup_span(CALLS_END, trained=trained)

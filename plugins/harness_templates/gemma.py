"""Gemma's format (arXiv:2403.08295, arXiv:2503.19786): `<start_of_turn>role`, the content, `<end_of_turn>`.

Of Gemma, Gemma 2 and Gemma 3, whose assistant is called `model`. A system message stands at the head of the first
user turn, as Gemma 3's chat template has it; the older ones' refuse it. Contents are stripped, as published. There is
no place for tools. Gemma 4 has another format: take the tokenizer's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness import Message, Span
from harness_templates.base import (
    ChatTurnsTemplate,
    drop_empty_spans,
    is_trained,
    markup_span,
    message_text,
    validate_alternation,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TURN_START, TURN_END = "<start_of_turn>", "<end_of_turn>"


class Gemma(ChatTurnsTemplate):
    """Gemma's format."""

    name = "gemma"
    required_tokens = (TURN_START, TURN_END)

    def render(
        self,
        messages: Sequence[Message],
        tokenizer: PreTrainedTokenizerBase,
        *,
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> tuple[Span, ...]:
        """The conversation as spans. Raises HarnessError when the tokenizer does not know the format's two tokens, or
        where user and assistant do not alternate."""
        self.validate(messages, tokenizer, add_generation_prompt, tools)
        validate_alternation(messages, self.name)
        system = [Span(messages[0].content), markup_span("\n\n")] if messages[0].role == "system" else []
        spans = self.conversation_start(tokenizer)
        for index, message in enumerate(messages[1:] if system else messages):
            body = [*(system if index == 0 else []), *self.render_body(message)]
            spans += self.render_turn(message.role, body, tokenizer, trained=is_trained(message))
        if add_generation_prompt:
            spans.append(markup_span(self.turn_header("assistant")))
        return drop_empty_spans(spans)

    def turn_header(self, role: str) -> str:
        return f"{TURN_START}{'model' if role == 'assistant' else role}\n"

    def turn_end(self, tokenizer: PreTrainedTokenizerBase) -> str:
        return TURN_END

    def conversation_start(self, tokenizer: PreTrainedTokenizerBase) -> list[Span]:
        return [markup_span(tokenizer.bos_token or "")]

    def render_body(self, message: Message) -> list[Span]:
        return [Span(message_text(message).strip(), train=is_trained(message))]

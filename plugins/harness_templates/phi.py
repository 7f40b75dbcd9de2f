"""Phi-3's format (arXiv:2404.14219): `<|user|>`, the content, `<|end|>`; Phi-3.5's is the same.

After the last response stands the end-of-sequence token, as published; it is trained like the end of turn before it.
There is no place for tools. Phi-4 has another format: take the tokenizer's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness import Message, Span
from harness_templates.base import ChatTurnsTemplate, drop_empty_spans, is_trained, markup_span, require_eos_token

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END_OF_TURN = "<|end|>"


class Phi(ChatTurnsTemplate):
    """Phi-3's format."""

    name = "phi"
    required_tokens = ("<|system|>", "<|user|>", "<|assistant|>", END_OF_TURN)

    def render(
        self,
        messages: Sequence[Message],
        tokenizer: PreTrainedTokenizerBase,
        *,
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> tuple[Span, ...]:
        """The conversation as spans. Raises HarnessError when the tokenizer does not know the format's tokens, or has
        no end-of-sequence token."""
        spans = super().render(messages, tokenizer, add_generation_prompt=add_generation_prompt, tools=tools)
        if add_generation_prompt:
            return spans
        # One stretch from the response to the end of the sequence: the line break between the two ends goes with it.
        trained = is_trained(messages[-1])
        last = markup_span(self.turn_separator + require_eos_token(tokenizer, self.name), trained=trained)
        return drop_empty_spans((*spans[:-1], last))

    def turn_header(self, role: str) -> str:
        return f"<|{role}|>\n"

    def turn_end(self, tokenizer: PreTrainedTokenizerBase) -> str:
        return END_OF_TURN

"""Phi-3's format (arXiv:2404.14219): `<|user|>`, the content, `<|end|>`; Phi-3.5's is the same.

As published, the end-of-sequence token follows the last response; it is trained like the end of turn before it.
Tools are not supported. Phi-4 has another format: use the tokenizer's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness import Component, Message, Span
from harness_templates.base import ChatTurnsTemplate, drop_empty_spans, is_trained, markup_span, require_eos_token

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COMPONENTS: dict[str, Component] = {
    "phi": Component(
        summary="Phi-3's format: <|user|> … <|end|>, with the end-of-sequence token after the last response.",
        factory="harness_templates.phi:Phi",
    ),
}

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
        """Render the turns, with the end-of-sequence token after the last response.

        Raises:
            HarnessError: The format cannot express the conversation, or the tokenizer lacks one of its tokens or an
                end-of-sequence token.
        """
        spans = super().render(messages, tokenizer, add_generation_prompt=add_generation_prompt, tools=tools)
        if add_generation_prompt:
            return spans
        # The trained text must be contiguous, so the line break between the two ends is trained too.
        trained = is_trained(messages[-1])
        end = markup_span(self.turn_separator + require_eos_token(tokenizer, self.name), trained=trained)
        return drop_empty_spans((*spans[:-1], end))

    def turn_header(self, role: str) -> str:
        """Return `<|role|>`."""
        return f"<|{role}|>\n"

    def turn_end(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """Return `<|end|>`."""
        return END_OF_TURN

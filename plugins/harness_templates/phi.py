"""Phi-3's format (arXiv:2404.14219): `<|user|>`, the content, `<|end|>`; Phi-3.5's is the same.

After the last response stands the end-of-sequence token, as published; it is trained like the end of turn before it.
There is no place for tools. Phi-4 has another format: take the tokenizer's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness import Message, Span
from harness_templates.base import Turns, end_of_sequence, frame, is_trained, joined

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END = "<|end|>"


class Phi(Turns):
    """Phi-3's format."""

    name = "phi"
    tokens = ("<|system|>", "<|user|>", "<|assistant|>", END)

    def render(
        self,
        messages: Sequence[Message],
        tokenizer: PreTrainedTokenizerBase,
        *,
        open: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> tuple[Span, ...]:
        """The conversation as spans. Raises HarnessError when the tokenizer does not know the format's tokens, or has
        no end-of-sequence token."""
        spans = super().render(messages, tokenizer, open=open, tools=tools)
        if open:
            return spans
        # One stretch from the response to the end of the sequence: the line break between the two ends goes with it.
        trained = is_trained(messages[-1])
        last = frame(self.gap + end_of_sequence(tokenizer, self.name), trained=trained)
        return joined((*spans[:-1], last))

    def header(self, role: str) -> str:
        return f"<|{role}|>\n"

    def end(self, tokenizer: PreTrainedTokenizerBase) -> str:
        return END

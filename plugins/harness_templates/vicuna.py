"""Vicuna's format, of the weights v1.1 to v1.5 (Chiang et al., 2023; FastChat's docs/vicuna_weights_version.md).

    {system} USER: {user} ASSISTANT: {answer}</s>USER: {user} ASSISTANT: {answer}</s>

The headers are plain text, so a user's text can look like one; but only the template can write the end-of-sequence
token that ends a response. The tokenizer writes the begin-of-sequence token. Tools are not supported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness import Component, Span
from harness_templates.base import (
    TurnPair,
    TurnPairTemplate,
    is_trained,
    markup_span,
    message_text,
    system_option,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_SYSTEM_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)

COMPONENTS: dict[str, Component] = {
    "vicuna": Component(
        summary="Vicuna's format, of v1.1 to v1.5: USER: … ASSISTANT: … </s>, with headers in plain text.",
        factory="harness_templates.vicuna:Vicuna",
        options=system_option(DEFAULT_SYSTEM_PROMPT, "no system message"),
    ),
}


class Vicuna(TurnPairTemplate):
    """Vicuna's format."""

    name = "vicuna"

    def __init__(self, system: str | None) -> None:
        """Create the template.

        Args:
            system: The system message of conversations without one; None: none.
        """
        self.system = system

    def render_pairs(
        self, system: str | None, turns: Sequence[TurnPair], tokenizer: PreTrainedTokenizerBase, end: str
    ) -> list[Span]:
        """Return the turns on one line."""
        system = self.system if system is None else system
        spans = [Span(system), markup_span(" ")] if system else []
        for turn in turns:
            spans += [markup_span("USER: "), Span(message_text(turn.user)), markup_span(" ASSISTANT:")]
            if turn.response is not None:
                trained = is_trained(turn.response)
                # The space belongs to the answer: a prompt ends at the colon, and most tokenizers join space and word.
                spans += [markup_span(" ", trained=trained), Span(turn.response.content, train=trained)]
                spans.append(markup_span(end, trained=trained))
        return spans

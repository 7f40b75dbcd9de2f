"""Vicuna's format, of the weights v1.1 to v1.5 (Chiang et al., 2023; FastChat's docs/vicuna_weights_version.md).

    {system} USER: {user} ASSISTANT: {answer}</s>USER: {user} ASSISTANT: {answer}</s>

Its headers are plain text: a user's text can look like one. Only the template can write the end-of-sequence token that
ends a response. The begin-of-sequence token is the tokenizer's to write. There is no place for tools.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness import Message, Span, Template
from harness_templates.base import (
    drop_empty_spans,
    is_trained,
    markup_span,
    message_text,
    require_eos_token,
    split_turns,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Vicuna(Template):
    """Vicuna's format. system: what stands first in conversations without a system message; None: nothing."""

    name = "vicuna"

    def __init__(self, system: str | None) -> None:
        self.system = system

    def render(
        self,
        messages: Sequence[Message],
        tokenizer: PreTrainedTokenizerBase,
        *,
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> tuple[Span, ...]:
        """The conversation as spans. Raises HarnessError where user and assistant do not alternate."""
        own, turns = split_turns(messages, add_generation_prompt=add_generation_prompt, template=self.name, tools=tools)
        end = require_eos_token(tokenizer, self.name)
        system = self.system if own is None else own
        spans = [Span(system), markup_span(" ")] if system else []
        for turn in turns:
            spans += [markup_span("USER: "), Span(message_text(turn.user)), markup_span(" ASSISTANT:")]
            if turn.response is not None:
                trained = is_trained(turn.response)
                # The space goes with the answer: a prompt ends at the colon, and most tokenizers join it to the word.
                spans += [markup_span(" ", trained=trained), Span(turn.response.content, train=trained)]
                spans.append(markup_span(end, trained=trained))
        return drop_empty_spans(spans)

    def stop_strings(self, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
        """The end-of-sequence token."""
        return (require_eos_token(tokenizer, self.name),)

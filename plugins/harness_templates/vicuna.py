"""Vicuna's format, of the weights v1.1 to v1.5 (Chiang et al., 2023; FastChat's docs/vicuna_weights_version.md).

    {system} USER: {user} ASSISTANT: {answer}</s>USER: {user} ASSISTANT: {answer}</s>

Its headers are plain text: a user's text can look like one. Only the template can write the end-of-sequence token that
ends a response. The begin-of-sequence token is the tokenizer's to write. There is no place for tools.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness import Message, Span, Template
from harness_templates.base import end_of_sequence, frame, is_trained, joined, take_apart, text_of

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
        open: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> tuple[Span, ...]:
        """The conversation as spans. Raises HarnessError where user and assistant do not alternate."""
        own, turns = take_apart(messages, open=open, template=self.name, tools=tools)
        end = end_of_sequence(tokenizer, self.name)
        system = self.system if own is None else own
        spans = [Span(system), frame(" ")] if system else []
        for turn in turns:
            spans += [frame("USER: "), Span(text_of(turn.user)), frame(" ASSISTANT:")]
            if turn.response is not None:
                trained = is_trained(turn.response)
                # The space goes with the answer: a prompt ends at the colon, and most tokenizers join it to the word.
                spans += [frame(" ", trained=trained), Span(turn.response.content, trained=trained)]
                spans.append(frame(end, trained=trained))
        return joined(spans)

    def stops(self, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
        """The end-of-sequence token."""
        return (end_of_sequence(tokenizer, self.name),)

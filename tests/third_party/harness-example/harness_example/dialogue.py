"""A template: speakers by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness import Message, Span, Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Dialogue(Template):
    """`[Speaker] text`, one line a turn; the assistant's turn ends with the end-of-sequence token."""

    def __init__(self, speaker: str) -> None:
        self.speaker = speaker

    def render(
        self, messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, *, open: bool = False
    ) -> tuple[Span, ...]:
        spans: list[Span] = []
        for message in messages:
            trained = message.role == "assistant"
            spans.append(Span(f"[{self.speaker if trained else message.role}] ", frame=True))
            spans.append(Span(message.content, trained=trained))
            spans.append(Span(tokenizer.eos_token if trained else "\n", trained=trained, frame=True))
        if open:
            spans.append(Span(f"[{self.speaker}] ", frame=True))
        return tuple(spans)

    def stops(self, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
        return (tokenizer.eos_token,)

"""A template: speakers by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness import HarnessError, Message, Span, Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Dialogue(Template):
    """`[Speaker] text`, one line a turn; the assistant's turn ends with the end-of-sequence token. No tools."""

    def __init__(self, speaker: str) -> None:
        self.speaker = speaker

    def render(
        self,
        messages: Sequence[Message],
        tokenizer: PreTrainedTokenizerBase,
        *,
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> tuple[Span, ...]:
        spans: list[Span] = []
        for message in messages:
            if tools or message.tool_calls or message.role not in ("system", "user", "assistant"):
                raise HarnessError("template dialogue", "a play has does not support tools", "choose another template")
            speaks = message.role == "assistant"
            trained = speaks and message.train
            spans.append(Span(f"[{self.speaker if speaks else message.role}] ", markup=True))
            spans.append(Span(message.content, train=trained))
            spans.append(Span(tokenizer.eos_token if speaks else "\n", train=trained, markup=True))
        if add_generation_prompt:
            spans.append(Span(f"[{self.speaker}] ", markup=True))
        return tuple(spans)

    def stop_strings(self, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
        return (tokenizer.eos_token,)

"""A template with speakers by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness import HarnessError, Message, Span, Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Dialogue(Template):
    """`[Speaker] text`, one line per turn; the assistant's turn ends with the end-of-sequence token. No tools."""

    def __init__(self, speaker: str) -> None:
        """Create the template with the assistant's name."""
        self.speaker = speaker

    def render(
        self,
        messages: Sequence[Message],
        tokenizer: PreTrainedTokenizerBase,
        *,
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> tuple[Span, ...]:
        """Render the conversation line by line.

        Raises:
            HarnessError: The conversation uses tools.
        """
        spans: list[Span] = []
        for message in messages:
            if tools or message.tool_calls or message.role not in ("system", "user", "assistant"):
                raise HarnessError("template dialogue", "a play does not support tools", "choose another template")
            is_response = message.role == "assistant"
            trained = is_response and message.train
            spans.append(Span(f"[{self.speaker if is_response else message.role}] ", markup=True))
            spans.append(Span(message.content, train=trained))
            spans.append(Span(tokenizer.eos_token if is_response else "\n", train=trained, markup=True))
        if add_generation_prompt:
            spans.append(Span(f"[{self.speaker}] ", markup=True))
        return tuple(spans)

    def stop_strings(self, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
        """Return the end-of-sequence token."""
        return (tokenizer.eos_token,)

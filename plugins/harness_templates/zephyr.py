"""Zephyr's format (arXiv:2310.16944): `<|user|>`, the content, the end-of-sequence token.

The headers are plain text to Zephyr's own tokenizer, so a user's text can look like one; but only the template can
write the end-of-sequence token that ends the turn before it. There is no place for tools.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness import Message, Span
from harness_templates.base import ChatTurnsTemplate, add_system_message, require_eos_token

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Zephyr(ChatTurnsTemplate):
    """Zephyr's format. system: the system message of conversations that have none; None: no system turn.

    The models were trained with an empty system turn where there was none: "" writes that.
    """

    name = "zephyr"

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
        """The conversation as spans. Raises HarnessError when the tokenizer has no end-of-sequence token."""
        return super().render(
            add_system_message(messages, self.system),
            tokenizer,
            add_generation_prompt=add_generation_prompt,
            tools=tools,
        )

    def turn_header(self, role: str) -> str:
        return f"<|{role}|>\n"

    def turn_end(self, tokenizer: PreTrainedTokenizerBase) -> str:
        return require_eos_token(tokenizer, self.name)

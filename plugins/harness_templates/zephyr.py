"""Zephyr's format (arXiv:2310.16944): `<|user|>`, the content, the end-of-sequence token.

The headers are plain text to Zephyr's own tokenizer, so a user's text can look like one; but only the template can
write the end-of-sequence token that ends the turn before it. There is no place for tools.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness import Message, Span
from harness_templates.base import Turns, end_of_sequence, with_system

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Zephyr(Turns):
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
        open: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> tuple[Span, ...]:
        """The conversation as spans. Raises HarnessError when the tokenizer has no end-of-sequence token."""
        return super().render(with_system(messages, self.system), tokenizer, open=open, tools=tools)

    def header(self, role: str) -> str:
        return f"<|{role}|>\n"

    def end(self, tokenizer: PreTrainedTokenizerBase) -> str:
        return end_of_sequence(tokenizer, self.name)

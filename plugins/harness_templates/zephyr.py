"""Zephyr's format (arXiv:2310.16944): `<|user|>`, the content, the end-of-sequence token.

Zephyr's own tokenizer reads the headers as plain text, so a user's text can look like one; but only the template can
write the end-of-sequence token that ends the turn before it. Tools are not supported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness import Component
from harness_templates.base import ChatTurnsTemplate, require_eos_token, system_option

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COMPONENTS: dict[str, Component] = {
    "zephyr": Component(
        summary="Zephyr's format: <|user|> … </s>, with headers in plain text.",
        factory="harness_templates.zephyr:Zephyr",
        options=system_option(None, "no system turn"),
    ),
}


class Zephyr(ChatTurnsTemplate):
    """Zephyr's format."""

    name = "zephyr"

    def __init__(self, system: str | None) -> None:
        """Create the template.

        Args:
            system: The system message of conversations without one; None: no system turn. The models were trained
                with an empty system turn in that case: "" writes it.
        """
        self.system = system

    def turn_header(self, role: str) -> str:
        """Return `<|role|>`."""
        return f"<|{role}|>\n"

    def turn_end(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """Return the end-of-sequence token.

        Raises:
            HarnessError: The tokenizer has none.
        """
        return require_eos_token(tokenizer, self.name)

"""ChatML, the format of SmolLM2, Qwen and many others: `<|im_start|>role`, the content, `<|im_end|>`.

As OpenAI published it (github.com/openai/openai-python, chatml.md, March 2023). It does not support tools; `qwen` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness import Component
from harness_templates.base import ChatTurnsTemplate, system_option

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COMPONENTS: dict[str, Component] = {
    "chatml": Component(
        summary="ChatML: <|im_start|>role … <|im_end|>, for tokenizers that have these two tokens.",
        factory="harness_templates.chatml:ChatML",
        options=system_option(None, "no system turn"),
    ),
}

IM_START, IM_END = "<|im_start|>", "<|im_end|>"


class ChatML(ChatTurnsTemplate):
    """ChatML."""

    name = "chatml"
    required_tokens = (IM_START, IM_END)

    def __init__(self, system: str | None) -> None:
        """Create the template.

        Args:
            system: The system message of conversations without one; None: no system turn.
        """
        self.system = system

    def turn_header(self, role: str) -> str:
        """Return `<|im_start|>role`."""
        return f"{IM_START}{role}\n"

    def turn_end(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """Return `<|im_end|>`."""
        return IM_END

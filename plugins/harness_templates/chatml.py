"""ChatML, the format of SmolLM2, Qwen and many others: `<|im_start|>role`, the content, `<|im_end|>`.

As OpenAI published it (github.com/openai/openai-python, chatml.md, March 2023). It has no place for tools; `qwen` has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness import Message, Span
from harness_templates.base import Turns, with_system

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

START, END = "<|im_start|>", "<|im_end|>"


class ChatML(Turns):
    """ChatML. system: the system message of conversations that have none; None: no system turn."""

    name = "chatml"
    tokens = (START, END)

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
        """The conversation as spans. Raises HarnessError when the tokenizer does not know the format's two tokens."""
        return super().render(with_system(messages, self.system), tokenizer, open=open, tools=tools)

    def header(self, role: str) -> str:
        return f"{START}{role}\n"

    def end(self, tokenizer: PreTrainedTokenizerBase) -> str:
        return END

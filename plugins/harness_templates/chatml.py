"""ChatML, the format of SmolLM2, Qwen and many others: `<|im_start|>role`, the content, `<|im_end|>`.

As OpenAI published it (github.com/openai/openai-python, chatml.md, March 2023). It has no place for tools; `qwen` has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness import Message, Span
from harness_templates.base import ChatTurnsTemplate, add_system_message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IM_START, IM_END = "<|im_start|>", "<|im_end|>"


class ChatML(ChatTurnsTemplate):
    """ChatML. system: the system message of conversations that have none; None: no system turn."""

    name = "chatml"
    required_tokens = (IM_START, IM_END)

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
        """The conversation as spans. Raises HarnessError when the tokenizer does not know the format's two tokens."""
        return super().render(
            add_system_message(messages, self.system),
            tokenizer,
            add_generation_prompt=add_generation_prompt,
            tools=tools,
        )

    def turn_header(self, role: str) -> str:
        return f"{IM_START}{role}\n"

    def turn_end(self, tokenizer: PreTrainedTokenizerBase) -> str:
        return IM_END

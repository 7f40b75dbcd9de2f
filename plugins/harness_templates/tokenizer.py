"""The template that the model's own tokenizer carries."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness_templates.chat import ChatTemplate
from harness_templates.conversation import refusal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TokenizerTemplate(ChatTemplate):
    """The chat template of the tokenizer; its `default` one where it carries several."""

    name = "tokenizer"

    def source(self, tokenizer: PreTrainedTokenizerBase) -> str:
        try:
            return str(tokenizer.get_chat_template())
        except ValueError as error:
            hint = "choose a template by name, such as chatml or alpaca, or give one with jinja"
            raise refusal(self.name, "the model's tokenizer carries no chat template of its own", hint) from error

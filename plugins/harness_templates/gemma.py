"""Gemma's format (arXiv:2403.08295, arXiv:2503.19786): `<start_of_turn>role`, the content, `<end_of_turn>`.

It is the format of Gemma, Gemma 2 and Gemma 3, whose assistant is called `model`. A system message is written at the
beginning of the first user turn, as in Gemma 3's chat template; the older ones refuse it. Contents are stripped, as
published. Tools are not supported. Gemma 4 has another format: use the tokenizer's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness import Component, Message, Span
from harness_templates.base import (
    ChatTurnsTemplate,
    drop_empty_spans,
    is_trained,
    markup_span,
    message_text,
    validate_alternation,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COMPONENTS: dict[str, Component] = {
    "gemma": Component(
        summary="The format of Gemma 1 to 3: <start_of_turn>user … <end_of_turn>, the assistant called model.",
        factory="harness_templates.gemma:Gemma",
    ),
}

TURN_START, TURN_END = "<start_of_turn>", "<end_of_turn>"


class Gemma(ChatTurnsTemplate):
    """Gemma's format."""

    name = "gemma"
    required_tokens = (TURN_START, TURN_END)

    def render(
        self,
        messages: Sequence[Message],
        tokenizer: PreTrainedTokenizerBase,
        *,
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> tuple[Span, ...]:
        """Render the turns, with the system message in the first user turn.

        Raises:
            HarnessError: User and assistant do not alternate, or the tokenizer lacks one of the format's two tokens.
        """
        self.validate(messages, tokenizer, add_generation_prompt, tools)
        validate_alternation(messages, self.name)
        system = [Span(messages[0].content), markup_span("\n\n")] if messages[0].role == "system" else []
        spans = self.conversation_start(tokenizer)
        for index, message in enumerate(messages[1:] if system else messages):
            body = [*(system if index == 0 else []), *self.render_body(message)]
            spans += self.render_turn(message.role, body, tokenizer, trained=is_trained(message))
        if add_generation_prompt:
            spans.append(markup_span(self.turn_header("assistant")))
        return drop_empty_spans(spans)

    def turn_header(self, role: str) -> str:
        """Return `<start_of_turn>role`, with `model` for the assistant."""
        return f"{TURN_START}{'model' if role == 'assistant' else role}\n"

    def turn_end(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """Return `<end_of_turn>`."""
        return TURN_END

    def conversation_start(self, tokenizer: PreTrainedTokenizerBase) -> list[Span]:
        """Return the begin-of-sequence token, if the tokenizer has one."""
        return [markup_span(tokenizer.bos_token or "")]

    def render_body(self, message: Message) -> list[Span]:
        """Return the content, stripped."""
        return [Span(message_text(message).strip(), train=is_trained(message))]

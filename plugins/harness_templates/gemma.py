"""Gemma's format (arXiv:2403.08295, arXiv:2503.19786): `<start_of_turn>role`, the content, `<end_of_turn>`.

Of Gemma, Gemma 2 and Gemma 3, whose assistant is called `model`. A system message stands at the head of the first
user turn, as Gemma 3's chat template has it; the older ones' refuse it. Contents are stripped, as published. There is
no place for tools. Gemma 4 has another format: take the tokenizer's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness import Message, Span
from harness_templates.base import Turns, check_alternation, frame, is_trained, joined, text_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

START, END = "<start_of_turn>", "<end_of_turn>"


class Gemma(Turns):
    """Gemma's format."""

    name = "gemma"
    tokens = (START, END)

    def render(
        self,
        messages: Sequence[Message],
        tokenizer: PreTrainedTokenizerBase,
        *,
        open: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> tuple[Span, ...]:
        """The conversation as spans. Raises HarnessError when the tokenizer does not know the format's two tokens, or
        where user and assistant do not alternate."""
        self.check(messages, tokenizer, open, tools)
        check_alternation(messages, self.name)
        system = [Span(messages[0].content), frame("\n\n")] if messages[0].role == "system" else []
        spans = self.begin(tokenizer)
        for index, message in enumerate(messages[1:] if system else messages):
            body = [*(system if index == 0 else []), *self.body(message)]
            spans += self.turn(message.role, body, tokenizer, trained=is_trained(message))
        if open:
            spans.append(frame(self.header("assistant")))
        return joined(spans)

    def header(self, role: str) -> str:
        return f"{START}{'model' if role == 'assistant' else role}\n"

    def end(self, tokenizer: PreTrainedTokenizerBase) -> str:
        return END

    def begin(self, tokenizer: PreTrainedTokenizerBase) -> list[Span]:
        return [frame(tokenizer.bos_token or "")]

    def body(self, message: Message) -> list[Span]:
        return [Span(text_of(message).strip(), trained=is_trained(message))]

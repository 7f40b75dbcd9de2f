"""Llama 2's chat format, as published with the model (Touvron et al., 2023, arXiv:2307.09288; `chat_completion`).

    <s>[INST] <<SYS>>\\n{system}\\n<</SYS>>\\n\\n{user} [/INST] {answer} </s><s>[INST] {user} [/INST] {answer} </s>

Contents are stripped, and each turn has its own begin- and end-of-sequence token, as published. [INST] and <<SYS>> are
plain text, and a user's text can look like them; only the template can write the two tokens. No place for tools.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness import Message, Span, Template
from harness_templates.conversation import end_of_sequence, frame, is_trained, joined, take_apart, text_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Llama2(Template):
    """Llama 2's chat format. With a tokenizer that has no begin-of-sequence token, none is written."""

    name = "llama2"

    def render(
        self,
        messages: Sequence[Message],
        tokenizer: PreTrainedTokenizerBase,
        *,
        open: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> tuple[Span, ...]:
        """The conversation as spans. Raises HarnessError where user and assistant do not alternate."""
        system, turns = take_apart(messages, open=open, template=self.name, tools=tools)
        end = end_of_sequence(tokenizer, self.name)
        spans: list[Span] = []
        for index, turn in enumerate(turns):
            spans.append(frame(f"{tokenizer.bos_token or ''}[INST] "))
            user = text_of(turn.user)
            if index == 0 and system is not None:
                # Stripped as one text in the original: only its end can change.
                spans += [frame("<<SYS>>\n"), Span(system), frame("\n<</SYS>>\n\n"), Span(user.rstrip())]
            else:
                spans.append(Span(user.strip()))
            spans.append(frame(" [/INST]"))
            if turn.response is not None:
                # The space goes with the answer: a prompt ends at [/INST], and most tokenizers join it to the word.
                trained = is_trained(turn.response)
                spans += [Span(f" {turn.response.content.strip()} ", trained=trained), frame(end, trained=trained)]
        return joined(spans)

    def stops(self, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
        """The end-of-sequence token."""
        return (end_of_sequence(tokenizer, self.name),)

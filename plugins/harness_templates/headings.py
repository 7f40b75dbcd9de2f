"""Formats in which a heading stands over each part of an instruction: what alpaca and instruction_zh have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from harness import Message, Span, Template
from harness_templates.conversation import end_of_sequence, frame, has_input, is_trained, joined, take_apart

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Headings(Template):
    """Instruction, input and response, each below its heading; the response ends with the end-of-sequence token.

    A row's system message stands in the place of the preface. Further turns repeat the headings, which are plain text:
    a user's text can look like one. Only the template can write the end-of-sequence token that ends a response. There
    is no place for tools.
    """

    name: ClassVar[str]
    instruction: ClassVar[str]
    input: ClassVar[str]
    response: ClassVar[str]
    preface: ClassVar[str] = ""
    preface_with_input: ClassVar[str] = ""

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
        if system is not None and system.strip():
            spans += [Span(system), frame("\n\n")]
        elif self.preface:
            spans.append(frame(self.preface_with_input if has_input(turns[0].user) else self.preface))
        for index, turn in enumerate(turns):
            spans += [frame(("\n\n" if index else "") + self.instruction), Span(turn.user.content)]
            if has_input(turn.user):
                spans += [frame("\n\n" + self.input), Span(turn.user.input or "")]
            spans.append(frame("\n\n" + self.response))
            if turn.response is not None:
                trained = is_trained(turn.response)
                spans += [Span(turn.response.content, trained=trained), frame(end, trained=trained)]
        return joined(spans)

    def stops(self, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
        """The end-of-sequence token."""
        return (end_of_sequence(tokenizer, self.name),)

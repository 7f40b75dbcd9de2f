"""Formats in which every turn stands between a header and an end of its own, whoever speaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from harness import Message, Span, Template
from harness_templates.conversation import check, frame, is_trained, joined, require, text_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Turns(Template):
    """Header, content, end of turn. Subclasses say how these look, and may write a turn otherwise.

    tokens: what the tokenizer must know as tokens of its own, or any text could be a header.
    gap: what stands between two turns; it is never trained, as a model that has ended its turn is done.
    """

    name: ClassVar[str]
    tokens: ClassVar[tuple[str, ...]] = ()
    gap: ClassVar[str] = "\n"
    takes_tools: bool = False

    def render(
        self,
        messages: Sequence[Message],
        tokenizer: PreTrainedTokenizerBase,
        *,
        open: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> tuple[Span, ...]:
        """The conversation as spans. Raises HarnessError when the tokenizer does not know the format's tokens."""
        self.check(messages, tokenizer, open, tools)
        spans = self.begin(tokenizer)
        for message in messages:
            spans += self.turn(message.role, self.body(message), tokenizer, trained=is_trained(message))
        if open:
            spans.append(frame(self.header("assistant")))
        return joined(spans)

    def stops(self, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
        """The end of turn, and the end-of-sequence token where that is another one."""
        return tuple(dict.fromkeys(stop for stop in (self.end(tokenizer), tokenizer.eos_token) if stop))

    # -- what a format says -------------------------------------------------------------------------------------------

    def header(self, role: str) -> str:
        """What stands before a turn of this role."""
        raise NotImplementedError

    def end(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """What ends every turn."""
        raise NotImplementedError

    def begin(self, tokenizer: PreTrainedTokenizerBase) -> list[Span]:
        """What stands before the first turn."""
        return []

    def body(self, message: Message) -> list[Span]:
        """What stands between header and end of turn."""
        return [Span(text_of(message), trained=is_trained(message))]

    # -- what they share ----------------------------------------------------------------------------------------------

    def check(
        self,
        messages: Sequence[Message],
        tokenizer: PreTrainedTokenizerBase,
        open: bool,
        tools: Sequence[Mapping[str, Any]],
    ) -> None:
        """Raise HarnessError when the format has no place for the conversation, or the tokenizer lacks its tokens."""
        check(messages, open=open, template=self.name, tools=tools, takes_tools=self.takes_tools)
        require(tokenizer, self.tokens, self.name)

    def turn(
        self, role: str, body: Sequence[Span], tokenizer: PreTrainedTokenizerBase, *, trained: bool = False
    ) -> list[Span]:
        """One turn with its header, end and gap."""
        return [frame(self.header(role)), *body, frame(self.end(tokenizer), trained=trained), frame(self.gap)]

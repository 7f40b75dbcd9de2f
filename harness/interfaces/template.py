"""Base class of templates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from harness.types import Message, Span

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Template:
    """A way to render a conversation."""

    control_tokens: ClassVar[tuple[str, ...]] = ()
    """Added tokens of the format, beside the tokenizer's special ones, that would open or end a turn: in a message they
    are plain text even in a conversation in which the format does not write them."""

    def render(
        self,
        messages: Sequence[Message],
        tokenizer: PreTrainedTokenizerBase,
        *,
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> tuple[Span, ...]:
        """The conversation as spans of text, end of turn and begin- and end-of-sequence tokens included.

        An assistant's turn and its end of turn are trained spans, unless the message says that it is not trained.
        add_generation_prompt: the conversation ends before the response, so the rendering ends with the response's
        header. tools: see `Example.tools`. Raises HarnessError when the format has no place for one of the messages, or
        for tools.
        """
        raise NotImplementedError

    def stop_strings(self, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
        """The strings that end a response; generation stops at any of them."""
        raise NotImplementedError

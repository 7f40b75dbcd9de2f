"""The base class of templates: a conversation rendered as spans of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from harness.interfaces import result_checks
from harness.interfaces.guard import GuardedComponent, ResultCheck
from harness.types import Message, Span

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Template(GuardedComponent):
    """A prompt format."""

    guarded_methods: ClassVar[Mapping[str, ResultCheck | None]] = {
        "render": result_checks.check_spans,
        "stop_strings": result_checks.check_strings,
    }
    required_members = ("render", "stop_strings")

    control_tokens: ClassVar[tuple[str, ...]] = ()
    """Added tokens of the format that begin or end a turn and are not special tokens of the tokenizer.

    In a message they are plain text, even in a conversation in which the format does not write them.
    """

    def render(
        self,
        messages: Sequence[Message],
        tokenizer: PreTrainedTokenizerBase,
        *,
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> tuple[Span, ...]:
        """Render a conversation, end-of-turn, begin- and end-of-sequence tokens included.

        An assistant's turn and its end of turn are trained spans, unless `message.train` is false.

        Args:
            messages: The conversation.
            tokenizer: The tokenizer of the model.
            add_generation_prompt: The conversation ends before a response; end the rendering with that response's
                header.
            tools: See `Example.tools`.

        Raises:
            HarnessError: The format cannot express one of the messages, or the tools.
        """
        raise NotImplementedError

    def stop_strings(self, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
        """Return the strings that end a response; generation stops at each of them."""
        raise NotImplementedError

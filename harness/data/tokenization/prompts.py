"""Prompts as training sees them: the tokens of a conversation up to the header of a response."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from harness.data.tokenization.rendering import Rendering, is_plain_text, render_messages, render_spans
from harness.data.tokenization.special_tokens import special_token_guard, tokenize_with_offsets
from harness.errors import HarnessError
from harness.interfaces.template import Template
from harness.types import Example, Message

PLACEHOLDER_RESPONSE = Message("assistant", "A")
"""A response that begins as most do: with a letter."""


def encode_prompt(
    example: Example, template: Template, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[int]:
    """The ids of a conversation up to its response's header, as training sees them: a prefix of `encode_example`'s.

    Longer than `max_length`, it is cut at the left; a begin-of-sequence token that the tokenizer puts first stays.
    Raises HarnessError, with the row's place, when the template refuses the conversation, and for a plain text.
    """
    if is_plain_text(example):
        raise HarnessError(example.location, "a plain text has no prompt to answer", "use metrics of its likelihood")
    start, ids = tokenize_prompt(example, example.messages[:-1], template, tokenizer)
    room = max_length - len(start)
    return [*start, *(ids if len(ids) <= room else ids[len(ids) - max(room, 0) :])][:max_length]


def tokenize_prompt(
    example: Example, messages: Sequence[Message], template: Template, tokenizer: PreTrainedTokenizerBase
) -> tuple[tuple[int, ...], list[int]]:
    """What the tokenizer puts first, and the ids of `messages` with the header of the response to them.

    Many tokenizers read white space at the end of a text otherwise than before a word, so a prompt tokenised by itself
    would not be what training sees: it is tokenised with a stand-in for the response, which is then taken off.
    """
    prompt = Rendering.from_spans(
        render_spans(example, messages, template, tokenizer, add_generation_prompt=True), template.control_tokens
    )
    ids = _tokenize_before_response(prompt, example, messages, template, tokenizer)
    if ids is None:
        ((ids, _),) = tokenize_with_offsets([prompt], tokenizer, [example.location])
    start = special_token_guard(tokenizer).bos_prefix
    return (start, ids[len(start) :]) if tuple(ids[: len(start)]) == start else (start, ids)


def _tokenize_before_response(
    prompt: Rendering,
    example: Example,
    messages: Sequence[Message],
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
) -> list[int] | None:
    """The ids of the prompt when a response follows; None where the template or the tokenizer joins the two."""
    try:
        closed = render_messages(
            template, (*messages, PLACEHOLDER_RESPONSE), tokenizer, add_generation_prompt=False, tools=example.tools
        )
    except HarnessError:
        return None  # The template can be prompted with this conversation, and not trained on it.
    whole = Rendering.from_spans(closed, template.control_tokens)
    if not whole.text.startswith(prompt.text):
        return None
    ((ids, offsets),) = tokenize_with_offsets([whole], tokenizer, [example.location])
    count = bisect_left(offsets, (len(prompt.text),))
    return list(ids[:count]) if count and offsets[count - 1][1] <= len(prompt.text) else None

r"""Label masks: decide which tokens of a rendered row are trained, independent of the format.

A token is trained if and only if it begins inside a trained span of the text. A token that begins in the markup before
a response is not trained, even if it also contains the response's first character::

    text     <|im_start|>assistant\n Hello there <|im_end|> \n
    trained                         [--------------------)
    tokens   <|im_start|> assistant \n Hello  ther e <|im_end|> \n
    labels       -100       -100  -100 Hello  ther e <|im_end|> -100
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, cast

import numpy as np
from tokenizers import Encoding

from harness.data.tokenization.byte_level import ByteWidths
from harness.data.tokenization.rendering import (
    Interval,
    Rendering,
    append_interval,
    is_plain_text,
    no_trained_tokens_error,
)
from harness.data.tokenization.special_tokens import SpecialTokenGuard, special_token_guard
from harness.interfaces.template import Template
from harness.types import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class MaskedTokens:
    """The tokens of one row before truncation, and which of them are trained.

    Attributes:
        ids: The token ids.
        trained_spans: The intervals of trained tokens, in order. Adjacent intervals are merged.
    """

    ids: list[int]
    trained_spans: list[Interval]


def encode_renderings(renderings: Sequence[Rendering], tokenizer: PreTrainedTokenizerBase) -> list[Encoding]:
    """Tokenize the texts of renderings, for `mask_encodings`.

    Safe in a worker thread once `SpecialTokenGuard.reset_backend` has been called.
    """
    guard = special_token_guard(tokenizer)
    return guard.encode_texts([rendering.text for rendering in renderings], with_offsets=guard.byte_widths is None)


def mask_encodings(
    examples: Sequence[Example],
    renderings: Sequence[Rendering],
    encodings: Sequence[Encoding],
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
) -> list[MaskedTokens]:
    """Find the trained tokens of tokenized renderings.

    The begin-of-sequence token comes first if the tokenizer adds one itself, and is never duplicated. The first token
    of a plain text is not trained, because nothing predicts it.

    Args:
        examples: The rows.
        renderings: The rendering of each row.
        encodings: The result of `encode_renderings` for these renderings.
        template: The template that rendered them, for errors.
        tokenizer: The tokenizer of the encodings.

    Raises:
        HarnessError: At the row's location, when a row has no trained token, or when the tokenizer cannot distinguish
            special tokens in a message from those of the template.
    """
    guard = special_token_guard(tokenizer)
    prefix, prefix_size = guard.bos_prefix, len(guard.bos_prefix)
    locations = [example.location for example in examples]
    if guard.byte_widths is None:
        masked = _mask_by_offsets(guard, renderings, encodings, locations)
    else:
        masked = _mask_by_byte_widths(guard, guard.byte_widths, renderings, encodings, locations)
    rows = []
    for example, (ids, spans) in zip(examples, masked, strict=True):
        if prefix_size and tuple(ids[:prefix_size]) != prefix:
            ids = [*prefix, *ids]
            spans = [(begin + prefix_size, end + prefix_size) for begin, end in spans]
        if is_plain_text(example):
            spans = [(max(spans[0][0], 1), spans[-1][1])] if spans and spans[-1][1] > 1 else []
        if not spans:
            raise no_trained_tokens_error(example, template)
        rows.append(MaskedTokens(ids, spans))
    return rows


def _mask_by_offsets(
    guard: SpecialTokenGuard, renderings: Sequence[Rendering], encodings: Sequence[Encoding], locations: Sequence[str]
) -> list[tuple[list[int], list[Interval]]]:
    """Return the ids and trained spans of each row, from the tokenizer's character offsets."""
    resolved = guard.resolve(renderings, encodings, locations)
    return [
        (ids, _token_spans(encoding, rendering.trained_spans, len(ids)))
        for rendering, (ids, encoding) in zip(renderings, resolved, strict=True)
    ]


def _mask_by_byte_widths(
    guard: SpecialTokenGuard,
    widths: ByteWidths,
    renderings: Sequence[Rendering],
    encodings: Sequence[Encoding],
    locations: Sequence[str],
) -> list[tuple[list[int], list[Interval]]]:
    """Return the ids and trained spans of each row, from the byte widths of its tokens.

    Rows whose widths do not add up, and rows with a control token in a message, are tokenized again with offsets.
    """
    ids = [encoding.ids for encoding in encodings]
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    flat = np.fromiter(chain.from_iterable(ids), np.int32, int(lengths.sum()))
    spans, adds_up, misplaced = widths.find_trained_spans(renderings, flat, lengths, guard.possible_controls)
    doubtful = {row for row, fits in enumerate(adds_up) if not fits}
    doubtful |= {row for row, token in misplaced if token in guard.control_ids(renderings[row])}
    masked = list(zip(ids, spans, strict=True))
    if doubtful:
        rows = sorted(doubtful)
        doubtful_renderings = [renderings[row] for row in rows]
        doubtful_encodings = guard.encode_texts([rendering.text for rendering in doubtful_renderings])
        remasked = _mask_by_offsets(guard, doubtful_renderings, doubtful_encodings, [locations[row] for row in rows])
        for row, row_mask in zip(rows, remasked, strict=True):
            masked[row] = row_mask
    return masked


def _token_spans(encoding: Encoding, text_spans: Sequence[Interval], num_tokens: int) -> list[Interval]:
    """Return the intervals of tokens that begin in these intervals of text, without empty ones.

    Intervals are merged where no token begins in the text between them.
    """
    spans: list[Interval] = []
    for begin, end in text_spans:
        first, last = (count_tokens_before(encoding, position, num_tokens) for position in (begin, end))
        append_interval(spans, first, last)
    return spans


def count_tokens_before(encoding: Encoding, position: int, num_tokens: int) -> int:
    """Count the tokens that begin before a position of the text.

    Looks up a few tokens only: the tokenizer finds the token at the position, and its neighbors show where it begins.

    Args:
        encoding: The tokens. Their begins must be in ascending order.
        position: A position in the text, in characters.
        num_tokens: The number of tokens of the encoding.
    """
    chars_of_token = cast(Callable[[int], Interval], encoding.token_to_chars)  # None for an index out of range
    if not num_tokens or chars_of_token(num_tokens - 1)[0] < position:
        return num_tokens
    index = encoding.char_to_token(position)
    if index is None:  # a character in no token: white space, in some tokenizers
        return bisect_left(range(num_tokens), position, key=lambda token: chars_of_token(token)[0])
    if chars_of_token(index)[0] < position:  # the token also covers earlier text, and so may the next tokens
        while index < num_tokens and chars_of_token(index)[0] < position:
            index += 1
        return index
    while index and chars_of_token(index - 1)[0] >= position:  # tokens of zero characters begin here, too
        index -= 1
    return index

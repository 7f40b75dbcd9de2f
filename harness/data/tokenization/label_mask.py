"""Tokens of a batch of renderings, and which of them are trained. Knows how spans become a mask, and no format.

The labels come from the rendering's spans by where the tokens stand: a token is trained if and only if it begins inside
a trained span. One that begins in a header is not, whatever else it takes in.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import cast

import numpy as np
from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

from harness.data.tokenization.byte_level import ByteWidths
from harness.data.tokenization.rendering import Rendering, is_plain_text, no_trained_tokens_error, render_training_text
from harness.data.tokenization.special_tokens import SpecialTokenGuard, special_token_guard
from harness.interfaces.template import Template
from harness.types import Example, TokenizedExample

TokenSpan = tuple[int, int]


@dataclass(frozen=True, slots=True)
class MaskedTokens:
    """A whole row, before any truncation. runs: its stretches of trained tokens, (begin, end), in order."""

    ids: list[int]
    trained_spans: list[TokenSpan]


def tokenize_and_mask(example: Example, template: Template, tokenizer: PreTrainedTokenizerBase) -> MaskedTokens:
    """One row, whole. Raises HarnessError as `render_training_text` and `mask_encodings` do."""
    rendering = render_training_text(example, template, tokenizer)
    return mask_encodings([example], [rendering], encode_renderings([rendering], tokenizer), template, tokenizer)[0]


def encode_renderings(renderings: Sequence[Rendering], tokenizer: PreTrainedTokenizerBase) -> list[Encoding]:
    """The tokens of the texts, for `mask_encodings`.

    May run in a thread of its own, once `SpecialTokenGuard.reset_backend` has been called.
    """
    own = special_token_guard(tokenizer)
    return own.encode_texts([rendering.text for rendering in renderings], with_offsets=own.byte_widths is None)


def mask_encodings(
    examples: Sequence[Example],
    renderings: Sequence[Rendering],
    encodings: Sequence[Encoding],
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
) -> list[MaskedTokens]:
    """The rows of renderings that have been tokenised. encodings: what `encode_renderings` gave for them.

    The tokenizer's begin-of-sequence token stands first if it puts one there by itself, and never twice. The first
    token of a plain text is not trained: nothing predicts it.
    Raises HarnessError, with the row's place, when a row has no trained token, or when the tokenizer cannot tell
    special tokens in a message from the template's.
    """
    own = special_token_guard(tokenizer)
    start, size = own.bos_prefix, len(own.bos_prefix)
    places = [example.location for example in examples]
    if own.byte_widths is None:
        found = _mask_by_offsets(own, renderings, encodings, places)
    else:
        found = _mask_by_byte_widths(own, own.byte_widths, renderings, encodings, places)
    rows = []
    for example, (ids, runs) in zip(examples, found, strict=True):
        if size and tuple(ids[:size]) != start:
            ids = [*start, *ids]
            runs = [(begin + size, end + size) for begin, end in runs]
        if is_plain_text(example):
            runs = [(max(runs[0][0], 1), runs[-1][1])] if runs and runs[-1][1] > 1 else []
        if not runs:
            raise no_trained_tokens_error(example, template)
        rows.append(MaskedTokens(ids, runs))
    return rows


def _mask_by_offsets(
    guard: SpecialTokenGuard, renderings: Sequence[Rendering], encodings: Sequence[Encoding], locations: Sequence[str]
) -> list[tuple[list[int], list[TokenSpan]]]:
    """The ids and runs of each row, by the places that the tokenizer tells."""
    located = guard.resolve(renderings, encodings, locations)
    return [
        (ids, _token_spans(encoding, rendering.trained_spans, len(ids)))
        for rendering, (ids, encoding) in zip(renderings, located, strict=True)
    ]


def _mask_by_byte_widths(
    guard: SpecialTokenGuard,
    widths: ByteWidths,
    renderings: Sequence[Rendering],
    encodings: Sequence[Encoding],
    locations: Sequence[str],
) -> list[tuple[list[int], list[TokenSpan]]]:
    """The ids and runs of each row, by the widths of tokens; by their places where these do not tell, or where a
    control token stands in a content.
    """
    ids = [encoding.ids for encoding in encodings]
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    flat = np.fromiter(chain.from_iterable(ids), np.int32, int(lengths.sum()))
    runs, fits, strays = widths.find_trained_spans(renderings, flat, lengths, guard.possible_controls)
    doubtful = {row for row, fit in enumerate(fits) if not fit}
    doubtful |= {row for row, token in strays if token in guard.control_ids(renderings[row])}
    found = list(zip(ids, runs, strict=True))
    again = sorted(doubtful)
    some = [renderings[row] for row in again]
    encoded = guard.encode_texts([rendering.text for rendering in some]) if some else []
    for row, one in zip(again, _mask_by_offsets(guard, some, encoded, [locations[row] for row in again]), strict=True):
        found[row] = one
    return found


def _token_spans(encoding: Encoding, text_spans: Sequence[TokenSpan], num_tokens: int) -> list[TokenSpan]:
    """The stretches of tokens that begin in these stretches of text; the empty ones are left out."""
    runs: list[TokenSpan] = []
    for begin, end in text_spans:
        first, last = count_tokens_before(encoding, begin, num_tokens), count_tokens_before(encoding, end, num_tokens)
        if first == last:
            continue
        if runs and runs[-1][1] == first:
            runs[-1] = (runs[-1][0], last)  # what stands between them in the text is in no token of its own
        else:
            runs.append((first, last))
    return runs


def count_tokens_before(encoding: Encoding, position: int, num_tokens: int) -> int:
    """How many of the tokens, `size` in all, begin before this place of the text. The tokens' beginnings ascend.

    Asks for a few places only: the tokenizer finds the token at hand, and its neighbours settle where it begins.
    """
    begins = cast(Callable[[int], TokenSpan], encoding.token_to_chars)  # None for a token that is not there
    if not num_tokens or begins(num_tokens - 1)[0] < position:
        return num_tokens
    at = encoding.char_to_token(position)
    if at is None:  # a character that no token holds: white space, in some tokenizers
        return bisect_left(range(num_tokens), position, key=lambda index: begins(index)[0])
    if begins(at)[0] < position:  # the token takes in what stands before, and so may the next ones, of one character
        while at < num_tokens and begins(at)[0] < position:
            at += 1
        return at
    while at and begins(at - 1)[0] >= position:  # tokens of no character stand at this place, too
        at -= 1
    return at


@dataclass(frozen=True)
class EncodedExample:
    """A row and what its truncation cost. cut: tokens dropped at its right end.

    A row whose response was cut off wholly has `row.loss_tokens == 0`: it trains nothing.
    """

    row: TokenizedExample
    tokens_cut: int = 0

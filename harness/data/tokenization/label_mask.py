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

from harness.data.tokenization.byte_level import ByteLevel
from harness.data.tokenization.rendering import Rendering, is_text, nothing_trained, rendered
from harness.data.tokenization.special_tokens import Markers, markers
from harness.interfaces.template import Template
from harness.types import Example, Row

Run = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Masked:
    """A whole row, before any truncation. runs: its stretches of trained tokens, (begin, end), in order."""

    ids: list[int]
    runs: list[Run]


def masked(example: Example, template: Template, tokenizer: PreTrainedTokenizerBase) -> Masked:
    """One row, whole. Raises HarnessError as `rendered` and `mask` do."""
    rendering = rendered(example, template, tokenizer)
    return mask([example], [rendering], tokens([rendering], tokenizer), template, tokenizer)[0]


def tokens(renderings: Sequence[Rendering], tokenizer: PreTrainedTokenizerBase) -> list[Encoding]:
    """The tokens of the texts, for `mask`. May run in a thread of its own, once `Markers.ready` has been called."""
    own = markers(tokenizer)
    return own.encode([rendering.text for rendering in renderings], places=own.widths is None)


def mask(
    examples: Sequence[Example],
    renderings: Sequence[Rendering],
    encodings: Sequence[Encoding],
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
) -> list[Masked]:
    """The rows of renderings that have been tokenised. encodings: what `tokens` gave for them.

    The tokenizer's begin-of-sequence token stands first if it puts one there by itself, and never twice. The first
    token of a plain text is not trained: nothing predicts it.
    Raises HarnessError, with the row's place, when a row has no trained token, or when the tokenizer cannot tell
    special tokens in a message from the template's.
    """
    own = markers(tokenizer)
    start, size = own.start, len(own.start)
    places = [example.place for example in examples]
    if own.widths is None:
        found = _by_places(own, renderings, encodings, places)
    else:
        found = _by_widths(own, own.widths, renderings, encodings, places)
    rows = []
    for example, (ids, runs) in zip(examples, found, strict=True):
        if size and tuple(ids[:size]) != start:
            ids = [*start, *ids]
            runs = [(begin + size, end + size) for begin, end in runs]
        if is_text(example):
            runs = [(max(runs[0][0], 1), runs[-1][1])] if runs and runs[-1][1] > 1 else []
        if not runs:
            raise nothing_trained(example, template)
        rows.append(Masked(ids, runs))
    return rows


def _by_places(
    own: Markers, renderings: Sequence[Rendering], encodings: Sequence[Encoding], places: Sequence[str]
) -> list[tuple[list[int], list[Run]]]:
    """The ids and runs of each row, by the places that the tokenizer tells."""
    located = own.settle(renderings, encodings, places)
    return [
        (ids, _runs(encoding, rendering.trained, len(ids)))
        for rendering, (ids, encoding) in zip(renderings, located, strict=True)
    ]


def _by_widths(
    own: Markers,
    widths: ByteLevel,
    renderings: Sequence[Rendering],
    encodings: Sequence[Encoding],
    places: Sequence[str],
) -> list[tuple[list[int], list[Run]]]:
    """The ids and runs of each row, by the widths of tokens; by their places where these do not tell, or where a
    control token stands in a content."""
    ids = [encoding.ids for encoding in encodings]
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    flat = np.fromiter(chain.from_iterable(ids), np.int32, int(lengths.sum()))
    runs, fits, strays = widths.runs(renderings, flat, lengths, own.possible)
    doubtful = {row for row, fit in enumerate(fits) if not fit}
    doubtful |= {row for row, token in strays if token in own.controls(renderings[row])}
    found = list(zip(ids, runs, strict=True))
    again = sorted(doubtful)
    some = [renderings[row] for row in again]
    encoded = own.encode([rendering.text for rendering in some]) if some else []
    for row, one in zip(again, _by_places(own, some, encoded, [places[row] for row in again]), strict=True):
        found[row] = one
    return found


def _runs(encoding: Encoding, stretches: Sequence[Run], size: int) -> list[Run]:
    """The stretches of tokens that begin in these stretches of text; the empty ones are left out."""
    runs: list[Run] = []
    for begin, end in stretches:
        first, last = before(encoding, begin, size), before(encoding, end, size)
        if first == last:
            continue
        if runs and runs[-1][1] == first:
            runs[-1] = (runs[-1][0], last)  # what stands between them in the text is in no token of its own
        else:
            runs.append((first, last))
    return runs


def before(encoding: Encoding, place: int, size: int) -> int:
    """How many of the tokens, `size` in all, begin before this place of the text. The tokens' beginnings ascend.

    Asks for a few places only: the tokenizer finds the token at hand, and its neighbours settle where it begins.
    """
    begins = cast(Callable[[int], Run], encoding.token_to_chars)  # None for a token that is not there
    if not size or begins(size - 1)[0] < place:
        return size
    at = encoding.char_to_token(place)
    if at is None:  # a character that no token holds: white space, in some tokenizers
        return bisect_left(range(size), place, key=lambda index: begins(index)[0])
    if begins(at)[0] < place:  # the token takes in what stands before, and so may the next ones, of one character
        while at < size and begins(at)[0] < place:
            at += 1
        return at
    while at and begins(at - 1)[0] >= place:  # tokens of no character stand at this place, too
        at -= 1
    return at


@dataclass(frozen=True)
class Encoded:
    """A row and what its truncation cost. cut: tokens dropped at its right end.

    A row whose response was cut off wholly has `row.loss_tokens == 0`: it trains nothing.
    """

    row: Row
    cut: int = 0

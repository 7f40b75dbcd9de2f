"""Where tokens stand in a text, for byte-level tokenizers: each token stands for a known number of bytes.

Such a tokenizer can then leave out its own book-keeping of places, which is a good part of its work, and the mask of a
whole batch is found at once. Whatever does not add up is left to the tokenizer's own places.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers

from harness.data.tokenization.rendering import Rendering

TokenSpan = tuple[int, int]

UNKNOWN_WIDTH = 1 << 20
"""Bytes that a token counts for of which nobody knows how many it stands for: the row then cannot add up."""


class ByteWidths:
    """Token widths of a byte-level tokenizer. widths: (V,) int64, in bytes."""

    def __init__(self, widths: NDArray[np.int64], nfc: bool) -> None:
        self.widths, self._nfc = widths, nfc

    @classmethod
    def from_tokenizer(cls, backend: Tokenizer) -> ByteWidths | None:
        """None unless every character of a text goes into the tokens byte for byte, nothing added."""
        model, added = backend.model, backend.get_added_tokens_decoder()
        normalizer, steps = (
            _component_settings(backend.normalizer),
            _pre_tokenizer_steps(_component_settings(backend.pre_tokenizer)),
        )
        plain = (
            isinstance(model, models.BPE)
            and not (model.byte_fallback or model.continuing_subword_prefix or model.end_of_word_suffix)
            and normalizer.get("type") in (None, "NFC")
            and any(step["type"] == "ByteLevel" for step in steps)
            and all(step["type"] in ("ByteLevel", "Split", "Digits") for step in steps)
            and not any(step.get("add_prefix_space") for step in steps)
            and not any(token.lstrip or token.rstrip for token in added.values())
        )
        if not plain:
            return None
        alphabet = frozenset(pre_tokenizers.ByteLevel.alphabet())
        vocabulary = backend.get_vocab(with_added_tokens=False)
        widths = np.full(max([*vocabulary.values(), *added], default=0) + 1, UNKNOWN_WIDTH, np.int64)
        for text, index in vocabulary.items():
            if text and alphabet.issuperset(text):
                widths[index] = len(text)
        for index, token in added.items():
            widths[index] = len(token.content.encode())
        return cls(widths, normalizer.get("type") == "NFC")

    def find_trained_spans(
        self,
        renderings: Sequence[Rendering],
        token_ids: NDArray[np.int32],
        lengths: NDArray[np.int64],
        possible_controls: NDArray[np.bool_],
    ) -> tuple[list[list[TokenSpan]], list[bool], list[tuple[int, int]]]:
        """Of each row, the stretches of tokens that begin in its trained stretches, and whether its tokens add up.

        flat: the tokens of all rows, one row after the other. lengths: of each row, in tokens. possible: (V,), the
        tokens that may be control tokens. Third: (row, token) of each such token that stands in no frame.
        """
        widths = self.widths[token_ids]
        ends = np.cumsum(widths)
        begins = ends - widths
        lasts = np.cumsum(lengths)
        firsts = lasts - lengths  # token indices
        bases = np.concatenate([np.zeros(1, np.int64), ends])[firsts]  # bytes before each row
        sizes = np.concatenate([np.zeros(1, np.int64), ends])[lasts] - bases
        trained: list[int] = []
        counts: list[int] = []
        frames: list[int] = []
        framed: list[int] = []
        fits: list[bool] = []
        for rendering, size in zip(renderings, sizes.tolist(), strict=True):
            stretches: Sequence[TokenSpan] = rendering.trained_spans
            others: Sequence[TokenSpan] = rendering.markup_spans
            text = rendering.text
            if text.isascii():
                fits.append(size == len(text))
            else:
                fits.append(
                    size == len(text.encode()) and not (self._nfc and not unicodedata.is_normalized("NFC", text))
                )
                stretches, others = _to_byte_spans(text, stretches), _to_byte_spans(text, others)
            counts.append(len(stretches))
            framed.append(len(others))
            for pair in stretches:
                trained += pair
            for pair in others:
                frames += pair
        at = np.searchsorted(begins, np.array(trained, np.int64) + np.repeat(bases, np.array(counts, np.int64) * 2))
        at -= np.repeat(firsts, np.array(counts, np.int64) * 2)
        strays = self._find_misplaced(
            token_ids, begins, ends, possible_controls, np.array(frames, np.int64), np.array(framed, np.int64), bases
        )
        rows = np.searchsorted(lasts, strays, side="right")
        placed = list(zip(rows.tolist(), token_ids[strays].tolist(), strict=True))
        return _spans_by_row(at.tolist(), counts), fits, placed

    @staticmethod
    def _find_misplaced(
        token_ids: NDArray[np.int32],
        begins: NDArray[np.int64],
        ends: NDArray[np.int64],
        possible_controls: NDArray[np.bool_],
        markup: NDArray[np.int64],
        markup_counts: NDArray[np.int64],
        row_offsets: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """The indices of the possible control tokens that lie in no frame. frames: begin and end of each, in turn."""
        hits = np.flatnonzero(possible_controls[token_ids])
        edges = markup.reshape(-1, 2) + np.repeat(row_offsets, markup_counts)[:, None]
        if not len(edges):
            return hits
        near = np.searchsorted(edges[:, 0], begins[hits], side="right") - 1
        inside = (near >= 0) & (ends[hits] <= edges[near, 1])
        return hits[~inside]


def _component_settings(component: Any) -> dict[str, Any]:
    """The settings of a tokenizer's part; none where it has no such part."""
    found: dict[str, Any] = json.loads(component.__getstate__()) if component is not None else {}
    return found


def _pre_tokenizer_steps(pre_tokenizer: dict[str, Any]) -> list[dict[str, Any]]:
    if pre_tokenizer.get("type") == "Sequence":
        return [step for one in pre_tokenizer["pretokenizers"] for step in _pre_tokenizer_steps(one)]
    return [pre_tokenizer] if pre_tokenizer else []


def _to_byte_spans(text: str, spans: Sequence[TokenSpan]) -> list[TokenSpan]:
    """Stretches of characters, in order, as stretches of bytes."""
    found, place, size = [], 0, 0
    for begin, end in spans:
        first = size + len(text[place:begin].encode())
        size, place = first + len(text[begin:end].encode()), end
        found.append((first, size))
    return found


def _spans_by_row(positions: list[int], counts: Sequence[int]) -> list[list[TokenSpan]]:
    """Begin and end of each stretch, in turn, as the stretches of each row; the empty ones left out, neighbours one."""
    rows, at = [], 0
    for count in counts:
        runs: list[TokenSpan] = []
        for _ in range(count):
            begin, end = positions[at], positions[at + 1]
            at += 2
            if begin == end:
                continue
            if runs and runs[-1][1] == begin:
                runs[-1] = (runs[-1][0], end)
            else:
                runs.append((begin, end))
        rows.append(runs)
    return rows

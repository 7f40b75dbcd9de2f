"""Locate tokens in a text by their byte widths, for byte-level tokenizers.

Such a tokenizer can then skip its own offsets, which are a large part of its work, and the mask of a batch is computed
with array operations. Rows whose widths do not add up fall back to the tokenizer's offsets.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers

from harness.data.tokenization.rendering import Interval, Rendering, append_interval

UNKNOWN_WIDTH = 1 << 20
"""Width in bytes of a token whose width is unknown: a row that contains one cannot add up."""


class ByteWidths:
    """Token widths of a byte-level tokenizer.

    Attributes:
        widths: (V,) int64, number of bytes that each token encodes.
    """

    def __init__(self, widths: NDArray[np.int64], nfc: bool) -> None:
        """Store the widths.

        Args:
            widths: (V,) int64, in bytes.
            nfc: Whether the tokenizer normalizes texts to NFC.
        """
        self.widths, self._nfc = widths, nfc

    @classmethod
    def from_tokenizer(cls, backend: Tokenizer) -> ByteWidths | None:
        """Return the widths; None unless the tokens of a text are exactly its bytes, in order."""
        model, added = backend.model, backend.get_added_tokens_decoder()
        normalizer = _component_settings(backend.normalizer)
        steps = _pre_tokenizer_steps(_component_settings(backend.pre_tokenizer))
        is_byte_exact = (
            isinstance(model, models.BPE)
            and not (model.byte_fallback or model.continuing_subword_prefix or model.end_of_word_suffix)
            and normalizer.get("type") in (None, "NFC")
            and any(step["type"] == "ByteLevel" for step in steps)
            and all(step["type"] in ("ByteLevel", "Split", "Digits") for step in steps)
            and not any(step.get("add_prefix_space") for step in steps)
            and not any(token.lstrip or token.rstrip for token in added.values())
        )
        if not is_byte_exact:
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
    ) -> tuple[list[list[Interval]], list[bool], list[tuple[int, int]]]:
        """Find the tokens of a batch that begin in trained text.

        All arrays of the batch are flat, row after row::

            rows        |-------- row 0 --------|---- row 1 ----|
            token_ids    t0  t1    t2   t3   t4  t5   t6     t7     (T,)
            ends        w0  w0+w1 ...                               (T,) cumulative bytes

        Args:
            renderings: The renderings of N rows.
            token_ids: (T,) the tokens of all rows.
            lengths: (N,) tokens of each row.
            possible_controls: (V,) the tokens that can be control tokens.

        Returns:
            For each row, its intervals of trained tokens; for each row, whether its widths add up to the text's size;
            and (row, token id) of each possible control token outside of the template's markup.
        """
        widths = self.widths[token_ids]  # (T,)
        ends = np.cumsum(widths)
        begins = ends - widths
        row_ends = np.cumsum(lengths)  # (N,) token indices
        row_begins = row_ends - lengths
        bytes_before = np.concatenate([np.zeros(1, np.int64), ends])
        row_bytes = bytes_before[row_begins]  # (N,) bytes before each row
        row_sizes = bytes_before[row_ends] - row_bytes
        trained: list[int] = []
        trained_counts: list[int] = []
        markup: list[int] = []
        markup_counts: list[int] = []
        adds_up: list[bool] = []
        for rendering, size in zip(renderings, row_sizes.tolist(), strict=True):
            trained_spans: Sequence[Interval] = rendering.trained_spans
            markup_spans: Sequence[Interval] = rendering.markup_spans
            text = rendering.text
            if text.isascii():
                adds_up.append(size == len(text))
            else:
                adds_up.append(
                    size == len(text.encode()) and not (self._nfc and not unicodedata.is_normalized("NFC", text))
                )
                trained_spans, markup_spans = _to_byte_spans(text, trained_spans), _to_byte_spans(text, markup_spans)
            trained_counts.append(len(trained_spans))
            markup_counts.append(len(markup_spans))
            for span in trained_spans:
                trained += span
            for span in markup_spans:
                markup += span
        edges_per_row = np.array(trained_counts, np.int64) * 2
        edges = np.searchsorted(begins, np.array(trained, np.int64) + np.repeat(row_bytes, edges_per_row))
        edges -= np.repeat(row_begins, edges_per_row)
        markup_edges = np.array(markup, np.int64).reshape(-1, 2)  # (number of markup spans, 2)
        markup_edges += np.repeat(row_bytes, np.array(markup_counts, np.int64))[:, None]
        hits = np.flatnonzero(possible_controls[token_ids])
        misplaced = hits[~_lie_within(begins[hits], ends[hits], markup_edges)]
        rows = np.searchsorted(row_ends, misplaced, side="right")
        controls = list(zip(rows.tolist(), token_ids[misplaced].tolist(), strict=True))
        return _spans_by_row(edges.tolist(), trained_counts), adds_up, controls


def _lie_within(begins: NDArray[np.int64], ends: NDArray[np.int64], spans: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return, for each of M intervals, whether one span contains it. spans: (S, 2), in ascending order."""
    if not len(spans):
        return np.zeros(len(begins), np.bool_)
    nearest = np.searchsorted(spans[:, 0], begins, side="right") - 1
    return np.asarray((nearest >= 0) & (ends <= spans[nearest, 1]), np.bool_)


def _component_settings(component: Any) -> dict[str, Any]:
    """Return the settings of a component of a tokenizer; empty where it has no such component."""
    settings: dict[str, Any] = json.loads(component.__getstate__()) if component is not None else {}
    return settings


def _pre_tokenizer_steps(pre_tokenizer: dict[str, Any]) -> list[dict[str, Any]]:
    if pre_tokenizer.get("type") == "Sequence":
        return [step for nested in pre_tokenizer["pretokenizers"] for step in _pre_tokenizer_steps(nested)]
    return [pre_tokenizer] if pre_tokenizer else []


def _to_byte_spans(text: str, spans: Sequence[Interval]) -> list[Interval]:
    """Convert intervals of characters, in order, to intervals of bytes."""
    byte_spans = []
    position = num_bytes = 0
    for begin, end in spans:
        first = num_bytes + len(text[position:begin].encode())
        num_bytes, position = first + len(text[begin:end].encode()), end
        byte_spans.append((first, num_bytes))
    return byte_spans


def _spans_by_row(edges: list[int], counts: Sequence[int]) -> list[list[Interval]]:
    """Group begins and ends, alternating, to intervals of each row; adjacent ones are merged, empty ones dropped."""
    rows = []
    pairs = iter(edges)
    for count in counts:
        spans: list[Interval] = []
        for _ in range(count):
            append_interval(spans, next(pairs), next(pairs))
        rows.append(spans)
    return rows

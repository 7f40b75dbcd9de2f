"""Summarize the lengths of a source's rows in tokens, and how much truncation cuts, as plain data to draw from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

TARGET_BINS = 10


def summarize_lengths(lengths: NDArray[np.integer[Any]], max_length: int) -> dict[str, Any]:
    """Return the distribution of lengths as plain data.

    Args:
        lengths: `(N,)` tokens of each row before truncation.
        max_length: Tokens that truncation keeps of a row.

    Returns:
        `rows`, `tokens`; `min`, `median`, `mean`, `p90`, `p99`, `max` in tokens of a row (percentiles are lengths of
        rows; None without rows); `max_length`, `rows_cut`, `tokens_cut`; and `bins`, each with `low` and `high` (both
        inclusive) and `rows`. No bin holds both rows that are cut and rows that are not.
    """
    lengths = np.asarray(lengths, np.int64)
    tokens_cut = np.maximum(lengths - max_length, 0)
    summary: dict[str, Any] = {"rows": len(lengths), "tokens": int(lengths.sum())}
    if len(lengths):
        median, p90, p99 = np.percentile(lengths, [50, 90, 99], method="inverted_cdf")
        summary |= {
            "min": int(lengths.min()),
            "median": int(median),
            "mean": round(float(lengths.mean()), 2),
            "p90": int(p90),
            "p99": int(p99),
            "max": int(lengths.max()),
        }
    else:
        summary |= dict.fromkeys(("min", "median", "mean", "p90", "p99", "max"))
    summary |= {"max_length": max_length, "rows_cut": int((tokens_cut > 0).sum()), "tokens_cut": int(tokens_cut.sum())}
    return {**summary, "bins": list(_compute_bins(np.sort(lengths), max_length))}


def _compute_bins(sorted_lengths: NDArray[np.int64], max_length: int) -> Iterator[dict[str, int]]:
    """Yield even bins up to the 99th percentile, one bin for longer rows, and one for the rows that are cut."""
    uncut = sorted_lengths[sorted_lengths <= max_length]
    has_cut_rows = len(uncut) < len(sorted_lengths)
    if len(uncut):
        top = int(np.percentile(uncut, 99, method="inverted_cdf"))
        width = _bin_width(top - int(uncut[0]) + 1)
        low = int(uncut[0]) // width * width
        while low <= top:
            yield _count_bin(sorted_lengths, low, min(low + width - 1, max_length))
            low += width
        if uncut[-1] >= low:
            yield _count_bin(sorted_lengths, low, max_length if has_cut_rows else int(uncut[-1]))
    if has_cut_rows:
        yield _count_bin(sorted_lengths, max_length + 1, int(sorted_lengths[-1]))


def _count_bin(sorted_lengths: NDArray[np.int64], low: int, high: int) -> dict[str, int]:
    begin, end = np.searchsorted(sorted_lengths, [low, high + 1])
    return {"low": low, "high": high, "rows": int(end - begin)}


def _bin_width(span: int) -> int:
    """Return the smallest of 1, 2, 5, 10, 20, 50, … with which `TARGET_BINS` bins cover the span."""
    width = 1
    while width * TARGET_BINS < span:
        width = width * 5 // 2 if str(width)[0] == "2" else width * 2
    return width

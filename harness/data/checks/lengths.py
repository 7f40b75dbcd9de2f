"""How long the rows of a source are, in tokens, and what truncation cuts of them: as numbers and as a picture.

The numbers are plain data, so that a picture can be drawn of them anywhere, at any width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

TARGET_BINS = 10


def summarize_lengths(lengths: NDArray[np.integer[Any]], max_length: int) -> dict[str, Any]:
    """The distribution of lengths as plain data.

    values: tokens of each row before truncation, (N,). max_length: tokens after which a row is cut.
    Returns `rows`, `tokens`, `min`, `median`, `mean`, `p90`, `p99`, `max` (tokens of a row; percentiles are lengths of
    rows; None without rows), `max_length`, `rows_cut`, `tokens_cut`, and `bins`: each `low`, `high` (both inclusive)
    and `rows`. No bin holds both rows that are cut and rows that are not.
    """
    lengths = np.asarray(lengths, np.int64)
    over = np.maximum(lengths - max_length, 0)
    facts: dict[str, Any] = {"rows": len(lengths), "tokens": int(lengths.sum())}
    if len(lengths):
        middle, high, highest = np.percentile(lengths, [50, 90, 99], method="inverted_cdf")
        facts |= {
            "min": int(lengths.min()),
            "median": int(middle),
            "mean": round(float(lengths.mean()), 2),
            "p90": int(high),
            "p99": int(highest),
            "max": int(lengths.max()),
        }
    else:
        facts |= dict.fromkeys(("min", "median", "mean", "p90", "p99", "max"))
    facts |= {"max_length": max_length, "rows_cut": int((over > 0).sum()), "tokens_cut": int(over.sum())}
    return {**facts, "bins": list(_compute_bins(np.sort(lengths), max_length))}


def _compute_bins(sorted_lengths: NDArray[np.int64], max_length: int) -> Iterator[dict[str, int]]:
    """Even bins up to the 99th percentile, one for the tail beyond it, and one for the rows that are cut."""
    kept = sorted_lengths[sorted_lengths <= max_length]
    if len(kept):
        top = int(np.percentile(kept, 99, method="inverted_cdf"))
        step = _bin_width(top - int(kept[0]) + 1)
        low = int(kept[0]) // step * step
        while low <= top:
            yield _count_bin(sorted_lengths, low, min(low + step - 1, max_length))
            low += step
        if kept[-1] >= low:
            yield _count_bin(sorted_lengths, low, max_length if len(kept) < len(sorted_lengths) else int(kept[-1]))
    if len(kept) < len(sorted_lengths):
        yield _count_bin(sorted_lengths, max_length + 1, int(sorted_lengths[-1]))


def _count_bin(sorted_lengths: NDArray[np.int64], low: int, high: int) -> dict[str, int]:
    begin, end = np.searchsorted(sorted_lengths, [low, high + 1])
    return {"low": low, "high": high, "rows": int(end - begin)}


def _bin_width(span: int) -> int:
    """The least of 1, 2, 5, 10, 20, 50, … that covers the span in `BINS` steps."""
    step = 1
    while step * TARGET_BINS < span:
        step = step * 5 // 2 if str(step)[0] == "2" else step * 2
    return step

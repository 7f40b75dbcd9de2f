"""How long the rows of a source are, in tokens, and what truncation cuts of them: as numbers and as a picture.

The numbers are plain data, so that a picture can be drawn of them anywhere, at any width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

BINS = 10
EIGHTHS = " ▏▎▍▌▋▊▉"
FULL, FULL_ASCII = "█", "#"
KEPT, CUT = "cyan", "bold red"


def lengths(values: NDArray[np.integer[Any]], max_length: int) -> dict[str, Any]:
    """The distribution of lengths as plain data.

    values: tokens of each row before truncation, (N,). max_length: tokens after which a row is cut.
    Returns `rows`, `tokens`, `min`, `median`, `mean`, `p90`, `p99`, `max` (tokens of a row; percentiles are lengths of
    rows; None without rows), `max_length`, `rows_cut`, `tokens_cut`, and `bins`: each `low`, `high` (both inclusive)
    and `rows`. No bin holds both rows that are cut and rows that are not.
    """
    values = np.asarray(values, np.int64)
    over = np.maximum(values - max_length, 0)
    facts: dict[str, Any] = {"rows": len(values), "tokens": int(values.sum())}
    if len(values):
        middle, high, highest = np.percentile(values, [50, 90, 99], method="inverted_cdf")
        facts |= {
            "min": int(values.min()),
            "median": int(middle),
            "mean": round(float(values.mean()), 2),
            "p90": int(high),
            "p99": int(highest),
            "max": int(values.max()),
        }
    else:
        facts |= dict.fromkeys(("min", "median", "mean", "p90", "p99", "max"))
    facts |= {"max_length": max_length, "rows_cut": int((over > 0).sum()), "tokens_cut": int(over.sum())}
    return {**facts, "bins": list(_bins(np.sort(values), max_length))}


def _bins(ordered: NDArray[np.int64], max_length: int) -> Iterator[dict[str, int]]:
    """Even bins up to the 99th percentile, one for the tail beyond it, and one for the rows that are cut."""
    kept = ordered[ordered <= max_length]
    if len(kept):
        top = int(np.percentile(kept, 99, method="inverted_cdf"))
        step = _step(top - int(kept[0]) + 1)
        low = int(kept[0]) // step * step
        while low <= top:
            yield _bin(ordered, low, min(low + step - 1, max_length))
            low += step
        if kept[-1] >= low:
            yield _bin(ordered, low, max_length if len(kept) < len(ordered) else int(kept[-1]))
    if len(kept) < len(ordered):
        yield _bin(ordered, max_length + 1, int(ordered[-1]))


def _bin(ordered: NDArray[np.int64], low: int, high: int) -> dict[str, int]:
    begin, end = np.searchsorted(ordered, [low, high + 1])
    return {"low": low, "high": high, "rows": int(end - begin)}


def _step(span: int) -> int:
    """The least of 1, 2, 5, 10, 20, 50, … that covers the span in `BINS` steps."""
    step = 1
    while step * BINS < span:
        step = step * 5 // 2 if str(step)[0] == "2" else step * 2
    return step


class Histogram:
    """A picture of `lengths`, one line a bin, as wide as it is given room, with the limit drawn where it cuts.

    name: of the source, printable. Without Unicode the bars are made of #; what is cut is also said in words.
    """

    def __init__(self, name: str, facts: Mapping[str, Any]) -> None:
        self._name, self._facts = name, facts

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        facts = self._facts
        yield Text.assemble((self._name, "bold"), f": {facts['rows']:,} rows{_spread(facts)}")
        ascii_only = options.ascii_only
        labels = [_label(one, facts["max_length"], "-" if ascii_only else "–") for one in facts["bins"]]
        numbers = [f"{one['rows']:,}" for one in facts["bins"]]
        left, right = max(map(len, labels), default=0), max(map(len, numbers), default=0)
        room = max(min(options.max_width, 100) - left - right - 4, 4)
        most = max((one["rows"] for one in facts["bins"]), default=1)
        for one, label, number in zip(facts["bins"], labels, numbers, strict=True):
            cut = one["low"] > facts["max_length"]
            if cut:
                yield Text(_limit(facts, options.max_width, "-" if ascii_only else "╌"), style="red")
            bar = _bar(one["rows"] / most * room, ascii_only)
            line = Text.assemble(f"  {label:>{left}} ", (f"{bar:<{room}}", CUT if cut else KEPT), f" {number:>{right}}")
            line.no_wrap = True
            yield line
        if facts["rows"]:
            yield Text(_cut(facts), style="red" if facts["rows_cut"] else "dim")


def _spread(facts: Mapping[str, Any]) -> str:
    if not facts["rows"]:
        return ""
    if facts["min"] == facts["max"]:
        return f" of {facts['max']:,} tokens"
    return (
        f" of {facts['min']:,} to {facts['max']:,} tokens, median {facts['median']:,}, mean {facts['mean']:,.0f}, "
        f"p90 {facts['p90']:,}, p99 {facts['p99']:,}"
    )


def _label(one: Mapping[str, int], max_length: int, dash: str) -> str:
    if one["low"] > max_length:
        return "longer"
    return f"{one['low']:,}" if one["low"] == one["high"] else f"{one['low']:,}{dash}{one['high']:,}"


def _limit(facts: Mapping[str, Any], width: int, dash: str) -> str:
    said = f" max_length {facts['max_length']:,} "
    return "  " + dash * 2 + said + dash * max(min(width, 100) - len(said) - 4, 0)


def _bar(length: float, ascii_only: bool) -> str:
    """A bar of a length in characters; what is not nothing is seen."""
    if ascii_only:
        return FULL_ASCII * (max(round(length), 1) if length else 0)
    eighths = max(round(length * 8), 1) if length else 0
    return FULL * (eighths // 8) + (EIGHTHS[eighths % 8] if eighths % 8 else "")


def _cut(facts: Mapping[str, Any]) -> str:
    if not facts["rows_cut"]:
        return f"  nothing is cut: max_length is {facts['max_length']:,}"
    rows, tokens = facts["rows_cut"] / facts["rows"], facts["tokens_cut"] / facts["tokens"]
    return (
        f"  cut: {facts['rows_cut']:,} row(s) ({100 * rows:.1f} %) lose {facts['tokens_cut']:,} tokens "
        f"({100 * tokens:.1f} % of all) at their ends"
    )

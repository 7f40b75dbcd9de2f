"""Lengths as numbers, and as a histogram at every width."""

from __future__ import annotations

import io
from itertools import pairwise

import numpy as np
import pytest
from rich.console import Console

from harness.data.checks.lengths import summarize_lengths
from harness.terminal.check_table import Histogram


def draw_histogram(summary, width=80):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(Histogram("name", summary))
    return console.file.getvalue()


def test_summary_describes_rows_before_truncation():
    summary = summarize_lengths(np.array([10] * 50 + [20] * 40 + [100] * 10), 60)
    assert (summary["rows"], summary["tokens"]) == (100, 2300)
    assert [summary[key] for key in ("min", "median", "mean", "p90", "p99", "max")] == [10, 10, 23.0, 20, 100, 100]
    assert (summary["max_length"], summary["rows_cut"], summary["tokens_cut"]) == (60, 10, 400)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("limit", [5, 100, 1000, 100_000])
def test_each_row_is_in_one_bin_and_no_bin_mixes_cut_and_uncut_rows(seed, limit):
    lengths = np.exp(np.random.default_rng(seed).normal(4, seed / 4, 500)).astype(int) + 1
    bins = summarize_lengths(lengths, limit)["bins"]
    assert [length_bin["rows"] for length_bin in bins] == [
        int(((lengths >= length_bin["low"]) & (lengths <= length_bin["high"])).sum()) for length_bin in bins
    ]
    assert sum(length_bin["rows"] for length_bin in bins) == 500
    assert all(length_bin["high"] < following["low"] for length_bin, following in pairwise(bins))
    assert all(length_bin["high"] <= limit or length_bin["low"] > limit for length_bin in bins)
    assert len(bins) <= 13


def test_summary_without_rows_has_no_lengths():
    summary = summarize_lengths(np.array([], int), 10)
    assert (summary["rows"], summary["max"], summary["bins"]) == (0, None, [])
    assert draw_histogram(summary) == "name: 0 rows\n"


@pytest.mark.parametrize("width", [40, 80, 200])
def test_histogram_fits_the_width_and_marks_what_is_cut(width):
    output = draw_histogram(summarize_lengths(np.array([10] * 50 + [20] * 40 + [1000] * 10), 60), width)
    assert max(len(line) for line in output.splitlines()) <= width
    assert "╌╌ max_length 60 ╌" in output
    assert "cut: 10 row(s) (10.0 %) lose 9,400 tokens (83.2 % of all) at their ends" in " ".join(output.split())
    assert output.index("10") < output.index("max_length") < output.index("longer")


def test_longest_bar_fills_the_width_and_a_single_row_is_visible():
    output = draw_histogram(summarize_lengths(np.array([10] * 5000 + [40]), 60), 40)
    bars = [line.count("█") for line in output.splitlines()]
    assert max(bars) > 20
    assert "▏" in output


def test_histogram_states_that_nothing_is_cut():
    assert "nothing is cut: max_length is 60" in draw_histogram(summarize_lengths(np.array([10, 20]), 60))


def test_histogram_is_ascii_without_unicode():
    summary = summarize_lengths(np.array([10] * 9 + [20] * 4 + [1000]), 60)
    console = Console(width=60, file=io.TextIOWrapper(io.BytesIO(), encoding="ascii"), color_system=None)
    console.print(Histogram("name", summary))
    console.file.flush()
    output = console.file.buffer.getvalue().decode("ascii")
    assert "####" in output
    assert "-- max_length 60 --" in output

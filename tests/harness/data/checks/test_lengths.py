"""Lengths as numbers and as a picture at every width."""

from __future__ import annotations

import io
from itertools import pairwise

import numpy as np
import pytest
from rich.console import Console

from harness.data.checks.lengths import summarize_lengths
from harness.terminal.check_table import Histogram


def drawn(facts, width=80, **more):
    console = Console(width=width, file=io.StringIO(), color_system=None, **more)
    console.print(Histogram("name", facts))
    return console.file.getvalue()


def test_the_numbers_are_those_of_the_rows_before_truncation():
    facts = summarize_lengths(np.array([10] * 50 + [20] * 40 + [100] * 10), 60)
    assert (facts["rows"], facts["tokens"]) == (100, 2300)
    assert [facts[key] for key in ("min", "median", "mean", "p90", "p99", "max")] == [10, 10, 23.0, 20, 100, 100]
    assert (facts["max_length"], facts["rows_cut"], facts["tokens_cut"]) == (60, 10, 400)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("limit", [5, 100, 1000, 100_000])
def test_every_row_is_in_one_bin_and_no_bin_holds_cut_and_whole_rows(seed, limit):
    values = np.exp(np.random.default_rng(seed).normal(4, seed / 4, 500)).astype(int) + 1
    bins = summarize_lengths(values, limit)["bins"]
    assert [one["rows"] for one in bins] == [int(((values >= b["low"]) & (values <= b["high"])).sum()) for b in bins]
    assert sum(one["rows"] for one in bins) == 500
    assert all(one["high"] < after["low"] for one, after in pairwise(bins))
    assert all(one["high"] <= limit or one["low"] > limit for one in bins)
    assert len(bins) <= 13


def test_no_rows_have_no_lengths():
    facts = summarize_lengths(np.array([], int), 10)
    assert (facts["rows"], facts["max"], facts["bins"]) == (0, None, [])
    assert drawn(facts) == "name: 0 rows\n"


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_picture_fits_marks_the_limit_and_says_what_is_cut(width):
    shown = drawn(summarize_lengths(np.array([10] * 50 + [20] * 40 + [1000] * 10), 60), width)
    assert max(len(line) for line in shown.splitlines()) <= width
    assert "╌╌ max_length 60 ╌" in shown
    assert "cut: 10 row(s) (10.0 %) lose 9,400 tokens (83.2 % of all) at their ends" in " ".join(shown.split())
    assert shown.index("10") < shown.index("max_length") < shown.index("longer")


def test_the_longest_bar_fills_the_room_and_a_single_row_is_seen():
    shown = drawn(summarize_lengths(np.array([10] * 5000 + [40]), 60), 40)
    bars = [line.count("█") for line in shown.splitlines()]
    assert max(bars) > 20
    assert "▏" in shown


def test_nothing_cut_is_said():
    assert "nothing is cut: max_length is 60" in drawn(summarize_lengths(np.array([10, 20]), 60))


def test_without_unicode_the_picture_is_ascii():
    facts = summarize_lengths(np.array([10] * 9 + [20] * 4 + [1000]), 60)
    console = Console(width=60, file=io.TextIOWrapper(io.BytesIO(), encoding="ascii"), color_system=None)
    console.print(Histogram("name", facts))
    console.file.flush()
    shown = console.file.buffer.getvalue().decode("ascii")
    assert "####" in shown
    assert "-- max_length 60 --" in shown

"""Packing: complete, within capacity, and equal to best-fit decreasing done row by row."""

import json
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.paths import ROOT

from harness.data.mixing.packing import pack_rows


def free_capacities_of_naive_packing(lengths, capacity):
    """Return the free capacity of each pack, by best-fit decreasing one row after the other."""
    free_capacities = []
    for length in sorted(lengths, reverse=True):
        fitting = [free for free in free_capacities if free >= length]
        if fitting:
            free_capacities.remove(min(fitting))
        free_capacities.append((min(fitting) if fitting else capacity) - length)
    return sorted(free_capacities)


cases = st.integers(1, 64).flatmap(
    lambda capacity: st.tuples(st.just(capacity), st.lists(st.integers(1, capacity), max_size=200))
)


@settings(max_examples=150, deadline=None)
@given(cases)
def test_no_pack_exceeds_capacity_and_no_row_is_lost(case):
    capacity, lengths = case
    packs = pack_rows(np.array(lengths), capacity)
    assert sorted(index for pack in packs for index in pack) == list(range(len(lengths)))
    assert all(0 < sum(lengths[index] for index in pack) <= capacity for pack in packs)


@settings(max_examples=150, deadline=None)
@given(cases)
def test_packs_equal_naive_best_fit_decreasing(case):
    capacity, lengths = case
    packs = pack_rows(np.array(lengths), capacity)
    free_capacities = sorted(capacity - sum(lengths[index] for index in pack) for pack in packs)
    assert free_capacities == free_capacities_of_naive_packing(lengths, capacity)


def test_row_goes_where_the_least_capacity_is_left():
    assert list(pack_rows(np.array([7, 6, 3, 2]), 10)) == [(0, 2), (1, 3)]


def test_earlier_row_of_equal_length_is_placed_first():
    assert list(pack_rows(np.array([5, 5, 5, 5, 5]), 10)) == [(0, 1), (2, 3), (4,)]
    assert list(pack_rows(np.array([2, 9, 9, 1, 1]), 10)) == [(1, 3), (2, 4), (0,)]


@pytest.mark.parametrize("length", [0, 11])
def test_row_that_fits_no_pack_is_an_error(length):
    with pytest.raises(ValueError, match="row 1"):
        pack_rows(np.array([5, length]), 10)


def test_many_rows_are_packed_tightly():
    random = Random(0)
    lengths = np.array([min(2048, 10 + int(random.lognormvariate(5.3, 0.8))) for _ in range(100_000)])
    packs = pack_rows(lengths, 2048)
    assert lengths.sum() / (2048 * len(packs)) > 0.999


def test_shipped_rows_fill_98_percent_of_the_tokens():
    files = sorted((ROOT / "specs" / "data").glob("*_train.jsonl"))
    rows = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    texts = [row["instruction"] + row.get("input", "") + row["output"] for row in rows]
    # About four characters for each token, and some tokens for the template.
    lengths = np.array([min(2048, 20 + len(text) // 4) for text in texts])
    assert len(lengths) > 100
    assert lengths.sum() / (2048 * len(pack_rows(lengths, 2048))) >= 0.98

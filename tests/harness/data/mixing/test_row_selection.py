"""Selection of rows near a target size."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from harness.data.mixing.mixture import SourcePool, subset_near_target


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.floats(0.5, 2000), st.floats(0, 20))
@example([30, 30, 7], 8.0, 0.0)
def test_subset_has_distinct_indices_and_is_at_most_one_size_off(sizes, target, tolerance):
    selected = subset_near_target(np.array(sizes), target, tolerance).tolist()
    assert selected == sorted(set(selected))
    assert selected
    total = sum(sizes[index] for index in selected)
    assert abs(total - target) <= max(sizes) or len(selected) == len(sizes)


def test_subset_swaps_rows_until_within_the_tolerance():
    assert subset_near_target(np.array([9, 9, 4, 1]), 10).tolist() == [0, 3]
    assert subset_near_target(np.array([30, 7, 8]), 8).tolist() == [2]
    selected = subset_near_target(np.array([10, 10, 3, 11]), 24)
    assert np.array([10, 10, 3, 11])[selected].sum() == 24
    assert subset_near_target(np.array([10, 10, 3, 11]), 24, tolerance=1.5).tolist() == [0, 1, 2]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=9), st.data())
def test_no_single_swap_would_reduce_the_error(sizes, data):
    target = data.draw(st.integers(1, sum(sizes)))
    selected = subset_near_target(np.array(sizes), target).tolist()
    total = sum(sizes[index] for index in selected)
    others = set(range(len(sizes))) - set(selected)
    for out in selected:
        for into in others:
            assert abs(total - sizes[out] + sizes[into] - target) >= abs(total - target)


def test_zero_target_selects_nothing_and_a_positive_target_at_least_one_row():
    assert subset_near_target(np.array([5, 5]), 0).tolist() == []
    assert subset_near_target(np.array([5, 6]), 0.1).tolist() == [0]
    assert subset_near_target(np.array([5, 6]), 0.1, min_rows=0).tolist() == []
    assert subset_near_target(np.array([]), 3).tolist() == []


@pytest.fixture
def source_pool():
    sizes = {"rows": np.ones(4, dtype=np.int32), "tokens": np.array([4, 3, 2, 1], dtype=np.int32)}
    return SourcePool(sizes, np.array([3, 2, 1, 0]))


def test_rows_are_taken_in_draw_order(source_pool):
    selection = source_pool.select_near("tokens", 3, 0.0, upsample=False)
    assert (selection.copies, sorted(selection.rows.tolist())) == (0, [2, 3])
    assert source_pool.selected_size(selection, "tokens") == 3
    assert source_pool.selected_size(selection, "rows") == 2


def test_without_upsampling_every_row_is_taken_at_most_once(source_pool):
    assert source_pool.select_near("tokens", 25, 0.0, upsample=False).counts_per_row(4).tolist() == [1, 1, 1, 1]


def test_with_upsampling_every_row_is_taken_floor_or_ceil_times(source_pool):
    selection = source_pool.select_near("tokens", 23, 0.0, upsample=True)
    assert source_pool.selected_size(selection, "tokens") == 23
    assert set(selection.counts_per_row(4).tolist()) == {2, 3}
    assert source_pool.select_near("tokens", 20, 0.0, upsample=True).counts_per_row(4).tolist() == [2, 2, 2, 2]
    assert source_pool.select_near("tokens", 20.4, 0.0, upsample=True).counts_per_row(4).tolist() == [2, 2, 2, 2]

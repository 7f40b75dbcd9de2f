import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from harness.data.mixing.mixture import SourcePool, subset_near_target


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.floats(0.5, 2000), st.floats(0, 20))
@example([30, 30, 7], 8.0, 0.0)
def test_the_nearest_choice_names_each_index_once_and_is_no_worse_than_one_size_off(sizes, target, slack):
    picked = subset_near_target(np.array(sizes), target, slack).tolist()
    assert picked == sorted(set(picked))
    assert picked
    total = sum(sizes[index] for index in picked)
    assert abs(total - target) <= max(sizes) or len(picked) == len(sizes)


def test_the_nearest_choice_exchanges_rows_to_come_nearer_than_the_slack():
    assert subset_near_target(np.array([9, 9, 4, 1]), 10).tolist() == [0, 3]
    assert subset_near_target(np.array([30, 7, 8]), 8).tolist() == [2]
    found = subset_near_target(np.array([10, 10, 3, 11]), 24)
    assert np.array([10, 10, 3, 11])[found].sum() == 24
    assert subset_near_target(np.array([10, 10, 3, 11]), 24, tolerance=1.5).tolist() == [0, 1, 2]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=9), st.data())
def test_no_exchange_of_two_rows_would_come_nearer(sizes, data):
    target = data.draw(st.integers(1, sum(sizes)))
    picked = subset_near_target(np.array(sizes), target).tolist()
    total = sum(sizes[index] for index in picked)
    others = set(range(len(sizes))) - set(picked)
    for out in picked:
        for into in others:
            assert abs(total - sizes[out] + sizes[into] - target) >= abs(total - target)


def test_nothing_is_taken_for_nothing_and_one_row_at_least_for_something():
    assert subset_near_target(np.array([5, 5]), 0).tolist() == []
    assert subset_near_target(np.array([5, 6]), 0.1).tolist() == [0]
    assert subset_near_target(np.array([5, 6]), 0.1, min_rows=0).tolist() == []
    assert subset_near_target(np.array([]), 3).tolist() == []


@pytest.fixture
def supply():
    sizes = {"rows": np.ones(4, dtype=np.int32), "tokens": np.array([4, 3, 2, 1], dtype=np.int32)}
    return SourcePool(sizes, np.array([3, 2, 1, 0]))


def test_rows_are_taken_in_the_order_given(supply):
    choice = supply.select_near("tokens", 3, 0.0, upsample=False)
    assert (choice.copies, sorted(choice.rows.tolist())) == (0, [2, 3])
    assert supply.selected_size(choice, "tokens") == 3
    assert supply.selected_size(choice, "rows") == 2


def test_without_upsampling_everything_is_the_most(supply):
    assert supply.select_near("tokens", 25, 0.0, upsample=False).counts_per_row(4).tolist() == [1, 1, 1, 1]


def test_with_upsampling_every_row_is_taken_floor_or_ceil_times(supply):
    choice = supply.select_near("tokens", 23, 0.0, upsample=True)
    assert supply.selected_size(choice, "tokens") == 23
    assert set(choice.counts_per_row(4).tolist()) == {2, 3}
    assert supply.select_near("tokens", 20, 0.0, upsample=True).counts_per_row(4).tolist() == [2, 2, 2, 2]
    assert supply.select_near("tokens", 20.4, 0.0, upsample=True).counts_per_row(4).tolist() == [2, 2, 2, 2]

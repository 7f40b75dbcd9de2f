from itertools import groupby, pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.mixing.batch_order import (
    WINDOW_BATCHES,
    group_by_length,
    group_by_length_within_source,
    interleave_sources,
    padding_efficiency,
)

counts = st.lists(st.integers(1, 150), min_size=1, max_size=4)


def stretches(kinds, wanted):
    """Lengths of the runs of slots of other kinds."""
    return [len(list(run)) for other, run in groupby(kinds, lambda kind: kind != wanted) if other]


@settings(max_examples=60, deadline=None)
@given(counts, st.integers(0, 99))
def test_before_they_are_grouped_by_length_slots_of_a_kind_stand_at_even_distances(counts, seed):
    kinds = np.repeat(np.arange(len(counts)), counts)
    spaced = interleave_sources(kinds, seed, "x")
    assert sorted(spaced) == list(range(len(kinds)))
    for kind, count in enumerate(counts):
        longest = max(stretches(kinds[spaced].tolist(), kind), default=0)
        assert longest <= max(len(kinds) / count + len(counts) - 2, 0)


def test_within_a_kind_slots_are_shuffled_turn_by_turn():
    kinds, turns = np.zeros(60, dtype=int), np.repeat([1, 0, 2], 20)
    spaced = interleave_sources(kinds, 0, "x", repeat_indices=turns)
    assert turns[spaced].tolist() == [0] * 20 + [1] * 20 + [2] * 20
    assert spaced[:20].tolist() != sorted(spaced[:20].tolist())
    assert spaced.tolist() != interleave_sources(kinds, 1, "x", repeat_indices=turns).tolist()


sizes = st.lists(st.integers(1, 50), min_size=1, max_size=200)


@settings(max_examples=80, deadline=None)
@given(sizes, st.integers(1, 5), st.integers(0, 300), st.integers(0, 99))
def test_slots_stay_in_their_window_and_batches_hold_neighbours_in_length(sizes, batch_size, start, seed):
    sizes, slots = np.array(sizes), interleave_sources(np.zeros(len(sizes), dtype=int), seed, "x")
    moved = group_by_length(slots, sizes, batch_size, start, seed, "y")
    place = start + np.arange(len(sizes))
    for window in set(place // (WINDOW_BATCHES * batch_size)):
        inside = place // (WINDOW_BATCHES * batch_size) == window
        assert sorted(moved[inside]) == sorted(slots[inside])
        spans = [
            (min(s), max(s))
            for batch in set(place[inside] // batch_size)
            for s in [sizes[moved[place // batch_size == batch]]]
        ]
        spans.sort()
        assert all(one[1] <= other[0] for one, other in pairwise(spans))


@settings(max_examples=40, deadline=None)
@given(counts, st.integers(1, 5), st.integers(0, 300), st.integers(0, 99))
def test_grouped_by_kind_every_place_keeps_its_kind(counts, batch_size, start, seed):
    kinds = np.repeat(np.arange(len(counts)), counts)
    sizes = (7 * np.arange(len(kinds))) % 41 + 1
    slots = interleave_sources(kinds, seed, "x")
    moved = group_by_length_within_source(slots, kinds, sizes, batch_size, start, seed, "y")
    assert sorted(moved) == list(range(len(kinds)))
    assert kinds[moved].tolist() == kinds[slots].tolist()


def test_grouping_by_kind_saves_padding_where_kinds_are_alike():
    kinds, sizes = np.arange(640) % 2, 1 + (37 * np.arange(640)) % 64
    slots = interleave_sources(kinds, 0, "x")
    assert (
        padding_efficiency(sizes[group_by_length_within_source(slots, kinds, sizes, 8, 0, 0, "y")], 8)
        > 0.85
        > 0.7
        > padding_efficiency(sizes[slots], 8)
    )


def test_batches_cut_by_the_ends_of_an_epoch_get_the_shortest_of_their_window():
    sizes, slots = np.arange(1, 65), np.arange(64)
    moved = group_by_length(slots, sizes, 4, 2, 0, "x")
    assert sorted(sizes[moved[:2]]) == [1, 2]
    assert sorted(sizes[moved[-2:]]) == [63, 64], "a window of its own"


def test_efficiency_counts_the_padding_of_batches():
    assert padding_efficiency(np.array([4, 2, 3]), 2) == 9 / (4 + 4 + 3)
    assert padding_efficiency(np.array([5]), 8) == 1

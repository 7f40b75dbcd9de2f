"""The order of an epoch: even distances, similar lengths in a batch, random otherwise."""

from itertools import groupby, pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.mixing.batch_order import (
    WINDOW_BATCHES,
    group_by_length,
    interleave_sources,
    largest_batch_tokens,
    padding_efficiency,
)

counts = st.lists(st.integers(1, 150), min_size=1, max_size=4)


def gap_lengths(source_ids, source):
    """Return the lengths of the gaps without a source."""
    return [len(list(gap)) for is_gap, gap in groupby(source_ids, lambda current: current != source) if is_gap]


@settings(max_examples=60, deadline=None)
@given(counts, st.integers(0, 99))
def test_interleaved_sequences_of_a_source_have_even_distances(counts, seed):
    source_ids = np.repeat(np.arange(len(counts)), counts)
    interleaved = interleave_sources(source_ids, seed, "x")
    assert sorted(interleaved) == list(range(len(source_ids)))
    for source, count in enumerate(counts):
        longest = max(gap_lengths(source_ids[interleaved].tolist(), source), default=0)
        assert longest <= max(len(source_ids) / count + len(counts) - 2, 0)


def test_sequences_of_a_source_are_shuffled_within_each_repeat():
    source_ids, repeats = np.zeros(60, dtype=int), np.repeat([1, 0, 2], 20)
    interleaved = interleave_sources(source_ids, 0, "x", repeat_indices=repeats)
    assert repeats[interleaved].tolist() == [0] * 20 + [1] * 20 + [2] * 20
    assert interleaved[:20].tolist() != sorted(interleaved[:20].tolist())
    assert interleaved.tolist() != interleave_sources(source_ids, 1, "x", repeat_indices=repeats).tolist()


length_lists = st.lists(st.integers(1, 50), min_size=1, max_size=200)


@settings(max_examples=80, deadline=None)
@given(length_lists, st.integers(1, 5), st.integers(0, 300), st.integers(0, 99))
def test_grouping_stays_within_windows_and_batches_hold_adjacent_lengths(lengths, batch_size, first_position, seed):
    lengths, order = np.array(lengths), interleave_sources(np.zeros(len(lengths), dtype=int), seed, "x")
    grouped = group_by_length(order, lengths, batch_size, first_position, seed, "y")
    position = first_position + np.arange(len(lengths))
    for window in set(position // (WINDOW_BATCHES * batch_size)):
        in_window = position // (WINDOW_BATCHES * batch_size) == window
        assert sorted(grouped[in_window]) == sorted(order[in_window])
        spans = [
            (min(s), max(s))
            for batch in set(position[in_window] // batch_size)
            for s in [lengths[grouped[position // batch_size == batch]]]
        ]
        spans.sort()
        assert all(span[1] <= next_span[0] for span, next_span in pairwise(spans))


@settings(max_examples=40, deadline=None)
@given(counts, st.integers(1, 5), st.integers(0, 300), st.integers(0, 99))
def test_grouping_within_sources_keeps_the_source_of_every_position(counts, batch_size, first_position, seed):
    source_ids = np.repeat(np.arange(len(counts)), counts)
    lengths = (7 * np.arange(len(source_ids))) % 41 + 1
    order = interleave_sources(source_ids, seed, "x")
    grouped = group_by_length(order, lengths, batch_size, first_position, seed, "y", within=source_ids)
    assert sorted(grouped) == list(range(len(source_ids)))
    assert source_ids[grouped].tolist() == source_ids[order].tolist()


def test_grouping_within_sources_reduces_padding():
    source_ids, lengths = np.arange(640) % 2, 1 + (37 * np.arange(640)) % 64
    order = interleave_sources(source_ids, 0, "x")
    assert (
        padding_efficiency(lengths[group_by_length(order, lengths, 8, 0, 0, "y", within=source_ids)], 8)
        > 0.85
        > 0.7
        > padding_efficiency(lengths[order], 8)
    )


def test_batches_split_by_an_epochs_ends_get_the_shortest_sequences():
    lengths, order = np.arange(1, 65), np.arange(64)
    grouped = group_by_length(order, lengths, 4, 2, 0, "x")
    assert sorted(lengths[grouped[:2]]) == [1, 2]
    assert sorted(lengths[grouped[-2:]]) == [63, 64], "a window of its own"


def test_efficiency_counts_padding():
    assert padding_efficiency(np.array([4, 2, 3]), 2) == 9 / (4 + 4 + 3)


def test_the_largest_batch_is_the_one_with_most_tokens_with_or_without_padding():
    lengths = np.array([4, 1, 3, 3, 5])
    assert largest_batch_tokens(lengths, 2, is_padded=True) == 8
    assert largest_batch_tokens(lengths, 2, is_padded=False) == 6
    assert largest_batch_tokens(lengths, 8, is_padded=False) == 16
    assert padding_efficiency(np.array([5]), 8) == 1

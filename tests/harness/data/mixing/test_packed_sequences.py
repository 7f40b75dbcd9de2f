"""`PackedSequences` compared with lists of tuples."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.data.mixing.packing import PackedSequences

sequence_lists = st.lists(st.lists(st.integers(0, 30), max_size=4), max_size=20)


@given(sequence_lists, st.integers(1, 7))
def test_packed_sequences_behave_like_a_list_of_tuples(lists, multiple):
    tuples = [tuple(sequence) for sequence in lists]
    sequences = PackedSequences.from_sequences(lists)
    assert list(sequences) == tuples
    assert len(sequences) == len(tuples)
    assert [sequences[n] for n in range(-len(tuples), len(tuples))] == tuples * 2
    assert list(sequences[1:7:2]) == tuples[1:7:2]
    assert list(sequences[::-1]) == tuples[::-1]
    assert sequences.rows_per_sequence.tolist() == [len(sequence) for sequence in tuples]
    assert list(PackedSequences.concatenate([sequences, PackedSequences.from_sequences([]), sequences])) == tuples * 2
    padded = sequences.pad_to_multiple(multiple)
    assert list(padded) == tuples + [()] * (-len(tuples) % multiple)


@given(sequence_lists)
def test_sum_and_remap_apply_to_the_rows_of_each_sequence(lists):
    sequences, sizes = PackedSequences.from_sequences(lists), np.arange(31) ** 2
    assert sequences.sum_sizes(sizes).tolist() == [sum(n * n for n in sequence) for sequence in lists]
    assert list(sequences.remap(np.arange(31) + 5)) == [tuple(n + 5 for n in sequence) for sequence in lists]


def test_index_out_of_range_is_an_error():
    with pytest.raises(IndexError):
        PackedSequences.from_sequences([(1,)])[1]


def test_equality_compares_all_sequences():
    sequences = PackedSequences.from_sequences([(1, 2), (3,)])
    assert sequences == PackedSequences.from_sequences([(1, 2), (3,)])
    assert sequences != PackedSequences.from_sequences([(1,), (2, 3)])
    assert sequences != [(1, 2), (3,)]
    assert PackedSequences.from_sequences(sequences) is sequences


def test_one_row_sequences_take_twelve_bytes_each():
    sequences = PackedSequences.one_row_each(np.arange(1000))
    assert sequences[999] == (999,)
    assert sequences.row_indices.nbytes + sequences.starts.nbytes == 12 * 1000 + 8

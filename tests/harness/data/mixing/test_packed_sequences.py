import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.data.mixing.packing import PackedSequences

some = st.lists(st.lists(st.integers(0, 30), max_size=4), max_size=20)


@given(some, st.integers(1, 7))
def test_slots_are_a_sequence_of_tuples(given_slots, multiple):
    tuples = [tuple(slot) for slot in given_slots]
    slots = PackedSequences.from_sequences(given_slots)
    assert list(slots) == tuples
    assert len(slots) == len(tuples)
    assert [slots[n] for n in range(-len(tuples), len(tuples))] == tuples * 2
    assert list(slots[1:7:2]) == tuples[1:7:2]
    assert list(slots[::-1]) == tuples[::-1]
    assert slots.rows_per_sequence.tolist() == [len(slot) for slot in tuples]
    assert list(PackedSequences.concatenate([slots, PackedSequences.from_sequences([]), slots])) == tuples * 2
    filled = slots.pad_to_multiple(multiple)
    assert list(filled) == tuples + [()] * (-len(tuples) % multiple)


@given(some)
def test_sums_and_names_are_those_of_the_members(given_slots):
    slots, sizes = PackedSequences.from_sequences(given_slots), np.arange(31) ** 2
    assert slots.sum_sizes(sizes).tolist() == [sum(n * n for n in slot) for slot in given_slots]
    assert list(slots.remap(np.arange(31) + 5)) == [tuple(n + 5 for n in slot) for slot in given_slots]


def test_an_index_beyond_the_end_is_an_error():
    with pytest.raises(IndexError):
        PackedSequences.from_sequences([(1,)])[1]


def test_slots_are_equal_when_all_of_them_are():
    slots = PackedSequences.from_sequences([(1, 2), (3,)])
    assert slots == PackedSequences.from_sequences([(1, 2), (3,)])
    assert slots != PackedSequences.from_sequences([(1,), (2, 3)])
    assert slots != [(1, 2), (3,)]
    assert PackedSequences.from_sequences(slots) is slots


def test_single_slots_take_twelve_bytes_each():
    slots = PackedSequences.one_row_each(np.arange(1000))
    assert slots[999] == (999,)
    assert slots.row_indices.nbytes + slots.starts.nbytes == 12 * 1000 + 8

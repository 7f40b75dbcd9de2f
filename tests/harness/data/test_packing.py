import time
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.packing import pack


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 64).flatmap(lambda c: st.tuples(st.just(c), st.lists(st.integers(1, c), max_size=200))))
def test_no_pack_is_overfull_no_row_is_lost_and_no_two_packs_fit_into_one(case):
    capacity, lengths = case
    packs = pack(lengths, capacity)
    assert sorted(index for members in packs for index in members) == list(range(len(lengths)))
    filled = sorted(sum(lengths[index] for index in members) for members in packs)
    assert all(0 < tokens <= capacity for tokens in filled)
    assert len(filled) < 2 or filled[0] + filled[1] > capacity


def test_a_row_goes_where_the_least_room_is_left():
    assert pack([7, 6, 3, 2], 10) == [(0, 2), (1, 3)]


@pytest.mark.parametrize("length", [0, 11])
def test_a_row_that_fits_no_pack_is_an_error(length):
    with pytest.raises(ValueError, match="row 1"):
        pack([5, length], 10)


def test_a_hundred_thousand_rows_are_packed_tightly_in_seconds():
    random = Random(0)
    lengths = [min(2048, 10 + int(random.lognormvariate(5.3, 0.8))) for _ in range(100_000)]
    started = time.perf_counter()
    packs = pack(lengths, 2048)
    assert time.perf_counter() - started < 10
    assert sum(lengths) / (2048 * len(packs)) > 0.99

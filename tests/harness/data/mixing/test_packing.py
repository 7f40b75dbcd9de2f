import json
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.mixing.packing import pack_rows

NAME = "shared/data/alpaca_en_demo.json"
DEMO = next((parent / NAME for parent in Path(__file__).parents if (parent / NAME).exists()), None)


def one_by_one(lengths, capacity):
    """Best-fit decreasing as it is told: the rooms left over, one row after the other."""
    rooms = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms.remove(min(fitting))
        rooms.append((min(fitting) if fitting else capacity) - length)
    return sorted(rooms)


cases = st.integers(1, 64).flatmap(lambda c: st.tuples(st.just(c), st.lists(st.integers(1, c), max_size=200)))


@settings(max_examples=150, deadline=None)
@given(cases)
def test_no_pack_is_overfull_and_no_row_is_lost(case):
    capacity, lengths = case
    packs = pack_rows(np.array(lengths), capacity)
    assert sorted(index for members in packs for index in members) == list(range(len(lengths)))
    assert all(0 < sum(lengths[index] for index in members) <= capacity for members in packs)


@settings(max_examples=150, deadline=None)
@given(cases)
def test_the_packs_are_those_of_placing_one_row_after_the_other(case):
    capacity, lengths = case
    packs = pack_rows(np.array(lengths), capacity)
    assert sorted(capacity - sum(lengths[index] for index in members) for members in packs) == one_by_one(
        lengths, capacity
    )


def test_a_row_goes_where_the_least_room_is_left():
    assert list(pack_rows(np.array([7, 6, 3, 2]), 10)) == [(0, 2), (1, 3)]


def test_of_rows_of_one_length_the_earlier_one_is_placed_first():
    assert list(pack_rows(np.array([5, 5, 5, 5, 5]), 10)) == [(0, 1), (2, 3), (4,)]
    assert list(pack_rows(np.array([2, 9, 9, 1, 1]), 10)) == [(1, 3), (2, 4), (0,)]


@pytest.mark.parametrize("length", [0, 11])
def test_a_row_that_fits_no_pack_is_an_error(length):
    with pytest.raises(ValueError, match="row 1"):
        pack_rows(np.array([5, length]), 10)


def test_many_rows_are_packed_tightly():
    random = Random(0)
    lengths = np.array([min(2048, 10 + int(random.lognormvariate(5.3, 0.8))) for _ in range(100_000)])
    packs = pack_rows(lengths, 2048)
    assert lengths.sum() / (2048 * len(packs)) > 0.999


@pytest.mark.skipif(DEMO is None, reason=f"{NAME} is in no folder above the tests")
def test_the_alpaca_demo_fills_98_of_100_tokens_at_2048():
    texts = [row["instruction"] + row["input"] + row["output"] for row in json.loads(DEMO.read_text(encoding="utf-8"))]
    # About four characters a token, and some for the template: no tokenizer of a real model is at hand here.
    lengths = np.array([min(2048, 20 + len(text) // 4) for text in texts])
    assert lengths.sum() / (2048 * len(pack_rows(lengths, 2048))) >= 0.98

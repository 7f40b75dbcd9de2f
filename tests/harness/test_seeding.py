"""Each purpose has its own seed, the same on every machine."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.seeding import create_generator, derive_seed


@pytest.mark.parametrize(
    ("seed", "purpose", "expected"),
    [(0, ("order", "mixed", 1), 1554190637), (0, ("evaluate",), 1819011879), (2**32 - 1, (), 4161216811)],
)
def test_derived_seed_is_the_same_on_every_machine_and_in_every_version(seed, purpose, expected):
    assert derive_seed(seed, *purpose) == expected


@pytest.mark.slow
@given(st.integers(0, 2**32 - 1), st.lists(st.one_of(st.integers(0, 999), st.text(max_size=8)), max_size=3))
def test_derived_seed_fits_numpy_and_torch(seed, purpose):
    assert 0 <= derive_seed(seed, *purpose) < 2**32


def test_seeds_and_purposes_give_distinct_seeds():
    purposes = [(name, index) for name in ("order", "limit", "generate") for index in range(50)]
    assert len({derive_seed(seed, *purpose) for seed in range(20) for purpose in purposes}) == 20 * len(purposes)


def test_two_generators_of_one_purpose_draw_the_same_numbers():
    assert create_generator(3, "order").sample(range(1000), 20) == create_generator(3, "order").sample(range(1000), 20)


def test_generators_do_not_affect_each_other_or_the_global_one():
    random.seed(1)
    state = random.getstate()
    expected = create_generator(0, "b").random()
    first, second = create_generator(0, "a"), create_generator(0, "b")
    first.random()
    assert second.random() == expected
    assert random.getstate() == state

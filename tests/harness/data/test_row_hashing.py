from unittest.mock import patch

import numpy as np
import pytest

from harness.data.row_hashing import (
    GOLDEN_GAMMA,
    hash_keys,
    hash_windows,
    random_fraction,
    random_uint64,
    shuffled_indices,
)


def test_mixing_function_is_splitmix64():
    with patch("harness.data.row_hashing.derive_seed", return_value=0):
        first = hash_keys(np.array([0]), 0, "x")[0]
    assert first == 0xE220A8397B1DCDAF, "the first output of the published generator at seed 0"


def test_hash_keys_depend_only_on_value_seed_and_purpose():
    values = np.array([5, 9, 2**63 + 1], dtype=np.uint64)
    assert hash_keys(values, 0, "a").tolist() == hash_keys(values[::-1], 0, "a").tolist()[::-1]
    assert (
        len(
            {
                *hash_keys(values, 0, "a").tolist(),
                *hash_keys(values, 1, "a").tolist(),
                *hash_keys(values, 0, "b").tolist(),
            }
        )
        == 9
    )


def test_random_numbers_are_uniform_and_distinct():
    numbers = random_uint64(4096, 3, "x")
    assert len(np.unique(numbers)) == 4096
    for bit in range(64):
        ones = int(((numbers >> np.uint64(bit)) & np.uint64(1)).sum())
        assert abs(ones - 2048) < 5 * 32, "five standard deviations"


def test_shuffled_indices_are_a_permutation():
    assert sorted(shuffled_indices(50, 0, "x")) == list(range(50))
    assert shuffled_indices(50, 0, "x").tolist() != shuffled_indices(50, 1, "x").tolist()


def test_random_fraction_is_in_unit_interval():
    fractions = [random_fraction(0, "x", n) for n in range(200)]
    assert all(0 <= fraction < 1 for fraction in fractions)
    assert max(fractions) > 0.9
    assert min(fractions) < 0.1


@pytest.mark.parametrize("size", [1, 2, 5, 6, 7])
def test_window_hashes_are_polynomials_of_their_values(size):
    values = [3, 1, 4, 1, 5, 9]
    expected = [
        sum(
            value * GOLDEN_GAMMA ** (size - 1 - position) for position, value in enumerate(values[start : start + size])
        )
        % 2**64
        for start in range(len(values) - size + 1)
    ]
    assert hash_windows(np.array(values), size).tolist() == expected

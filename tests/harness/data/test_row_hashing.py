import numpy as np

from harness.data.row_hashing import hash_keys, random_fraction, random_uint64, shuffled_indices


def test_the_mixing_function_is_splitmix64():
    from unittest.mock import patch

    with patch("harness.data.row_hashing.derive_seed", return_value=0):
        first = hash_keys(np.array([0]), 0, "x")[0]
    assert first == 0xE220A8397B1DCDAF, "the first output of the published generator at seed 0"


def test_ranks_depend_on_value_seed_and_purpose_alone():
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


def test_ranks_are_uniform_and_different():
    found = random_uint64(4096, 3, "x")
    assert len(np.unique(found)) == 4096
    for bit in range(64):
        ones = int(((found >> np.uint64(bit)) & np.uint64(1)).sum())
        assert abs(ones - 2048) < 5 * 32, "five standard deviations"


def test_a_shuffle_holds_every_number_once():
    assert sorted(shuffled_indices(50, 0, "x")) == list(range(50))
    assert shuffled_indices(50, 0, "x").tolist() != shuffled_indices(50, 1, "x").tolist()


def test_a_fraction_lies_within_the_unit_interval():
    found = [random_fraction(0, "x", n) for n in range(200)]
    assert all(0 <= one < 1 for one in found)
    assert max(found) > 0.9
    assert min(found) < 0.1

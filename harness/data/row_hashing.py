"""Random numbers for many rows at once: each is a hash of the seed, its purpose and the row.

NumPy's generators are not used: their streams may change between versions, and a row's number would depend on its
position in the file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.seeding import derive_seed

HashKeys = NDArray[np.uint64]

GOLDEN_GAMMA = 0x9E3779B97F4A7C15
"""2**64 divided by the golden ratio, made odd: the increment of SplitMix64, and the factor of `hash_windows`."""


def hash_keys(values: NDArray[Any], seed: int, *purpose: str | int) -> HashKeys:
    """Return a uniform 64-bit number for each value, random by seed and purpose.

    Sort rows by these numbers to shuffle them independently of their order in the file. The key differs from the key of
    `splits.hash_keys_for_split`, and both must stay as they are: a seed selects the same rows in every version.

    Args:
        values: `(N,)` integers, e.g. row ids.
        seed: The seed of the plan.
        purpose: What the numbers are used for; each purpose has independent numbers.

    Returns:
        `(N,)` uint64; different values have different numbers.
    """
    key = np.uint64(derive_seed(seed, *purpose) << 32 | derive_seed(seed, *purpose, "low"))
    return mix_bits((values.astype(np.uint64) ^ key) + np.uint64(GOLDEN_GAMMA))


def mix_bits(values: HashKeys) -> HashKeys:
    """Return the mixing function of SplitMix64 of each value, `(N,)` uint64; it is one to one.

    Source: Steele, Lea and Flood, 2014, doi:10.1145/2660193.2660195. Arithmetic of uint64 wraps around.
    """
    mixed = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def random_uint64(count: int, seed: int, *purpose: str | int) -> HashKeys:
    """Return `count` different uniform 64-bit numbers; sorting by them shuffles."""
    return hash_keys(np.arange(count), seed, *purpose)


def shuffled_indices(count: int, seed: int, *purpose: str | int) -> NDArray[np.intp]:
    """Return the integers below `count` in random order."""
    return np.argsort(random_uint64(count, seed, *purpose))


def random_fraction(seed: int, *purpose: str | int) -> float:
    """Return one uniform number in [0, 1)."""
    return derive_seed(seed, *purpose) / 2**32


def hash_windows(values: NDArray[Any], size: int) -> HashKeys:
    """Return the polynomial hash of each window of `size` consecutive values.

    Args:
        values: `(N,)` non-negative integers.
        size: Values in a window, at least 1.

    Returns:
        `(max(N - size + 1, 0),)` uint64. Different windows can share a hash.
    """
    units = values.astype(np.uint64)
    hashes = np.zeros(max(len(units) - size + 1, 0), np.uint64)
    for offset in range(size):
        hashes = hashes * np.uint64(GOLDEN_GAMMA) + units[offset : offset + len(hashes)]
    return hashes

"""Random numbers for many rows at once, each of them a hash of the seed, the purpose and what it is for.

Not numpy's generators: their streams may change with its version, and the choice of a row would hang on its place.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.seeding import derive_seed

HashKeys = NDArray[np.uint64]


def hash_keys(values: NDArray[Any], seed: int, *purpose: str | int) -> HashKeys:
    """A uniform 64-bit number for each value, random by seed and purpose; different values have different ones.

    values: (N,) integers, e.g. ids of rows: rows sorted by their ranks are in an order that is random and does not
    depend on the order given. The mixing function of SplitMix64 (Steele et al., 2014, doi:10.1145/2660193.2660195).
    """
    key = np.uint64(derive_seed(seed, *purpose) << 32 | derive_seed(seed, *purpose, "low"))
    mixed: HashKeys = (values.astype(np.uint64) ^ key) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def random_uint64(count: int, seed: int, *purpose: str | int) -> HashKeys:
    """`count` different uniform 64-bit numbers; sorting by them shuffles."""
    return hash_keys(np.arange(count), seed, *purpose)


def shuffled_indices(count: int, seed: int, *purpose: str | int) -> NDArray[np.intp]:
    """The numbers below `count` in random order."""
    return np.argsort(random_uint64(count, seed, *purpose))


def random_fraction(seed: int, *purpose: str | int) -> float:
    """One uniform number in [0, 1)."""
    return derive_seed(seed, *purpose) / 2**32

"""MinHash signatures and an index of them by bands (LSH), which proposes pairs of similar sets.

Broder, 1997, "On the resemblance and containment of documents"; Leskovec, Rajaraman and Ullman, "Mining of Massive
Datasets", chapter 3. Imports numpy only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PERMUTATIONS = 128
"""Numbers in a signature. The share of equal numbers of two signatures estimates the Jaccard similarity of their sets,
with a standard deviation of at most 0.044."""

SHINGLES_AT_ONCE = 4096
"""Elements of a set that are permuted at once: 2 MiB."""

ERROR_WEIGHTS = (0.1, 0.9)
"""Costs of a false and of a missed candidate. A false one costs only a comparison. With these weights and a threshold
of 0.8, a pair of similarity 0.8 becomes a candidate in 87 of 100 cases, of 0.85 in 97, of 0.9 in 99.9."""


class MinHashIndex:
    """An index of sets of 32-bit hashes.

    A signature is split into bands. Two sets are candidates if all numbers of one band are equal.
    """

    def __init__(self, threshold: float) -> None:
        """Create an empty index.

        Args:
            threshold: The Jaccard similarity in (0, 1] from which pairs are to be found.
        """
        self.bands, self.band_size = choose_bands(threshold)
        generator = np.random.default_rng(1)
        # x -> a x + b mod 2^32 with an odd a is a permutation of the 32-bit numbers
        self._multipliers = generator.integers(0, 2**32, PERMUTATIONS, np.uint32) | np.uint32(1)
        self._offsets = generator.integers(0, 2**32, PERMUTATIONS, np.uint32)
        self._band_weights = generator.integers(0, 2**64, (self.bands, self.band_size), np.uint64)
        self._band_numbers = generator.integers(0, 2**64, self.bands, np.uint64)
        self._entries: dict[int, int | list[int]] = {}  # hash of a band -> positions of sets that have it
        self._signatures = np.empty((64, PERMUTATIONS), np.uint32)
        self._rows: list[int] = []  # position -> row

    def compute_signature(self, hashes: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Return the signature of a set. hashes: (N,), not empty. Returns: (PERMUTATIONS,)."""
        signature = np.full(PERMUTATIONS, np.uint32(0xFFFFFFFF))
        for begin in range(0, len(hashes), SHINGLES_AT_ONCE):
            permuted = hashes[begin : begin + SHINGLES_AT_ONCE, None] * self._multipliers  # (n, PERMUTATIONS)
            permuted += self._offsets
            np.minimum(signature, permuted.min(axis=0), out=signature)
        return signature

    def find_candidates(self, signature: NDArray[np.uint32]) -> list[tuple[float, int]]:
        """Return the estimated similarity and the row of each set that shares a band with this one."""
        positions: set[int] = set()
        for key in self._band_keys(signature):
            entry = self._entries.get(key)
            if entry is not None:
                positions.update([entry] if isinstance(entry, int) else entry)
        if not positions:
            return []
        indices = list(positions)
        estimates = (self._signatures[indices] == signature).mean(axis=1).tolist()
        return [(estimate, self._rows[index]) for estimate, index in zip(estimates, indices, strict=True)]

    def add(self, row: int, signature: NDArray[np.uint32]) -> None:
        """Add the set of a row."""
        position = len(self._rows)
        if position == len(self._signatures):
            self._signatures = np.concatenate([self._signatures, np.empty_like(self._signatures)])
        self._signatures[position] = signature
        self._rows.append(row)
        for key in self._band_keys(signature):
            entry = self._entries.setdefault(key, position)
            if entry == position:
                continue
            if isinstance(entry, int):
                self._entries[key] = [entry, position]
            else:
                entry.append(position)

    def _band_keys(self, signature: NDArray[np.uint32]) -> list[int]:
        """Return a hash of each band: equal bands at the same place have equal hashes."""
        numbers = signature[: self.bands * self.band_size].reshape(self.bands, self.band_size)
        keys: list[int] = ((numbers * self._band_weights).sum(axis=1) ^ self._band_numbers).tolist()
        return keys


def choose_bands(threshold: float, weights: tuple[float, float] = ERROR_WEIGHTS) -> tuple[int, int]:
    """Return the number of bands and of numbers in each that make the fewest errors.

    With b bands of r numbers, a pair of similarity s is a candidate with probability 1 - (1 - s^r)^b.

    Args:
        threshold: The similarity from which a pair counts.
        weights: Costs of a false and of a missed candidate; all similarities are equally likely.
    """
    threshold = min(threshold, 0.99)
    sizes = np.arange(1, PERMUTATIONS + 1)[:, None]
    below = np.linspace(0, threshold, 257) ** sizes  # (PERMUTATIONS, 257), s^r
    above = np.linspace(threshold, 1, 257) ** sizes
    best, best_cost = (1, 1), float("inf")
    for bands in range(1, PERMUTATIONS + 1):
        num_sizes = PERMUTATIONS // bands
        false = (1 - (1 - below[:num_sizes]) ** bands).mean(axis=1) * threshold
        missed = ((1 - above[:num_sizes]) ** bands).mean(axis=1) * (1 - threshold)
        costs = weights[0] * false + weights[1] * missed
        size = int(costs.argmin())
        if costs[size] < best_cost:
            best, best_cost = (bands, size + 1), float(costs[size])
    return best

"""Finds the stretches of words that texts share with a stream of rows, in memory that the stream does not grow.

Words become numbers, those that stand in no indexed text zero, so that most windows of a row need no look-up at all.
A window is found by its hash and believed only when its words are equal.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_FACTOR = np.uint64(0x9E3779B97F4A7C15)


class Stretches:
    """Every stretch of some texts, and how many rows of those read so far hold it.

    texts: words of each text, and how many make a stretch of it; a text with fewer has none.
    keep: a stretch that more rows than this hold keeps their number and forgets which they are.
    """

    def __init__(self, texts: Sequence[tuple[Sequence[str], int]], keep: int) -> None:
        self._keep = keep
        self._numbers: dict[str | None, int] = {}
        flat = [self._numbers.setdefault(word, len(self._numbers) + 1) for words, _ in texts for word in words]
        self._flat = np.array(flat, np.int64)
        lengths = np.array([len(words) for words, _ in texts], np.int64)
        self._starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        sizes = np.array([size for _, size in texts], np.int64)
        self._stretch_at = np.full(len(flat), -1, np.int64)
        self._by_size: list[tuple[int, int, NDArray[np.uint64], NDArray[np.int64]]] = []
        total = 0
        for size in np.unique(sizes[lengths >= sizes]).tolist():
            of = np.flatnonzero((sizes == size) & (lengths >= size))
            at = np.concatenate([np.arange(self._starts[t], self._starts[t + 1] - size + 1) for t in of])
            hashes, first, inverse = np.unique(_hashes(self._flat, size)[at], return_index=True, return_inverse=True)
            self._stretch_at[at] = inverse + total
            self._by_size.append((size, total, hashes, at[first]))
            total += len(hashes)
        self.counts = np.zeros(total, np.int64)
        """Rows that hold each stretch, (S,)."""
        self._rows: list[list[int]] = [[] for _ in range(total)]

    def read(self, rows: Sequence[Sequence[str | None]], first: int) -> set[int]:
        """Look for the stretches in the words of some rows, numbered from `first`; None stands between two texts.

        Returns the numbers of the rows in which a stretch was found that is not in more than `keep` rows so far.
        """
        numbers = self._numbers.get
        flat = np.fromiter((numbers(word, 0) for row in rows for word in (*row, None)), np.int64)
        ends = np.cumsum([len(row) + 1 for row in rows])
        blanks = np.concatenate([[0], np.cumsum(flat == 0)])
        found: set[int] = set()
        for size, base, hashes, places in self._by_size:
            if len(flat) < size:
                continue
            at = np.flatnonzero(blanks[size:] == blanks[:-size])
            sought = _hashes(flat, size)[at]
            near = np.minimum(np.searchsorted(hashes, sought), len(hashes) - 1)
            alike = hashes[near] == sought
            at, near = at[alike], near[alike]
            window = np.arange(size)
            same = (flat[at[:, None] + window] == self._flat[places[near][:, None] + window]).all(axis=1)
            holder = np.searchsorted(ends, at[same], side="right")
            pairs = np.unique(holder * len(self.counts) + near[same] + base)  # a row counts once
            stretches = pairs % len(self.counts)
            fresh = self.counts[stretches] < self._keep
            for row, stretch in zip(
                (pairs // len(self.counts))[fresh].tolist(), stretches[fresh].tolist(), strict=True
            ):
                if len(self._rows[stretch]) < self._keep:
                    self._rows[stretch].append(first + row)
                    found.add(first + row)
            np.add.at(self.counts, stretches, 1)
        return found

    def of(self, text: int) -> NDArray[np.int64]:
        """The stretch that begins at each word of a text, an index into `counts`; -1 where none does."""
        return self._stretch_at[self._starts[text] : self._starts[text + 1]]

    def rows(self, stretch: int) -> Sequence[int]:
        """The rows that hold a stretch, the first `keep` of them."""
        return self._rows[stretch]


def _hashes(flat: NDArray[np.int64], size: int) -> NDArray[np.uint64]:
    """A hash of each window of `size` numbers, (N - size + 1,)."""
    numbers = flat.astype(np.uint64)
    hashes = np.zeros(max(len(flat) - size + 1, 0), np.uint64)
    for offset in range(size):
        hashes = hashes * _FACTOR + numbers[offset : offset + len(hashes)]
    return hashes

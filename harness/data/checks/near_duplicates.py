"""Find rows that repeat others: equal rows of two sources, and rows with nearly the same wording.

Equal rows within one source are dropped and counted by the split.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.data.checks.minhash import MinHashIndex
from harness.data.row_hashing import GOLDEN_GAMMA, hash_windows
from harness.seeding import derive_seed
from harness.types import Progress, no_progress
from harness.utils.words import normalize_case, unspaced_character_pattern

SHINGLE_SIZE = 5
"""Units in a shingle. A letter is one unit; a character of an unspaced script is two, as it carries about as much
information as two letters."""

ESTIMATE_SLACK = 0.12
"""A candidate is compared exactly if its estimate is at most this far below the threshold: about three standard
deviations of the estimate."""

MAX_EXACT_COMPARISONS = 3
"""Candidates of a row that are compared exactly, the most similar ones first."""

MAX_PAIRS_SHOWN = 10


@dataclass(frozen=True)
class DuplicatePair:
    """Two rows with nearly the same wording.

    Attributes:
        row: The location of the later row.
        earlier: The location of the earlier row.
        similarity: The Jaccard similarity of their shingles, in [0, 1].
    """

    row: str
    earlier: str
    similarity: float


@dataclass(frozen=True)
class NearDuplicateReport:
    """Rows that nearly repeat an earlier one.

    Attributes:
        rows: All rows.
        examined: Rows that were compared; fewer than `rows` above the limit. A pair is then found only if both its rows
            are examined.
        repeats: Examined rows that nearly repeat an earlier examined one; each counts once.
        worst: The most similar pairs, at most `MAX_PAIRS_SHOWN`.
    """

    rows: int
    examined: int
    repeats: int
    worst: tuple[DuplicatePair, ...]

    @property
    def share(self) -> float:
        """Repeats / examined rows, in [0, 1]."""
        return self.repeats / self.examined if self.examined else 0.0


def find_near_duplicates(
    texts: Sequence[tuple[str, str]],
    *,
    threshold: float = 0.8,
    limit: int | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> NearDuplicateReport:
    """Find the rows that nearly repeat the wording of an earlier row, by MinHash and LSH (Broder, 1997).

    LSH proposes candidates, and a candidate counts only if its exact similarity reaches the threshold. So every
    reported pair is right, and a small part of the pairs can be missed (see `minhash.ERROR_WEIGHTS`). A row that
    repeats another is not indexed, so a row copied a thousand times costs a thousand comparisons, not half a million.

    Memory: about 3 kB for each examined row that does not repeat another.

    Args:
        texts: (location, text) of each row; read once in order, and again row by row to compare candidates.
        threshold: The lowest Jaccard similarity of two rows' shingles that counts, in (0, 1].
        limit: Rows to examine, chosen by the seed; None examines all.
        seed: The seed of the plan.
        progress: Receives the phase `compare rows`, in rows.
    """
    index = MinHashIndex(threshold)
    pairs: list[DuplicatePair] = []
    row_indices = sample_row_indices(len(texts), limit, seed)
    for done, (row, (location, text)) in enumerate(_iter_rows(texts, row_indices)):
        if done % 1000 == 0:
            progress("compare rows", done, len(row_indices), "", "rows")
        shingles = hash_shingles(text)
        if not len(shingles):
            continue
        signature = index.compute_signature(shingles)
        candidates = _most_similar_rows(index.find_candidates(signature), threshold)
        similarity, negated_row = max(
            ((jaccard_similarity(shingles, hash_shingles(texts[earlier][1])), -earlier) for earlier in candidates),
            default=(0.0, 0),
        )
        if similarity >= threshold:
            pairs.append(DuplicatePair(location, texts[-negated_row][0], similarity))
        else:
            index.add(row, signature)
    progress("compare rows", len(row_indices), len(row_indices), "", "rows")
    worst = sorted(pairs, key=lambda pair: -pair.similarity)[:MAX_PAIRS_SHOWN]
    return NearDuplicateReport(len(texts), len(row_indices), len(pairs), tuple(worst))


def hash_shingles(text: str) -> NDArray[np.uint32]:
    """Return the distinct hashes of a text's shingles.

    A shingle is 5 consecutive letters, or 2 to 3 characters of an unspaced script. Case, runs of white space and
    Unicode composition do not count. A text shorter than a shingle is one shingle; a blank text has none.
    """
    text = unspaced_character_pattern().sub("\\g<0>\0", " ".join(normalize_case(text).split()))
    units = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    if not len(units):
        return np.empty(0, np.uint32)
    hashes = hash_windows(units, min(SHINGLE_SIZE, len(units)))
    hashes ^= hashes >> np.uint64(29)
    return np.unique((hashes * np.uint64(GOLDEN_GAMMA) >> np.uint64(32)).astype(np.uint32))


def sample_row_indices(num_rows: int, limit: int | None, seed: int) -> Sequence[int]:
    """Return the indices of the rows to examine, ascending: all, or `limit` of them chosen by the seed."""
    if limit is None or num_rows <= limit:
        return range(num_rows)
    chosen = np.random.default_rng(derive_seed(seed, "near duplicates")).choice(num_rows, limit, replace=False)
    return [int(row) for row in np.sort(chosen)]


def cross_source_duplicates(
    content_hashes: Mapping[str, NDArray[np.uint64]],
) -> Iterator[tuple[str, str, NDArray[np.intp], NDArray[np.intp]]]:
    """Find the rows that are equal in two sources.

    Args:
        content_hashes: Source -> content hash of each of its rows, `(N,)`, without duplicates.

    Yields:
        The names of two sources, and the indices of their equal rows in each, `(M,)`, pair by pair.
    """
    names = list(content_hashes)
    for position, first in enumerate(names):
        for second in names[position + 1 :]:
            _, first_rows, second_rows = np.intersect1d(
                content_hashes[first], content_hashes[second], return_indices=True
            )
            if len(first_rows):
                order = np.argsort(first_rows)
                yield first, second, first_rows[order], second_rows[order]


def _iter_rows(texts: Sequence[tuple[str, str]], row_indices: Sequence[int]) -> Iterator[tuple[int, tuple[str, str]]]:
    if len(row_indices) == len(texts):
        yield from enumerate(texts)  # reads the rows in blocks
    else:
        for row in row_indices:
            yield row, texts[row]


def _most_similar_rows(candidates: Sequence[tuple[float, int]], threshold: float) -> list[int]:
    """Return the rows whose estimated similarity is highest, earlier rows first. candidates: (estimate, row)."""
    likely = [(-estimate, row) for estimate, row in candidates if estimate >= threshold - ESTIMATE_SLACK]
    return [row for _, row in sorted(likely)[:MAX_EXACT_COMPARISONS]]


def jaccard_similarity(left: NDArray[np.uint32], right: NDArray[np.uint32]) -> float:
    """Return the Jaccard similarity of two sets of distinct hashes, in [0, 1]; at least one is not empty."""
    shared = len(np.intersect1d(left, right, assume_unique=True))
    return shared / (len(left) + len(right) - shared)

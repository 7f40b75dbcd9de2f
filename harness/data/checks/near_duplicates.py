"""Rows that say the same twice: exactly, in two sources, or nearly, by the overlap of their wording.

Rows of one source that are equal are dropped and counted by the split; here is what it cannot see.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.data.checks.words import UNSPACED_CHARACTER_PATTERN, normalize_case
from harness.seeding import derive_seed
from harness.types import Progress, no_progress

SHINGLE_SIZE = 5
"""Units in a shingle. A letter is one unit and a character of an unspaced script two, as it tells about as much."""

MINHASH_PERMUTATIONS = 128
LSH_WEIGHTS = (0.1, 0.9)
"""What a wrong and a missed candidate cost. A wrong one only costs a comparison; with these weights and a threshold of
0.8 a pair of similarity 0.8 becomes a candidate in 87 cases of 100, of 0.85 in 97, of 0.9 in 99.9."""

ESTIMATE_SLACK = 0.12
"""How far an estimate may lie below the threshold to be compared exactly: about three of its standard deviations."""

MAX_EXACT_COMPARISONS = 3
"""Candidates of a row, the likeliest first, that are compared exactly."""

MAX_PAIRS_SHOWN = 10


@dataclass(frozen=True)
class DuplicatePair:
    """Two rows that nearly say the same. similarity: the Jaccard similarity of their shingles, in [0, 1]."""

    row: str
    earlier: str
    similarity: float


@dataclass(frozen=True)
class NearDuplicateReport:
    """Rows that nearly repeat an earlier one.

    rows: how many there are. examined: how many of them were looked at; fewer when there are more than the limit, and
    then a pair is seen only if both its rows are among them. repeats: examined rows that nearly repeat an earlier
    examined one; each counts once. worst: the likest pairs.
    """

    rows: int
    examined: int
    repeats: int
    worst: tuple[DuplicatePair, ...]

    @property
    def share(self) -> float:
        """Repeats among the examined rows, in [0, 1]."""
        return self.repeats / self.examined if self.examined else 0.0


def find_near_duplicates(
    texts: Sequence[tuple[str, str]],
    *,
    threshold: float = 0.8,
    limit: int | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> NearDuplicateReport:
    """Find the rows whose wording nearly repeats that of an earlier row, by MinHash and LSH (Broder, 1997).

    texts: (place, text) of each row; read once in order, and again row by row where two are compared.
    threshold: the least Jaccard similarity of two rows' shingles (see `shingles`) that makes them near duplicates,
    in (0, 1]. limit: rows that are examined, chosen by the seed; None: all.

    Candidates come from LSH, and each counts only when its exact similarity reaches the threshold: what is found is
    right, and of what is there a small part may be missed (see `WEIGHTS`). A row that repeats another is not a
    candidate itself, so a row copied a thousand times costs a thousand comparisons, not half a million.
    Memory: about 6 kB for each examined row that repeats no other.
    """
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=min(threshold, 0.99), num_perm=MINHASH_PERMUTATIONS, weights=LSH_WEIGHTS)
    blank = MinHash(num_perm=MINHASH_PERMUTATIONS, seed=1, hashfunc=int)
    signatures: dict[int, NDArray[np.uint32]] = {}
    pairs: list[DuplicatePair] = []
    chosen = sample_row_indices(len(texts), limit, seed)
    for done, (number, (place, text)) in enumerate(_iter_rows(texts, chosen)):
        if done % 1000 == 0:
            progress("compare rows", done, len(chosen), "", "rows")
        found = hash_shingles(text)
        if not len(found):
            continue
        made = blank.copy()
        made.update_batch(found.tolist())
        candidates = _most_similar_candidates(index.query(made), signatures, made.hashvalues, threshold)
        best = max(
            ((_jaccard_similarity(found, hash_shingles(texts[one][1])), -one) for one in candidates), default=(0.0, 0)
        )
        if best[0] >= threshold:
            pairs.append(DuplicatePair(place, texts[-best[1]][0], best[0]))
        else:
            index.insert(number, made, check_duplication=False)
            signatures[number] = made.hashvalues
    progress("compare rows", len(chosen), len(chosen), "", "rows")
    worst = sorted(pairs, key=lambda pair: -pair.similarity)[:MAX_PAIRS_SHOWN]
    return NearDuplicateReport(len(texts), len(chosen), len(pairs), tuple(worst))


def hash_shingles(text: str) -> NDArray[np.uint32]:
    """The distinct hashes of a text's shingles: 5 letters in a row, or 2 to 3 characters of an unspaced script.

    Case, runs of white space and Unicode composition do not count. A text shorter than a shingle is one; a blank text
    has none.
    """
    text = _UNSPACED_CHARACTER.sub("\\g<0>\0", " ".join(normalize_case(text).split()))
    units = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    if not len(units):
        return np.empty(0, np.uint32)
    size = min(SHINGLE_SIZE, len(units))
    hashes = np.zeros(len(units) - size + 1, np.uint64)
    for offset in range(size):
        hashes = hashes * _HASH_MULTIPLIER + units[offset : offset + len(hashes)]
    hashes ^= hashes >> np.uint64(29)
    return np.unique((hashes * _HASH_MULTIPLIER >> np.uint64(32)).astype(np.uint32))


_UNSPACED_CHARACTER = re.compile(UNSPACED_CHARACTER_PATTERN.pattern)
_HASH_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def sample_row_indices(num_rows: int, limit: int | None, seed: int) -> Sequence[int]:
    """The numbers of the rows that are examined, ascending: all, or `limit` of them chosen by the seed."""
    if limit is None or num_rows <= limit:
        return range(num_rows)
    chosen = np.random.default_rng(derive_seed(seed, "near duplicates")).choice(num_rows, limit, replace=False)
    return [int(number) for number in np.sort(chosen)]


def cross_source_duplicates(
    content_hashes: Mapping[str, NDArray[np.uint64]],
) -> Iterator[tuple[str, str, NDArray[np.intp], NDArray[np.intp]]]:
    """The rows that stand in two sources word for word: both names, and the rows' numbers in each, pair by pair.

    keys: source -> content hash of each of its rows, (N,), each once.
    """
    names = list(content_hashes)
    for number, one in enumerate(names):
        for other in names[number + 1 :]:
            _, left, right = np.intersect1d(content_hashes[one], content_hashes[other], return_indices=True)
            if len(left):
                order = np.argsort(left)
                yield one, other, left[order], right[order]


def _iter_rows(texts: Sequence[tuple[str, str]], row_indices: Sequence[int]) -> Iterator[tuple[int, tuple[str, str]]]:
    if len(row_indices) == len(texts):
        yield from enumerate(texts)
    else:
        for number in row_indices:
            yield number, texts[number]


def _most_similar_candidates(
    candidates: Sequence[int],
    signatures: Mapping[int, NDArray[np.uint32]],
    signature: NDArray[np.uint32],
    threshold: float,
) -> list[int]:
    estimates = [(float(np.mean(signatures[one] == signature)), -one) for one in candidates]
    likely = sorted((pair for pair in estimates if pair[0] >= threshold - ESTIMATE_SLACK), reverse=True)
    return [-number for _, number in likely[:MAX_EXACT_COMPARISONS]]


def _jaccard_similarity(left: NDArray[np.uint32], right: NDArray[np.uint32]) -> float:
    common = len(np.intersect1d(left, right, assume_unique=True))
    return common / (len(left) + len(right) - common)

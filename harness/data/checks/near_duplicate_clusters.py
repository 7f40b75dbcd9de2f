"""Find clusters of near duplicates, so that a split can keep each cluster on one side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from harness.data.checks.minhash import MinHashIndex
from harness.data.checks.near_duplicates import ESTIMATE_SLACK, hash_shingles, jaccard_similarity
from harness.types import Progress, no_progress

MAX_UNLIKE_CANDIDATES = 100
"""Candidates of a row that turn out to be no near duplicates, after which no more are compared."""

MAX_NEIGHBORS = 64
"""Estimated near duplicates in its cluster with which a row is not indexed: rows like it are found by these."""


def cluster_near_duplicates(
    texts: Sequence[tuple[str, str]], *, threshold: float = 0.8, progress: Progress = no_progress
) -> NDArray[np.int64]:
    """Return the cluster of each row, `(N,)`: rows are connected by chains of near duplicates.

    Pairs are proposed and compared as in `near_duplicates.find_near_duplicates`, which also misses a small part of
    them. The limits above bound the time for rows that are all alike, such as those of one prompt with little of their
    own. A pair can be missed by them only among more than so many similar rows.

    Memory: about 3 kB for each row.

    Args:
        texts: (location, text) of each row; read once in order, and again row by row to compare candidates.
        threshold: The lowest Jaccard similarity of two rows' shingles that counts, in (0, 1].
        progress: Receives the phase `group near duplicates`, in rows.
    """
    index = MinHashIndex(threshold)
    clusters = np.arange(len(texts), dtype=np.int64)
    members = {row: [row] for row in range(len(texts))}
    for row, (_, text) in enumerate(texts):
        if row % 1000 == 0:
            progress("group near duplicates", row, len(texts), "", "rows")
        shingles = hash_shingles(text)
        if not len(shingles):
            continue
        signature = index.compute_signature(shingles)
        candidates = [pair for pair in index.find_candidates(signature) if pair[0] >= threshold - ESTIMATE_SLACK]
        candidates.sort(reverse=True)
        rows = np.array([earlier for _, earlier in candidates], np.int64)
        remaining, unlike = rows, 0
        while len(remaining) and unlike < MAX_UNLIKE_CANDIDATES:
            earlier, remaining = int(remaining[0]), remaining[1:]
            if jaccard_similarity(shingles, hash_shingles(texts[earlier][1])) >= threshold:
                _merge_clusters(clusters, members, int(clusters[row]), int(clusters[earlier]))
                # the others of this cluster are connected already
                remaining = remaining[clusters[remaining] != clusters[row]]
            else:
                unlike += 1
        likely = sum(estimate >= threshold for estimate, _ in candidates)
        if int((clusters[rows[:likely]] == clusters[row]).sum()) < MAX_NEIGHBORS:
            index.add(row, signature)
    progress("group near duplicates", len(texts), len(texts), "", "rows")
    return clusters


def _merge_clusters(clusters: NDArray[np.int64], members: dict[int, list[int]], first: int, second: int) -> None:
    """Give the rows of the smaller cluster the number of the larger one, in place."""
    larger, smaller = sorted((first, second), key=lambda cluster: -len(members[cluster]))
    moved = members.pop(smaller)
    clusters[moved] = larger
    members[larger] += moved

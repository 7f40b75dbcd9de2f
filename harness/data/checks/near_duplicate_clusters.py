"""Find clusters of near duplicates, so that a split can keep each cluster on one side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from harness.data.checks.minhash import MinHashIndex
from harness.data.checks.near_duplicates import ESTIMATE_SLACK, hash_shingles, jaccard_similarity
from harness.types import Progress, no_progress


def cluster_near_duplicates(
    texts: Sequence[tuple[str, str]], *, threshold: float = 0.8, progress: Progress = no_progress
) -> NDArray[np.int64]:
    """Return the cluster of each row, `(N,)`: rows are connected by chains of near duplicates.

    Pairs are proposed and compared as in `near_duplicates.find_near_duplicates`, which also misses a small part of
    them. Every pair that is found connects its rows, so the clusters do not depend on the order of the rows.

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
        rows = np.array([earlier for _, earlier in sorted(candidates, reverse=True)], np.int64)
        while len(rows):
            earlier, rows = int(rows[0]), rows[1:]
            if jaccard_similarity(shingles, hash_shingles(texts[earlier][1])) >= threshold:
                _merge_clusters(clusters, members, int(clusters[row]), int(clusters[earlier]))
                rows = rows[clusters[rows] != clusters[row]]  # the others of this cluster are connected already
        index.add(row, signature)
    progress("group near duplicates", len(texts), len(texts), "", "rows")
    return clusters


def _merge_clusters(clusters: NDArray[np.int64], members: dict[int, list[int]], first: int, second: int) -> None:
    """Give the rows of the smaller cluster the number of the larger one, in place."""
    larger, smaller = sorted((first, second), key=lambda cluster: -len(members[cluster]))
    moved = members.pop(smaller)
    clusters[moved] = larger
    members[larger] += moved

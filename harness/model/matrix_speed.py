"""How fast this CPU multiplies float32 matrices. Imports no torch: numpy's product has nearly the same rate."""

from __future__ import annotations

import time

import numpy as np

SIZE, REPEATS = 512, 5


def matrix_operations_per_second() -> float:
    """Return the operations a second of a float32 matrix product, the best of a few; takes some 50 ms."""
    matrix = np.ones((SIZE, SIZE), dtype=np.float32)
    matrix @ matrix  # the first product starts the threads
    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - start)
    return 2 * SIZE**3 / best

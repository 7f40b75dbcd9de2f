"""How fast this CPU multiplies matrices. Imports no torch: the product of numpy has nearly the same rate."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

SIZE, REPEATS = 512, 5


def matrix_operations_per_second() -> float:
    """Return the operations a second of a float32 matrix product; takes some 50 ms."""
    return 2 * SIZE**3 / seconds_of_product(np.ones((SIZE, SIZE), dtype=np.float32))


def seconds_of_product(matrix: Any) -> float:
    """Return the time of the product of a matrix with itself, the best of a few.

    Args:
        matrix: A square array of numpy or tensor of torch.
    """
    matrix @ matrix  # the first product starts the threads and chooses its kernel
    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - start)
    return best

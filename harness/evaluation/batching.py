"""Rows taken in batches, longest first, with a smaller batch where memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence

import torch

from harness.errors import RunError
from harness.model.device import is_out_of_memory


def longest_first(lengths: Sequence[int]) -> list[int]:
    """The indices by falling length: rows of a batch are alike, and what does not fit shows at once."""
    return sorted(range(len(lengths)), key=lambda index: -lengths[index])


def run_in_batches(
    indices: Sequence[int],
    max_batch_size: int,
    process_batch: Callable[[list[int]], None],
    finished: Container[int],
    *,
    where: str,
    notify: Callable[[str], None],
    cost: Callable[[int], int] = lambda index: 0,
    budget: int = 0,
) -> None:
    """Call `process_batch` with batches of at most `max_batch_size` indices, whose `cost` sums to at most `budget` (0:
    any).

    process_batch: adds to `finished` each index that is done with, at once or at the end.
    When the device is out of memory the batch is halved for good, `notify` is told, and what was not finished is
    taken again. One row is always tried. Raises RunError when not even that fits.
    """
    queue = list(indices)
    while queue:
        batch = _next_batch(queue, max_batch_size, cost, budget)
        if _try_batch(process_batch, batch):
            del queue[: len(batch)]
            continue
        if len(batch) == 1:
            what = "the device is out of memory with one row at a time"
            raise RunError(where, what, "lower train.max_length or max_new_tokens, or use a smaller model")
        torch.cuda.empty_cache()
        max_batch_size = len(batch) // 2
        notify(f"out of memory with {len(batch)} rows at once, going on with {max_batch_size}")
        queue[: len(batch)] = [index for index in batch if index not in finished]


def _next_batch(queue: list[int], size: int, cost: Callable[[int], int], budget: int) -> list[int]:
    total = 0
    for count, index in enumerate(queue[:size]):
        total += cost(index)
        if count and budget and total > budget:
            return queue[:count]
    return queue[:size]


def _try_batch(process_batch: Callable[[list[int]], None], batch: list[int]) -> bool:
    # The answer is returned rather than acted on here: while the exception is alive so is its traceback, and with
    # that every tensor that filled the memory.
    try:
        process_batch(batch)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True

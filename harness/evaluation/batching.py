"""Batches of rows, longest first, with smaller batches when the device is out of memory."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence

import torch

from harness.errors import RunError
from harness.model.device import is_out_of_memory


def longest_first(lengths: Sequence[int]) -> list[int]:
    """Return the indices by decreasing length.

    The rows of a batch then have similar lengths, and a batch that does not fit fails at the start.
    """
    return sorted(range(len(lengths)), key=lambda index: -lengths[index])


def run_in_batches(
    indices: Sequence[int],
    max_batch_size: int,
    process_batch: Callable[[list[int]], None],
    *,
    where: str,
    notify: Callable[[str], None],
    memory_share: Callable[[int], float] = lambda index: 0.0,
) -> None:
    """Call `process_batch` with batches of the indices, in order.

    When the device is out of memory, the batch size is halved permanently and the batch is processed again.
    A batch of one row is always tried.

    Args:
        indices: What to process.
        max_batch_size: Number of indices in a batch, at most.
        process_batch: Processes a batch.
        where: Location in the error message.
        notify: Receives a note when the batch size is halved.
        memory_share: Share of the memory limit that an index needs; the shares of a batch sum to at most 1.

    Raises:
        RunError: A single row does not fit into memory.
    """
    queue = list(indices)
    while queue:
        batch = _next_batch(queue, max_batch_size, memory_share)
        if _fits_in_memory(lambda batch=batch: process_batch(batch)):  # type: ignore[misc]
            del queue[: len(batch)]
        else:
            max_batch_size = _halve(len(batch), where, notify)


def run_with_batch_size(
    indices: Sequence[int],
    batch_size: int,
    process: Callable[[list[int], int], None],
    finished: Container[int],
    *,
    where: str,
    notify: Callable[[str], None],
) -> None:
    """Call `process` with all indices and a batch size, which is halved when the device is out of memory.

    Args:
        indices: What to process.
        batch_size: The first batch size.
        process: Processes indices with a batch size, and adds each index to `finished` when it is done. It is called
            again with the unfinished indices.
        finished: The indices that are done.
        where: Location in the error message.
        notify: Receives a note when the batch size is halved.

    Raises:
        RunError: A single row does not fit into memory.
    """
    while unfinished := [index for index in indices if index not in finished]:
        batch_size = min(batch_size, len(unfinished))
        if not _fits_in_memory(lambda todo=unfinished, size=batch_size: process(todo, size)):  # type: ignore[misc]
            batch_size = _halve(batch_size, where, notify)


def _halve(batch_size: int, where: str, notify: Callable[[str], None]) -> int:
    """Return half of the batch size that does not fit into memory. Raises RunError for a single row."""
    if batch_size == 1:
        what = "the device is out of memory with one row at a time"
        raise RunError(where, what, "lower train.max_length or max_new_tokens, or use a smaller model")
    torch.cuda.empty_cache()
    notify(f"out of memory with {batch_size} rows at once, continuing with {batch_size // 2}")
    return batch_size // 2


def _next_batch(queue: list[int], max_batch_size: int, memory_share: Callable[[int], float]) -> list[int]:
    total = 0.0
    for count, index in enumerate(queue[:max_batch_size]):
        total += memory_share(index)
        if count and total > 1.0:
            return queue[:count]
    return queue[:max_batch_size]


def _fits_in_memory(process: Callable[[], None]) -> bool:
    # The result is returned instead of handled in the except block: while the exception exists, its traceback keeps
    # every tensor alive that filled the memory.
    try:
        process()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True

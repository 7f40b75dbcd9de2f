"""Divide a batch into smaller ones that together have the same rows, for a device that has too little memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from harness.training.collator import row_boundaries

Batch = Mapping[str, Any]
"""As `Collator` returns it."""


def split_batch(batch: Batch, parts: int) -> list[dict[str, Any]]:
    """Divide a batch into at most `parts` batches of about as many rows each, in order.

    Lines are kept whole. A single line with `position_ids` is divided between its rows, which do not attend to each
    other::

        position_ids   0  1  2  0  1  0  1  2
        2 parts       [0  1  2  0  1][0  1  2]

    Args:
        batch: Tensors of shape (B, T), and the boundaries of the rows if it has them.
        parts: How many; fewer are returned if the batch has fewer rows.
    """
    line_count, length = batch["input_ids"].shape
    if line_count > 1:
        bounds = _bounds(line_count, parts)
        return [_without_padding({name: value[a:b] for name, value in batch.items()}) for a, b in bounds]
    if "position_ids" not in batch:
        return [dict(batch)]
    edges = [*torch.nonzero(batch["position_ids"][0] == 0).flatten().tolist(), length]
    return [_rows_of_line(batch, edges[a : b + 1]) for a, b in _bounds(len(edges) - 1, parts)]


def _rows_of_line(batch: Batch, edges: Sequence[int]) -> dict[str, Any]:
    """Return a part of a line. edges: where its rows begin, and where the last one ends."""
    part = {
        name: value[:, edges[0] : edges[-1]]
        for name, value in batch.items()
        if isinstance(value, Tensor) and value.shape == batch["input_ids"].shape
    }
    if "cu_seq_lens_q" in batch:
        part |= row_boundaries([end - start for start, end in pairwise(edges)], batch["cu_seq_lens_q"].device)
    return part


def _bounds(count: int, parts: int) -> list[tuple[int, int]]:
    parts = min(parts, count)
    edges = [count * part // parts for part in range(parts + 1)]
    return list(pairwise(edges))


def _without_padding(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the batch without the columns at its end that are padding in every line."""
    if "attention_mask" not in batch:
        return batch
    length = int(batch["attention_mask"].sum(dim=1).max())
    return {name: value[:, :length] for name, value in batch.items()}

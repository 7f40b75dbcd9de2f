"""Warn before the first step if the disk is too small for what a run writes."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.model import save
from harness.types import Stage
from harness.utils.formatting import format_count

BYTES_OF_WEIGHT = 4
"""Trained weights are float32."""

OPTIMIZER_BYTES = 8
"""AdamW stores two float32 numbers for each trained weight."""


def estimate_disk_use(stages: Sequence[Stage], checkpoints: Sequence[int], model: Any) -> int:
    """Return the bytes that a run writes: checkpoints that are kept, snapshots and the final model.

    Args:
        stages: The stages of the run.
        checkpoints: How many checkpoints each stage writes.
        model: The model to train; only its trainable weights are in checkpoints and snapshots.
    """
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    saved = trained if save.saves_as_adapter(model) else sum(weight.numel() for weight in model.parameters())
    checkpoint_bytes = 0
    for stage, written in zip(stages, checkpoints, strict=True):
        limit = stage.train["save_limit"]
        kept = written if limit is None else min(written, limit + 1)  # a new one before an old one is deleted
        checkpoint_bytes += kept * trained * (BYTES_OF_WEIGHT + OPTIMIZER_BYTES)
    return int(checkpoint_bytes + BYTES_OF_WEIGHT * (trained * len(stages) + saved))


def disk_space_warning(folder: Path, stages: Sequence[Stage], checkpoints: Sequence[int], model: Any) -> str | None:
    """Return a warning if the disk of a run's folder has less free space than the run writes; None if it has enough."""
    needed, free = estimate_disk_use(stages, checkpoints, model), shutil.disk_usage(folder).free
    if needed <= free:
        return None
    return (
        f"{folder}: {format_count(free, 'B')} are free, but the run may write "
        f"{format_count(needed, 'B')} of checkpoints, snapshots and model; "
        'free some, set "output" to another disk, or lower train.save_limit'
    )

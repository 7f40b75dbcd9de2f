"""The fingerprint of a stage: what must be equal to resume from a checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from harness.data.mixing.packing import PackedSequences
from harness.interfaces.mitigation import Mitigation
from harness.model import load
from harness.types import StageDataset

IGNORED_SETTINGS = (
    *("log_steps", "save_steps", "save_epochs", "save_limit", "skip_nonfinite", "halve_batches", "offload_shards"),
    "offload_activations",
)
"""Settings that may differ from those of the checkpoint: no weight depends on them."""


def checkpoint_fingerprint(
    data: StageDataset, model: nn.Module, mitigations: Mapping[str, Mitigation], *, seed: int, world_size: int
) -> dict[str, Any]:
    """Return what must be equal to resume from a checkpoint, in plain values: everything except the step.

    The model is represented by names and shapes of its weights, and by the files that it was loaded from if they are
    known. The rows are represented by their ids, lengths and order.

    Args:
        data: The stage's rows and their order.
        model: The model to train.
        mitigations: The mitigations by name.
        seed: The stage's seed.
        world_size: The number of processes.
    """
    weights = hashlib.sha256()
    for name, weight in model.named_parameters():
        weights.update(f"{name} {tuple(weight.shape)} {weight.requires_grad}\n".encode())
    return {
        "stage": data.stage.name,
        "settings": {key: value for key, value in data.stage.train.items() if key not in IGNORED_SETTINGS},
        "rows": _rows_digest(data),
        "seed": seed,
        "processes": world_size,
        "mitigations": sorted(mitigations),
        "weights": weights.hexdigest(),
        "model": load.source_digest(model),
    }


def _rows_digest(data: StageDataset) -> str:
    digest = hashlib.sha256()
    columns = [getattr(data.rows, name, None) for name in ("ids", "lengths", "loss_tokens")]
    if all(isinstance(column, np.ndarray) for column in columns):  # rows on disk have these without being read
        for column in columns:
            digest.update(np.ascontiguousarray(column).data)
    else:
        for row in data.rows:
            digest.update(f"{row.id} {len(row.input_ids)} {row.loss_tokens}\n".encode())
    order = PackedSequences.from_sequences(data.order)
    for column in (order.rows_per_sequence, order.row_indices):
        digest.update(np.ascontiguousarray(column, np.int64).data)
    return digest.hexdigest()

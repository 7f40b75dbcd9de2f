"""Disk cache of Fishers of models as they were loaded: the arms of a comparison measure the same one only once.

The key of an entry consists of the files that the model was loaded from, a sample of its current weights, the rows, and
the options of the measurement. A model of unknown origin is not cached. Entries are safetensors files in the cache's
folder `fisher`, as large as the Fisher in its dtype; they may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.model.load import source_digest
from harness.types import TokenizedExample
from harness.utils.atomic_write import atomic_write
from harness.utils.cache_dir import cache_root
from harness_mitigations.adapted_weights import TrainableWeights

FORMAT = 2
SAMPLED_VALUES_PER_WEIGHT = 64
"""Number of values of each weight in the key: they show whether training has changed it since it was loaded."""


def fisher_cache_key(
    model: nn.Module, trainable: TrainableWeights, rows: Sequence[TokenizedExample], options: Mapping[str, Any]
) -> str | None:
    """Return the key of a Fisher, a SHA-256 in hexadecimal; None for a model of unknown origin.

    Args:
        model: the model that is measured.
        trainable: the weights that it is measured for.
        rows: the rows that it is measured on.
        options: everything else that the result depends on, as JSON values.
    """
    origin = source_digest(model)
    if origin is None:
        return None
    device_type = next(model.parameters()).device.type
    autocast = torch.is_autocast_enabled(device_type)
    metadata = {
        "format": FORMAT,
        "torch": torch.__version__,
        "device": device_type,
        "computed": str(torch.get_autocast_dtype(device_type)) if autocast else "as stored",
        "model": origin,
        **options,
    }
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in (*trainable.weights, *trainable.lora_layers):
        digest.update(f"{name}\n".encode())
    for name, weight in model.named_parameters():
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        flat = weight.detach().flatten()
        digest.update(flat[:: max(1, flat.numel() // SAMPLED_VALUES_PER_WEIGHT)].float().cpu().numpy().tobytes())
    for row in rows:
        digest.update(json.dumps([row.input_ids, row.labels]).encode())
    return digest.hexdigest()


def load_fisher(cache_key: str, device: torch.device) -> tuple[dict[str, Tensor], dict[str, float]] | None:
    """Load an entry.

    Returns:
        The importances by name, and their stats; None when there is no such entry, or it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(_cache_file(cache_key)), framework="pt", device=str(device)) as entry:
            stats: dict[str, float] = json.loads(entry.metadata()["facts"])
            return {name: entry.get_tensor(name) for name in entry.keys()}, stats  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def save_fisher(cache_key: str, importances: Mapping[str, Tensor], stats: Mapping[str, float]) -> None:
    """Save an entry atomically. Warns when it cannot be written.

    Args:
        cache_key: see `fisher_cache_key`.
        importances: the Fisher by name of the weight.
        stats: see `importance_stats`.
    """
    from safetensors.torch import save_file

    file = _cache_file(cache_key)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.contiguous() for name, tensor in importances.items()}
        with atomic_write(file) as draft:
            save_file(tensors, draft, metadata={"facts": json.dumps(stats)})
    except Exception as error:  # safetensors raises its own for a full disk
        warnings.warn(f"the Fisher was measured but could not be saved to {file}: {error}")


def _cache_file(cache_key: str) -> Path:
    return cache_root() / "fisher" / f"{cache_key[:40]}.safetensors"

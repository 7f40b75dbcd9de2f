"""Checkpoints of a stage: what is in them, when one is whole, whether it belongs to what is trained now.

A checkpoint is a folder `checkpoint-<update>` with the weights as transformers or peft write them, the state of
optimizer, schedule, loss scale and random numbers, and of ours the mitigations' state, the log, and, written last, a
manifest: the checksum of every file and what the checkpoint is of. A folder without a manifest is one that was being
written when the run ended. Reading a checkpoint runs no code.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from harness.errors import RunError
from harness.interfaces.mitigation import Mitigation
from harness.model import frozen_lora, load, save
from harness.types import StageDataset
from harness.utils.json_depth import load_json

MITIGATION_STATES_FILE = "mitigations.pt"
LOG_FILE = "log.json"
MANIFEST_FILE = "checkpoint.json"

IGNORED_SETTINGS = ("log_steps", "save_steps", "save_limit")
"""Settings that may differ from those of the checkpoint: no weight depends on them."""

HINT_OLDER_CHECKPOINT = "go on from an earlier checkpoint, or train the stage anew"


# -- what a checkpoint is of ------------------------------------------------------------------------------------------


def checkpoint_fingerprint(
    data: StageDataset, model: nn.Module, mitigations: Mapping[str, Mitigation], *, seed: int, world_size: int
) -> dict[str, Any]:
    """What must be the same for a checkpoint to be gone on from: everything but the update, in plain values.

    The model counts by the names and shapes of its weights, and by the files that it was loaded from where they are
    known; the rows by their ids and lengths, and the order in which they are trained. seed: of the stage.
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
    found = hashlib.sha256()
    facts = [getattr(data.rows, name, None) for name in ("ids", "lengths", "loss_tokens")]
    if all(isinstance(fact, np.ndarray) for fact in facts):  # rows on disk know theirs without being read
        for fact in facts:
            found.update(np.ascontiguousarray(fact).tobytes())
    else:
        for row in data.rows:
            found.update(f"{row.id} {len(row.input_ids)} {row.loss_tokens}\n".encode())
    counts = np.fromiter((len(slot) for slot in data.order), np.int64, len(data.order))
    members = np.fromiter((index for slot in data.order for index in slot), np.int64, int(counts.sum()))
    found.update(counts.tobytes() + members.tobytes())
    return found.hexdigest()


# -- writing ----------------------------------------------------------------------------------------------------------


def save_mitigation_states(mitigations: Mapping[str, Mitigation], folder: Path) -> None:
    """Write what each mitigation must keep into `folder`; the file appears whole or not at all."""
    part = folder / f"{MITIGATION_STATES_FILE}.part"
    torch.save({name: mitigation.state_dict() for name, mitigation in mitigations.items()}, part)
    os.replace(part, folder / MITIGATION_STATES_FILE)


def save_log_state(state: Mapping[str, Any], folder: Path) -> None:
    """Write the log's state into `folder`. state: see `StepLog.state_dict`."""
    (folder / LOG_FILE).write_text(json.dumps(state), encoding="utf-8")


def finalize_checkpoint(folder: Path, metadata: Mapping[str, Any]) -> None:
    """Declare the checkpoint whole: write its manifest, with the checksum of every file. Reads each file once."""
    files = {str(file.relative_to(folder)): _sha256(file) for file in _files(folder)}
    part = folder / f"{MANIFEST_FILE}.part"
    part.write_text(json.dumps({**metadata, "files": files}, indent=2) + "\n", encoding="utf-8")
    os.replace(part, folder / MANIFEST_FILE)


def prune_checkpoints(folder: Path, max_checkpoints: int | None) -> None:
    """Delete all but the newest `max_checkpoints` whole checkpoints in `folder`, and older unfinished ones. None: keep
    all."""
    if max_checkpoints is None:
        return
    found = sorted(folder.glob("checkpoint-*"), key=_step_of_folder)
    whole = [one for one in found if (one / MANIFEST_FILE).exists()]
    for one in found[: found.index(whole[-max_checkpoints])] if len(whole) >= max_checkpoints else ():
        (one / MANIFEST_FILE).unlink(missing_ok=True)  # a folder that is half deleted is no checkpoint
        shutil.rmtree(one)


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in a stage's folder of checkpoints; None when there is none."""
    whole = [one for one in folder.glob("checkpoint-*") if (one / MANIFEST_FILE).exists()]
    return max(whole, key=_step_of_folder, default=None)


def checkpoint_step(folder: Path | None) -> int:
    """The update after which a checkpoint was written, by the name of its folder; 0 where there is none."""
    return 0 if folder is None else _step_of_folder(folder)


def _step_of_folder(folder: Path) -> int:
    number = folder.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


def _files(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != MANIFEST_FILE]


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# -- reading ----------------------------------------------------------------------------------------------------------


def verify_checkpoint(folder: Path, expected: Mapping[str, Any]) -> int:
    """The update after which the checkpoint was written. expected: the `checkpoint_fingerprint` of what is trained now.

    Raises RunError when the folder is no checkpoint, is not whole, is damaged, or is of something else.
    """
    where = str(folder)
    if not folder.is_dir():
        raise RunError(where, "there is no such folder", "name a folder checkpoint-<update> of the stage")
    try:
        manifest = load_json((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        files: dict[str, str] = manifest["files"]
        step = int(manifest["step"])
    except FileNotFoundError:
        raise RunError(
            where, f"it has no {MANIFEST_FILE}, so it was not written to the end", HINT_OLDER_CHECKPOINT
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            str(folder / MANIFEST_FILE), f"it cannot be read ({type(error).__name__})", HINT_OLDER_CHECKPOINT
        ) from error
    differs = [key for key in expected if manifest.get(key) != expected[key]]
    if differs:
        raise RunError(
            where, _describe_difference(differs[0], manifest, expected), "resume with the spec and data it is of"
        )
    for name, digest in files.items():
        file = folder / name
        if not file.is_file():
            raise RunError(where, f"its file {name} is missing", HINT_OLDER_CHECKPOINT)
        if _sha256(file) != digest:
            raise RunError(
                str(file), "it is not what was written: it is damaged, or was changed", HINT_OLDER_CHECKPOINT
            )
    return step


def _describe_difference(key: str, manifest: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    its, ours = manifest.get(key), expected[key]
    if key == "settings" and isinstance(its, dict):
        name = next(name for name in [*ours, *its] if its.get(name) != ours.get(name))
        return f"it was trained with train.{name} {json.dumps(its.get(name))}, not {json.dumps(ours.get(name))}"
    if key == "mitigations" and isinstance(its, list):
        there, named = (", ".join(names) or "none" for names in (its, ours))
        return f"it is of the mitigations {there}, the spec names {named}"
    if key in ("stage", "seed", "processes"):
        return f"it was trained with {key} {json.dumps(its)}, not {json.dumps(ours)}"
    what = {"rows": "other rows or another order", "weights": "a model of another shape", "model": "another base model"}
    return f"it is of {what[key]}"


def load_mitigation_states(mitigations: Mapping[str, Mitigation], folder: Path) -> None:
    """Give each mitigation back what `save_mitigation_states` wrote. Raises RunError when the file does not fit
    them."""
    path = folder / MITIGATION_STATES_FILE
    try:
        states: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        why = type(error).__name__
        raise RunError(str(path), f"it cannot be read ({why})", HINT_OLDER_CHECKPOINT) from error
    if states.keys() != mitigations.keys():
        there, named = (", ".join(sorted(names)) or "none" for names in (states, mitigations))
        raise RunError(
            str(path),
            f"it is of the mitigations {there}, the spec names {named}",
            "go on with the mitigations that the checkpoint was written with",
        )
    for name, mitigation in mitigations.items():
        mitigation.load_state_dict(states[name])


def load_log_state(folder: Path) -> dict[str, Any]:
    """What `save_log_state` wrote."""
    state: dict[str, Any] = load_json((folder / LOG_FILE).read_text(encoding="utf-8"))
    return state


def load_checkpoint_weights(model: nn.Module, folder: Path) -> None:
    """Put the checkpoint's weights into the model, in place: those of an adapter and what is kept beside it, or all.

    Raises RunError when they are not the model's.
    """
    if save.is_peft_model(model):
        from peft import load_peft_weights, set_peft_model_state_dict

        adapter = load_peft_weights(str(folder), device="cpu")
        found: Any = set_peft_model_state_dict(model, adapter)
        unexpected = found.unexpected_keys
        frozen_lora.restore_frozen_lora(model, folder)
    else:
        unexpected = _load_full_model(model, folder)
    if unexpected:
        raise RunError(str(folder), f"the model has no weight {unexpected[0]}", "resume with the model that it is of")


def _load_full_model(model: nn.Module, folder: Path) -> list[str]:
    from safetensors.torch import load_file

    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise RunError(str(folder), "it holds no weights", HINT_OLDER_CHECKPOINT)
    missing: set[str] | None = None
    unexpected: list[str] = []
    for file in files:  # one shard at a time in memory
        found = model.load_state_dict(load_file(file), strict=False)
        missing = set(found.missing_keys) if missing is None else missing & set(found.missing_keys)
        unexpected += found.unexpected_keys
    # Tied weights are written once, under one of their names; what still lacks must share memory with what does not.
    held = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    loaded = {held[name] for name in held if name not in (missing or ())}
    lacking = sorted(name for name in missing or () if held[name] not in loaded)
    if lacking:
        raise RunError(str(folder), f"it has no weight {lacking[0]}", "resume with the model that it is of")
    return unexpected

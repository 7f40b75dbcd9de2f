"""What a run keeps in its folder to be looked at, compared, and gone on with.

Knows names of files and how to write them whole. `spec.json` is the filled spec, `data.json` what it was trained on,
`environment.json` where; a stage's folder has `steps.jsonl`, `trained.json`, `checkpoints/` (with `train.save_steps`,
as many as `train.save_limit` says), and, until the run is finished, `end/`: the weights that moved and the mitigations'
state, so that a stage that was trained is never trained again.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from harness.errors import HarnessError, RunError
from harness.model import frozen_lora
from harness.utils.json_depth import load_json

LOCK_FILE = ".lock"


class RunFolder:
    """The folder of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, output: str | Path, name: str) -> RunFolder:
        """A folder `name` with the time and a few random characters, below `output`. Raises HarnessError."""
        stamp = f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        return cls.create_at(Path(output) / f"{name}-{stamp}")

    @classmethod
    def create_at(cls, path: Path) -> RunFolder:
        """A new folder at this path. Raises HarnessError when it is there already or cannot be made."""
        try:
            path.mkdir(parents=True)
        except OSError as error:
            what = f"the folder of the run cannot be made: {error.strerror or error}"
            hint = 'name a folder in "output" that can be written and has space'
            raise HarnessError(f"output: {path}", what, hint) from error
        return cls(path)

    def stage_folder(self, name: str) -> Path:
        """The folder of a stage."""
        return self.path / "stages" / name

    def write_json(self, name: str, value: Any) -> None:
        """Write a value as JSON, whole or not at all. What is no finite number becomes null."""
        from harness.utils.json_files import write_json

        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, value, indent=2)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A JSON object that the run wrote; None when it did not come to that. Raises HarnessError when damaged."""
        file = self.path / name
        if not file.is_file():
            return None
        try:
            found = load_json(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise HarnessError(str(file), f"cannot be read: {error}", "the run cannot be gone on with") from error
        if not isinstance(found, dict):
            raise HarnessError(str(file), "is no JSON object", "the run cannot be gone on with")
        return found

    def append_json_line(self, name: str, value: Mapping[str, Any]) -> None:
        """Add one line of JSON to a file; what is no finite number becomes null."""
        from harness.utils.json_files import json_safe

        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(json_safe(value), allow_nan=False) + "\n")

    def remove(self, name: str) -> None:
        """Remove a file or folder of the run, if it is there."""
        place = self.path / name
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process. Raises HarnessError when another one is at work in it."""
        from filelock import FileLock, Timeout

        lock = FileLock(self.path / LOCK_FILE)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise HarnessError(str(self.path), "another process is at work in this run", "wait for its end") from None
        except OSError as error:
            what = f"the run cannot be locked: {error.strerror or error}"
            raise HarnessError(str(self.path), what, "make its folder one that you may write to") from error
        try:  # what times out in here is none of this lock's
            yield
        finally:
            lock.release()


def save_stage_snapshot(folder: Path, model: Any, states: Mapping[str, Mapping[str, Any]]) -> None:
    """Keep the weights that can move, and the mitigations' states, so that a later stage can be gone on with.

    The folder appears whole or not at all. Raises RunError when it cannot be written.
    """
    import torch
    from safetensors.torch import save_file

    draft = folder.with_name(f".{folder.name}.draft-{os.getpid()}")
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        save_file(trainable_weights(model), draft / "weights.safetensors", metadata={"format": "pt"})
        beside = {
            f"{name}.{part}": one
            for name, pair in frozen_lora.frozen_lora(model).items()
            for part, one in zip("AB", pair, strict=True)
        }
        save_file({name: one.cpu().contiguous() for name, one in beside.items()}, draft / "kept.safetensors")
        torch.save(dict(states), draft / "mitigations.pt")
        shutil.rmtree(folder, ignore_errors=True)
        draft.replace(folder)
    except OSError as error:
        what = f"the end of the stage cannot be kept: {error.strerror or error}"
        raise RunError(str(folder), what, "free some space and go on: harness run --resume") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def load_stage_snapshot(folder: Path, model: Any) -> Mapping[str, Mapping[str, Any]]:
    """Give the model the weights that `save_stage_snapshot` kept, in place; returns the mitigations' states.

    Nothing is changed unless all of it fits. Raises RunError when the folder is damaged or of another model.
    """
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = load_file(folder / "weights.safetensors")
        beside = load_file(folder / "kept.safetensors")
        states: dict[str, Any] = torch.load(folder / "mitigations.pt", map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, SafetensorError, pickle.UnpicklingError) as error:
        what = f"it cannot be read ({type(error).__name__})"
        raise RunError(str(folder), what, "take this folder away, and the stage is trained again") from error
    there = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    if there.keys() != weights.keys() or any(there[name].shape != one.shape for name, one in weights.items()):
        raise RunError(
            str(folder), "its weights are those of another model", "go on with the spec that it was made with"
        )
    with torch.no_grad():
        for name, weight in there.items():
            weight.copy_(weights[name])
    names = sorted({name.rpartition(".")[0] for name in beside})
    if names or frozen_lora.frozen_lora(model):
        frozen_lora.add_frozen_lora(
            model, {name: (beside[f"{name}.A"], beside[f"{name}.B"]) for name in names}, replace=True
        )
    return states


def trainable_weights(model: Any) -> dict[str, Any]:
    """Copies, on the CPU, of the weights that can move, by name; tied ones once."""
    return {
        name: weight.detach().to("cpu", copy=True).contiguous()
        for name, weight in model.named_parameters()
        if weight.requires_grad
    }

"""The folder of a run: its files, its lock, and the snapshots of its stages.

spec.json            the spec with every default filled in
data.json            what the run trains on
environment.json     where it runs
scores.json, report.json, report.html, model/, predictions/
stages/<name>/
    steps.jsonl      a line for each logged step
    trained.json     totals of the stage
    checkpoints/     with `train.save_steps`; at most `train.save_limit` of them
    end/             snapshot: trainable weights and mitigation states. It makes retraining unnecessary, and is
                     deleted when the run is finished.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from harness.errors import HarnessError, RunError
from harness.model import frozen_lora
from harness.training.stage_logs import copy_stage_logs
from harness.utils.find_run import LOCK_FILE
from harness.utils.json_depth import load_json
from harness.utils.manifest import flush_to_disk, load_manifest, require_manifest_format, verify_files, write_manifest
from harness.utils.output_folders import remember_output
from harness.utils.write_errors import report_write_errors

_DRAFT_NAME = re.compile(r"\.(.+)\.(draft-|old-)?(?P<pid>\d+)")
"""Names of `atomic_write` and of folders before they are moved into place: a dot, the name, and the process."""

EXPORT_FOLDER = "export"
"""The folder of a run in which `harness export` creates folders."""

INVALID_ROWS_FOLDER = "rejected"
"""The folder of a run with the invalid rows of each source that allows some."""

SNAPSHOT_MANIFEST = "snapshot.json"
"""The checksums of a stage's snapshot."""


class RunFolder:
    """The folder of one run.

    Attributes:
        path: The path of the folder.
    """

    def __init__(self, path: Path) -> None:
        """Use the folder at this path; it need not exist yet."""
        self.path = path

    @classmethod
    def create(cls, output: str | Path, name: str) -> RunFolder:
        """Create a folder below `output`, named by `name`, the time and random characters. Raises HarnessError."""
        stamp = f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        folder = cls.create_at(Path(output) / f"{name}-{stamp}")
        remember_output(output)
        return folder

    @classmethod
    def create_at(cls, path: Path) -> RunFolder:
        """Create the folder at this path. Raises HarnessError if it exists or cannot be created."""
        try:
            path.mkdir(parents=True)
        except OSError as error:
            what = f"cannot create the run's folder: {error.strerror or error}"
            hint = 'set "output" to a folder that is writable and has free space'
            raise HarnessError(f"output: {path}", what, hint) from error
        return cls(path)

    def stage_folder(self, name: str) -> Path:
        """Return the folder of a stage."""
        return self.path / "stages" / name

    def write_json(self, name: str, value: Any, indent: int | None = 2) -> None:
        """Write a value as JSON, atomically. Numbers that are not finite become null."""
        from harness.utils.json_files import write_json

        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, value, indent=indent)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Return a JSON object that the run wrote; None if the file does not exist. Raises HarnessError if damaged."""
        file = self.path / name
        if not file.is_file():
            return None
        try:
            value = load_json(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise HarnessError(str(file), f"cannot be read: {error}", "restore the file, or start a new run") from error
        if not isinstance(value, dict):
            raise HarnessError(str(file), "is not a JSON object", "restore the file, or start a new run")
        return value

    def append_json_line(self, name: str, value: Mapping[str, Any]) -> None:
        """Append one line of JSON to a file. Numbers that are not finite become null."""
        from harness.utils.json_files import json_safe

        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(json_safe(value), allow_nan=False) + "\n")

    def remove(self, name: str) -> None:
        """Delete a file or folder of the run, if it exists."""
        path = self.path / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def _delete_drafts(self) -> None:
        """Delete what a process that was killed was writing; no other process writes while this one has the lock.

        An export does not lock the run: its draft stays as long as its process lives. Arms have locks of their own.
        """
        for path in self.path.rglob(".*"):
            match = _DRAFT_NAME.fullmatch(path.name)
            if match is None or path.is_relative_to(self.path / "arms"):
                continue
            if path.is_relative_to(self.path / EXPORT_FOLDER) and _is_other_process(int(match["pid"])):
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the run for this process. Raises HarnessError if another process holds the lock."""
        from filelock import FileLock, Timeout

        lock = FileLock(self.path / LOCK_FILE)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            what = "another process has locked this run"
            raise HarnessError(str(self.path), what, "wait until it ends, or stop it") from None
        except OSError as error:
            what = f"the run cannot be locked: {error.strerror or error}"
            raise HarnessError(str(self.path), what, "fix the permissions of the folder") from error
        try:  # outside the `except Timeout` above, which is for this lock alone
            self._delete_drafts()
            yield
        finally:
            lock.release()


def _is_other_process(pid: int) -> bool:
    """Return whether another process of this machine has this number."""
    return pid != os.getpid() and psutil.pid_exists(pid)


def save_stage_snapshot(
    folder: Path,
    model: Any,
    states: Mapping[str, Mapping[str, Any]],
    *,
    logs_of: Path | None = None,
    durable: bool = True,
) -> None:
    """Save the trainable weights and the mitigation states, atomically.

    Args:
        folder: The folder of the snapshot; it is replaced.
        model: The model.
        states: The state of each mitigation, by name.
        durable: Whether a later process may read the snapshot: it then gets checksums and is flushed to the disk.
        logs_of: The folder of the stage whose logs are copied into the snapshot; None: no logs.

    Raises:
        RunError: If the snapshot cannot be written.
    """
    import torch
    from safetensors.torch import save_file

    draft = folder.with_name(f".{folder.name}.draft-{os.getpid()}")
    with report_write_errors(folder, "the snapshot of the stage"), contextlib.ExitStack() as cleanup:
        cleanup.callback(shutil.rmtree, draft, ignore_errors=True)
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        save_file(trainable_weights(model), draft / "weights.safetensors", metadata={"format": "pt"})
        frozen = {
            f"{name}.{factor_name}": factor
            for name, factors in frozen_lora.frozen_lora(model).items()
            for factor_name, factor in zip("AB", factors, strict=True)
        }
        save_file({name: factor.cpu().contiguous() for name, factor in frozen.items()}, draft / "kept.safetensors")
        torch.save(dict(states), draft / "mitigations.pt")
        if logs_of is not None:
            copy_stage_logs(logs_of, draft)
        if durable:
            write_manifest(draft, SNAPSHOT_MANIFEST, {})
        shutil.rmtree(folder, ignore_errors=True)
        draft.replace(folder)
        if durable:
            flush_to_disk(folder.parent)


def load_stage_snapshot(folder: Path, model: Any, *, durable: bool = True) -> Mapping[str, Mapping[str, Any]]:
    """Load the weights of a snapshot into the model, in place. Nothing is changed unless all of them fit.

    Args:
        folder: The folder of the snapshot.
        model: The model.
        durable: As for `save_stage_snapshot`; checksums are verified.

    Returns:
        The state of each mitigation, by name.

    Raises:
        RunError: If the snapshot is damaged or belongs to another model.
    """
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    hint = "delete this folder to train the stage again"
    if durable:
        manifest = load_manifest(folder, SNAPSHOT_MANIFEST, hint)
        require_manifest_format(folder, manifest)
        verify_files(folder, manifest, hint)
    try:
        saved_weights = load_file(folder / "weights.safetensors")
        frozen = load_file(folder / "kept.safetensors")
        states: dict[str, Any] = torch.load(folder / "mitigations.pt", map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, SafetensorError, pickle.UnpicklingError) as error:
        what = f"the snapshot cannot be read ({type(error).__name__})"
        raise RunError(str(folder), what, hint) from error
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    if weights.keys() != saved_weights.keys() or any(
        weights[name].shape != saved.shape for name, saved in saved_weights.items()
    ):
        what = "the snapshot holds the weights of another model"
        raise RunError(str(folder), what, "resume with the spec that the run was started with")
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(saved_weights[name])
    layer_names = sorted({name.rpartition(".")[0] for name in frozen})
    if layer_names or frozen_lora.frozen_lora(model):
        factors = {name: (frozen[f"{name}.A"], frozen[f"{name}.B"]) for name in layer_names}
        frozen_lora.add_frozen_lora(model, factors, replace=True)
    return states


def trainable_weights(model: Any) -> dict[str, Any]:
    """Return copies of the trainable weights on the CPU, by name; tied weights once."""
    return {
        name: weight.detach().to("cpu", copy=True).contiguous()
        for name, weight in model.named_parameters()
        if weight.requires_grad
    }

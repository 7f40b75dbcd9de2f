"""All decisions of `harness run --resume`: what is refused, reused, discarded or still missing.

| question | function |
|---|---|
| Is the run finished? | `is_finished` |
| What does a finished run still lack? | `complete_result_files`, `needs_tracking_end` |
| Was the arm or run started before? | `is_started` |
| Are the plugins still the same? | `changed_plugins`, `require_same_plugins` |
| Do processes, model, data and template still match? | `require_same_world_size`, `require_same_inputs` |
| Which MLflow run is continued? | `tracking_info` |
| Is a stage finished, and with what result? | `finished_stage_totals` |
| Are the steps of a reused stage emitted again? | `emits_stored_steps` |
| From which checkpoint does a stage continue? | `checkpoint_to_resume` |
| Which logged steps and evaluations remain? | `restore_logs`, `discard_steps_after`, `load_evaluations_until` |
| Which best weights are discarded? | `discard_best_weights_after`, `best_weights_to_keep` |
| Are the stored scores newer than the current ones? | `last_scored_stage`, `has_newer_scores` |

Stored answers are reused by their content, with and without `--resume`: see `harness.evaluation.predictions`.
Everything here reads or trims files of the run folder; nothing loads a model.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.plugin_versions import describe_plugins
from harness.registry import Registry
from harness.runner.folder import RunFolder
from harness.training.checkpoint import checkpoint_step, latest_intact_checkpoint
from harness.training.stage_logs import copy_stage_logs
from harness.utils.atomic_write import atomic_write
from harness.utils.json_depth import load_json
from harness.utils.shell_commands import harness_command, resume_command

# -- the run ----------------------------------------------------------------------------------------------------------


def require_training_run(path: Path) -> None:
    """Raise HarnessError if the folder holds the evaluation of a model that was tuned elsewhere."""
    if (path / "tuned.json").is_file():
        what = "it is the evaluation of a tuned model, which trains nothing and cannot be resumed"
        raise HarnessError(
            str(path), what, f"evaluate again: {harness_command('evaluate', path / 'spec.json', '--tuned')} PATH"
        )


def is_finished(run_folder: Path) -> bool:
    """Return whether a run has its report; such a run is not trained further."""
    return (run_folder / "report.json").is_file()


def is_started(run_folder: Path) -> bool:
    """Return whether a run was started in this folder."""
    return (run_folder / "spec.json").is_file()


def tracking_info(folder: RunFolder, *, resuming: bool = True) -> dict[str, Any] | None:
    """Return what `mlflow.json` holds, if the MLflow run is to be continued; None to start a new one."""
    return folder.read_json("mlflow.json") if resuming else None


def require_same_world_size(folder: RunFolder, world_size: int) -> None:
    """Require as many processes as the run was started with: each contributes a batch to every step.

    They may be on another number of nodes.

    Raises:
        HarnessError: If the number differs; the hint is the command to type.
    """
    environment = folder.read_json("environment.json") or {"processes": world_size}
    started_with, nodes = environment.get("processes", 1), environment.get("nodes", 1)
    if started_with != world_size:
        what = f"the run was started with {started_with} process(es), not {world_size}"
        raise HarnessError(
            str(folder.path), what, f"resume it with: {resume_command(folder.path, started_with, nodes)}"
        )


def changed_plugins(folder: RunFolder, registry: Registry) -> list[str]:
    """Return what changed in the plugins that a run or experiment uses since it was started, one line a plugin.

    Args:
        folder: The folder of the run or experiment.
        registry: The plugins that are installed now.
    """
    files = [folder.path / "environment.json", *sorted(folder.path.glob("arms/*/environment.json"))]
    stored = [RunFolder(file.parent).read_json(file.name) or {} for file in files if file.is_file()]
    before = {name: about for environment in stored for name, about in environment.get("plugins", {}).items()}
    now = describe_plugins(registry)
    changes = []
    for name, about in sorted(before.items()):
        if name not in now:
            changes.append(f"the plugin {name} was removed")
        elif about["version"] != now[name]["version"]:
            changes.append(f"the plugin {name} changed from {about['version']} to {now[name]['version']}")
        elif about["digest"] != now[name]["digest"]:
            changes.append(f"the code of the plugin {name} {about['version']} changed")
    return changes


def require_same_plugins(folder: RunFolder, registry: Registry) -> None:
    """Require the plugins that the run was started with.

    Raises:
        HarnessError: One of them changed.
    """
    changes = changed_plugins(folder, registry)
    if changes:
        hint = f"install what the run was started with, or: {resume_command(folder.path)} --allow-plugin-change"
        raise HarnessError(str(folder.path), f"{'; '.join(changes)} since the run was started", hint)


def require_same_inputs(folder: RunFolder, data: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
    """Require the base model, rows and template that the run was started with.

    Args:
        folder: The folder of the run.
        data: What `data.json` would hold now.
        environment: What `environment.json` would hold now.

    Raises:
        HarnessError: If one of them changed.
    """
    stored_data = folder.read_json("data.json") or {}
    stored_model = (folder.read_json("environment.json") or {}).get("model") or {}
    hint = "restore what the run was started with, or start a new run"
    if stored_model.get("digest") not in (None, environment["model"]["digest"]):
        raise HarnessError(str(folder.path), "the base model changed since the run was started", hint)
    for key, what in (("digests", "rows of its sources"), ("template", "output of its template")):
        if stored_data.get(key) not in (None, data[key]):
            raise HarnessError(str(folder.path), f"the {what} changed since the run was started", hint)


# -- a stage ----------------------------------------------------------------------------------------------------------


def finished_stage_totals(folder: RunFolder, stage: str) -> dict[str, Any] | None:
    """Return the totals of a stage that is trained and has its snapshot; None if it is still to be trained.

    The snapshot comes from this run or, in an experiment, from an arm with the same first stages.
    """
    if not (folder.stage_folder(stage) / "end").is_dir():
        return None
    return folder.read_json(f"stages/{stage}/trained.json")


def emits_stored_steps(totals: Mapping[str, Any] | None, *, resuming: bool) -> bool:
    """Return whether the steps of a finished stage are emitted: another arm trained it, so no listener saw them."""
    return totals is not None and not resuming


def checkpoint_to_resume(stage_folder: Path, *, resuming: bool, warn: Callable[[str], None]) -> Path | None:
    """Return the newest intact checkpoint of a stage; None to train it from its first step.

    Args:
        stage_folder: The folder of the stage.
        resuming: Whether the run is resumed.
        warn: Called with one line if a newer checkpoint is damaged.
    """
    if not resuming:
        return None
    damages: list[str] = []
    checkpoint = latest_intact_checkpoint(stage_folder / "checkpoints", damages.append)
    start = "its first step" if checkpoint is None else f"step {checkpoint_step(checkpoint)}"
    for damage in damages:
        warn(f"{damage}; the stage is resumed from {start}")
    return checkpoint


def restore_logs(stage_folder: Path, saved_in: Path | None) -> None:
    """Replace the logs of a stage by the copies in a checkpoint or snapshot; without copies they stay."""
    if saved_in is not None:
        copy_stage_logs(saved_in, stage_folder)


def discard_steps_after(stage_folder: Path, checkpoint: Path | None) -> None:
    """Remove the steps after the checkpoint from `steps.jsonl`: they are trained again."""
    _keep_lines_until(stage_folder / "steps.jsonl", checkpoint_step(checkpoint))


def load_evaluations_until(stage_folder: Path, step: int) -> list[dict[str, Any]]:
    """Remove the evaluations after a step, and return the remaining lines of `evaluations.jsonl`.

    Each evaluation is a line of that file, and `evaluations/<step>.json` has the scores of its items.
    """
    for file in (stage_folder / "evaluations").glob("*.json"):
        if not file.stem.isdecimal() or int(file.stem) > step:
            file.unlink()
    return _keep_lines_until(stage_folder / "evaluations.jsonl", step)


def discard_best_weights_after(best_folder: Path, step: int) -> None:
    """Delete the best weights of later steps, and drafts of them: these steps are trained again."""
    for path in best_folder.glob("*"):
        if not path.name.isdecimal() or int(path.name) > step:
            shutil.rmtree(path)


def best_weights_to_keep(saved_steps: Iterable[int], best_step: int, checkpoints: Iterable[Path]) -> set[int]:
    """Return the steps whose weights are needed: the best ones, now and when resumed from any checkpoint."""
    saved_steps = set(saved_steps)
    needed = {best_step}
    for checkpoint in checkpoints:
        until_checkpoint = [step for step in saved_steps if step <= checkpoint_step(checkpoint)]
        needed.add(max(until_checkpoint, default=best_step))
    return needed


def _keep_lines_until(file: Path, step: int) -> list[dict[str, Any]]:
    """Rewrite a JSONL file with its complete lines up to a step, and return them."""
    if not file.is_file():
        return []
    # A process that is killed may leave half a line at the end. A line that cannot be read has no step.
    kept = []
    for line in file.read_bytes().split(b"\n")[:-1]:
        try:
            entry = load_json(line)
            if entry["step"] <= step:
                kept.append((line, entry))
        except (ValueError, KeyError, TypeError):
            continue
    with atomic_write(file) as draft:
        draft.write_bytes(b"".join(line + b"\n" for line, _ in kept))
    return [entry for _, entry in kept]


# -- the scores -------------------------------------------------------------------------------------------------------


def last_scored_stage(folder: RunFolder) -> int:
    """Return the index of the last stage in `scores.json`; -1 without scores."""
    return len((folder.read_json("scores.json") or {}).get("stages", ())) - 1


def has_newer_scores(stage_index: int, last_scored: int, carried_stages: int) -> bool:
    """Return whether `scores.json` holds later stages, which must not be lost if the run is interrupted again.

    Args:
        stage_index: The stage that was evaluated.
        last_scored: Result of `last_scored_stage` when the run was resumed.
        carried_stages: Stages of earlier runs that come first in `scores.json`.
    """
    return stage_index < last_scored - carried_stages


# -- after the report -------------------------------------------------------------------------------------------------


def complete_result_files(run_folder: Path, *, is_arm: bool, write_page: Callable[[], None]) -> list[str]:
    """Complete the files of a finished run, and return what was missing.

    Args:
        run_folder: The folder of the run.
        is_arm: Whether the run is an arm: then the experiment deletes the snapshots of its stages.
        write_page: Writes report.html; it may fail with a warning.

    Returns:
        `page` if report.html was written, `disk` for each stage snapshot that was deleted.
    """
    completed = []
    page = run_folder / "report.html"
    if not page.is_file():
        write_page()
        if page.is_file():
            completed.append("page")
    for snapshot in run_folder.glob("stages/*/end") if not is_arm else ():
        shutil.rmtree(snapshot)
        completed.append("disk")
    return completed


def needs_tracking_end(status: str | None, *, violates_limits: bool) -> bool:
    """Return whether the MLflow run of a finished run is to be ended.

    Args:
        status: Status of the MLflow run; None if there is none.
        violates_limits: Whether a suite violates its limits: then `FAILED` is the right status.
    """
    return status not in (None, "FINISHED") and not (violates_limits and status == "FAILED")

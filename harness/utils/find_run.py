"""Find runs by name or folder. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

from harness.errors import HarnessError
from harness.utils.formatting import join_names

LOCK_FILE = ".lock"
"""The file in a run's folder that a running process locks."""

RUN_SCHEME = "run:"
"""Prefix of a run's name or folder where a spec names a run instead of a model."""


def find_run(run: str | Path, output: str | Path = "runs") -> Path:
    """Return the folder of a run.

    Args:
        run: The run's folder, or its folder's name in `output`.
        output: The folder that holds the runs.

    Raises:
        HarnessError: There is no such run.
    """
    if not str(run).strip():
        raise HarnessError("run", "no run is named", "give the name of its folder, or its path")
    for folder in (Path(run), Path(output) / run):
        if _holds_spec(folder):
            return folder
    known = sorted(file.parent.name for file in Path(output).glob("*/spec.json")) if Path(output).is_dir() else []
    hint = f"the latest in {output} are {join_names(known[-3:])}" if known else f"there is none in {output}"
    raise HarnessError(f"run {run}", "there is no such run", hint)


def _holds_spec(folder: Path) -> bool:
    try:
        return (folder / "spec.json").is_file()
    except OSError:  # not a name that a file can have
        return False


def find_finished_run(run: str | Path, output: str | Path = "runs", *, where: str = "") -> Path:
    """Return the folder of a run that has a report.

    Args:
        run: The run's folder, or its folder's name in `output`.
        output: The folder that holds the runs.
        where: The location that errors name; "": the run itself.

    Raises:
        HarnessError: There is no such run, it is an experiment (which has one result per arm), or it did not finish.
    """
    try:
        folder = find_run(run, output)
    except HarnessError as error:
        if not where:
            raise
        is_named = bool(str(run).strip())
        raise HarnessError(where, f"there is no run '{run}'" if is_named else error.what, error.hint) from error
    error_location = where or f"run {run}"
    if (folder / "arms").is_dir():
        arms = sorted(arm.name for arm in (folder / "arms").iterdir() if (arm / "report.json").is_file())
        hint = (
            f"name the folder of one of its arms: {join_names(arms)}" if arms else "none of its arms has a result yet"
        )
        raise HarnessError(error_location, f"'{folder}' is an experiment of several runs", hint)
    if not (folder / "report.json").is_file():
        what = f"the run '{folder}' has no result: it did not finish"
        raise HarnessError(error_location, what, f"resume it: harness run --resume {folder}")
    return folder

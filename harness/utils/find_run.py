"""Find runs by name or folder. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

from harness.errors import HarnessError
from harness.utils.formatting import join_names
from harness.utils.output_folders import known_outputs
from harness.utils.shell_commands import resume_command

LOCK_FILE = ".lock"
"""The file in a run's folder that a running process locks."""

ERROR_FILE = "error.txt"
"""The file in the folder of a run or experiment that failed: the error in its first line, then the traceback."""

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
    known = sorted(Path(output).glob("*/spec.json"), key=_start_time, reverse=True) if Path(output).is_dir() else []
    names = [file.parent.name for file in known[:3]]
    hint = f"the latest in {output} are {join_names(names)}" if names else f"there is none in {output}"
    raise HarnessError(f"run {run}", "there is no such run", hint)


def find_run_anywhere(run: str | Path) -> Path:
    """Return the folder of a run, which may be below any known output folder; see `output_folders`.

    Raises:
        HarnessError: There is no such run.
    """
    if str(run).strip():
        for output in known_outputs():
            for folder in (Path(run), output / run):
                if _holds_spec(folder):
                    return folder
    return find_run(run)


def _start_time(spec: Path) -> tuple[float, str]:
    try:
        return spec.stat().st_mtime, spec.parent.name
    except OSError:  # deleted meanwhile
        return 0.0, ""


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
        raise HarnessError(error_location, what, f"resume it: {resume_command(folder)}")
    return folder

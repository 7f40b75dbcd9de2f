"""Find runs by name or folder. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.errors import HarnessError
from harness.utils.formatting import join_names
from harness.utils.output_folders import DEFAULT_OUTPUT, known_outputs
from harness.utils.shell_commands import harness_command, resume_command

LOCK_FILE = ".lock"
"""The file in a run's folder that a running process locks."""

ERROR_FILE = "error.txt"
"""The file in the folder of a run or experiment that failed: the error in its first line, then the traceback."""

MAX_CANDIDATES = 10
"""Runs that the error of an ambiguous name lists."""

RUN_SCHEME = "run:"
"""Prefix of a run's name or folder where a spec names a run instead of a model."""


class AmbiguousRun(HarnessError):
    """Several runs have a name that begins as the given one."""


def find_run(run: str | Path, output: str | Path = "runs") -> Path:
    """Return the folder of a run.

    Args:
        run: The run's folder, or a name as `match_run_names` accepts it.
        output: The folder that holds the runs.

    Raises:
        HarnessError: There is no such run.
        AmbiguousRun: The name is the beginning of several.
    """
    return _find_run_in(run, [Path(output)])


def find_run_anywhere(run: str | Path) -> Path:
    """Return the folder of a run, which may be below any known output folder; see `output_folders`.

    Raises:
        HarnessError: There is no such run.
        AmbiguousRun: The name is the beginning of several.
    """
    return _find_run_in(run, known_outputs() or [Path(DEFAULT_OUTPUT)])


def match_run_names(run: str | Path, output: str | Path) -> list[Path]:
    """Return the folders in `output` whose names begin with the given name, sorted; empty for a path elsewhere.

    Args:
        run: The beginning of a run's name, as `harness runs` prints it; `NAME/ARM` or `NAME/arms/ARM` for an arm of an
            experiment. A complete name matches itself alone.
        output: The folder that holds the runs.
    """
    parts = [part for part in str(run).split("/") if part != "arms"]
    if not 1 <= len(parts) <= 2 or any(part.strip(".") == "" for part in parts):
        return []
    folders = _folders_named(Path(output), parts[0])
    if len(parts) == 2:
        return [arm for folder in folders for arm in _folders_named(folder / "arms", parts[1])]
    return folders


def _find_run_in(run: str | Path, outputs: Sequence[Path]) -> Path:
    if not str(run).strip():
        raise HarnessError("run", "no run is named", "give the name of its folder, or its path")
    for folder in (Path(run), *(output / run for output in outputs)):
        if _holds_spec(folder):
            return folder
    matches = {folder.resolve(): folder for output in outputs for folder in match_run_names(run, output)}
    if len(matches) == 1:
        return next(iter(matches.values()))
    if matches:
        newest = sorted(matches.values(), key=lambda folder: _start_time(folder / "spec.json"), reverse=True)
        names = ", ".join(str(folder) for folder in newest[:MAX_CANDIDATES])
        more = f" and {len(newest) - MAX_CANDIDATES} more" if len(newest) > MAX_CANDIDATES else ""
        what = f"{len(newest)} runs have a name that begins with '{run}'"
        raise AmbiguousRun(f"run {run}", what, f"name one of them: {names}{more}")
    output = outputs[0]
    known = sorted(output.glob("*/spec.json"), key=_start_time, reverse=True) if output.is_dir() else []
    names_of_latest = [file.parent.name for file in known[:3]]
    hint = f"the latest in {output} are {join_names(names_of_latest)}" if known else f"there is none in {output}"
    raise HarnessError(f"run {run}", "there is no such run", hint)


def _folders_named(parent: Path, name: str) -> list[Path]:
    """Return the folders of runs whose names begin with `name`, or the only one with exactly this name."""
    if _holds_spec(parent / name):
        return [parent / name]
    try:
        return sorted(folder for folder in parent.iterdir() if folder.name.startswith(name) and _holds_spec(folder))
    except OSError:  # there is no such folder
        return []


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
        run: The run's folder, or a name as `match_run_names` accepts it.
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
        is_named = bool(str(run).strip()) and not isinstance(error, AmbiguousRun)
        raise HarnessError(where, f"there is no run '{run}'" if is_named else error.what, error.hint) from error
    error_location = where or f"run {run}"
    if (folder / "arms").is_dir():
        arms = sorted(arm.name for arm in (folder / "arms").iterdir() if (arm / "report.json").is_file())
        hint = (
            f"name the folder of one of its arms: {join_names(arms)}" if arms else "none of its arms has a result yet"
        )
        raise HarnessError(error_location, f"'{folder}' is an experiment of several runs", hint)
    if not (folder / "report.json").is_file():
        if is_running(folder):
            hint = f"wait until it ends; its state: {harness_command('runs', folder.parent)}"
            raise HarnessError(error_location, f"the run '{folder}' has no result yet: it is running", hint)
        what = f"the run '{folder}' has no result: it did not finish"
        raise HarnessError(error_location, what, f"resume it: {resume_command(folder)}")
    return folder


def is_running(folder: Path) -> bool:
    """Return whether a process of this machine holds the lock of a run."""
    try:
        import fcntl

        with (folder / LOCK_FILE).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (OSError, ImportError):  # no lock file, or a system without such locks
        return False
    return False

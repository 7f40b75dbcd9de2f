"""Where finished and broken-off runs are found by name. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

from harness.errors import HarnessError

RUN_SCHEME = "run:"
"""Before a run's name or folder where a spec names a run in the place of a model."""


def find_run(run: str | Path, output: str | Path = "runs") -> Path:
    """The folder of a run, named by its path or by its folder's name below `output`. Raises HarnessError."""
    if not str(run).strip():
        raise HarnessError("run", "no run is named", "give the name of its folder, or its path")
    for place in (Path(run), Path(output) / run):
        if _holds_spec(place):
            return place
    known = sorted(one.parent.name for one in Path(output).glob("*/spec.json")) if Path(output).is_dir() else []
    there = f"the latest in {output} are {', '.join(known[-3:])}" if known else f"there is none in {output}"
    raise HarnessError(f"run {run}", "there is no such run", there)


def _holds_spec(folder: Path) -> bool:
    try:
        return (folder / "spec.json").is_file()
    except OSError:  # no name that a file could have
        return False


def find_finished_run(run: str | Path, output: str | Path = "runs", *, where: str = "") -> Path:
    """The folder of a run that came to its report. where: the place that errors name; "": the run itself.

    Raises HarnessError for a run that there is not, for an experiment, which has one result an arm, and for a run that
    did not come to its end.
    """
    try:
        place = find_run(run, output)
    except HarnessError as error:
        if not where:
            raise
        named = str(run).strip()
        raise HarnessError(where, f"there is no run '{run}'" if named else error.what, error.hint) from error
    at = where or f"run {run}"
    if (place / "arms").is_dir():
        arms = sorted(one.name for one in (place / "arms").iterdir() if (one / "report.json").is_file())
        hint = f"name the folder of one of its arms: {', '.join(arms)}" if arms else "none of its arms has a result yet"
        raise HarnessError(at, f"'{place}' is an experiment of several runs", hint)
    if not (place / "report.json").is_file():
        what = f"the run '{place}' has no result: it did not come to its end"
        raise HarnessError(at, what, f"go on with it: harness run --resume {place}")
    return place

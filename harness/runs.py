"""Where finished and broken-off runs are found by name. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

from harness.errors import HarnessError

SCHEME = "run:"
"""Before a run's name or folder where a spec names a run in the place of a model."""


def find_run(run: str | Path, output: str | Path = "runs") -> Path:
    """The folder of a run, named by its path or by its folder's name below `output`. Raises HarnessError."""
    for place in (Path(run), Path(output) / run):
        if (place / "spec.json").is_file():
            return place
    known = sorted(one.parent.name for one in Path(output).glob("*/spec.json")) if Path(output).is_dir() else []
    there = f"the latest in {output} are {', '.join(known[-3:])}" if known else f"there is none in {output}"
    raise HarnessError(f"run {run}", "there is no such run", there)

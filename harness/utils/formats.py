"""The formats of what harness writes, and the refusal of one that this version does not read.

A format changes when an older reader would misread it. Format 1 is that of harness 0.2.0, without a number
in its files.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.utils.json_depth import load_json

SPEC_FORMAT = 2
RUN_FORMAT = 2
MANIFEST_FORMAT = 2
"""Of checkpoints and of snapshots of stages."""

LAST_VERSION = {1: "0.2.0"}
"""Older format -> the last version of harness that reads it."""


def format_problem(found: Any, current: int, written_by: str | None = None) -> tuple[str, str] | None:
    """Return what is wrong with a format, and the remedy; None if this version reads it.

    Args:
        found: The number in the file; None: format 1.
        current: The format that this version reads.
        written_by: The version of harness that wrote it, if it is known.
    """
    number = 1 if found is None else found
    if number == current:
        return None
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        return f"{str(number)[:40]!r} is not the number of a format", f"this harness reads format {current}"
    what = f"it has format {number}, and this harness reads format {current}"
    if number > current:
        needed = f"'harness-sft=={written_by}'" if written_by else "--upgrade harness-sft"
        return what, f"pip install {needed}"
    return what, f"pip install 'harness-sft=={written_by or LAST_VERSION.get(number, LAST_VERSION[1])}'"


def installed_harness() -> str | None:
    """Return the version of harness; None if it is not installed."""
    try:
        return version("harness-sft")
    except PackageNotFoundError:
        return None


def require_run_format(folder: Path) -> None:
    """Require that a run's folder, if its environment is known, has the format that this version resumes.

    Raises:
        HarnessError: It has another one; the hint is the version that reads it.
    """
    try:
        environment = load_json((folder / "environment.json").read_text(encoding="utf-8"))
        found, written_by = environment.get("format"), environment.get("harness")
    except (OSError, ValueError, AttributeError):
        return  # interrupted before it was written, or damaged, which is reported by its reader
    problem = format_problem(found, RUN_FORMAT, written_by if isinstance(written_by, str) else None)
    if problem is not None:
        raise HarnessError(str(folder), problem[0], f"{problem[1]} to resume it, or start a new run")

"""List the runs of an output folder from their files: date, status, headline, and the command that resumes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from harness.errors import HarnessError
from harness.spec.arms import expand_arms
from harness.utils.find_run import ERROR_FILE, is_running
from harness.utils.json_depth import load_json
from harness.utils.shell_commands import resume_command

RunStatus = Literal["running", "finished", "interrupted", "failed"]

_STAMP = re.compile(r"-(\d{8}-\d{6})-[0-9a-f]{4}$")


@dataclass(frozen=True)
class ListedRun:
    """One run or experiment.

    Attributes:
        name: Name of its folder.
        folder: Its folder.
        kind: `run`, `experiment` (of arms) or `evaluation` (of a model without training).
        started: When it was started, in ISO format, in local time.
        status: `running` if a process of this machine holds its lock.
        headline: The error if it failed, else the verdict of a run or the recommendation of an experiment; "" if there
            is none yet.
        progress: The arms that have a result, e.g. `2 of 3 arms`; "" for a run.
        resume: The command that resumes it; "" if it is running or an evaluation, or its results are complete.
    """

    name: str
    folder: str
    kind: Literal["run", "experiment", "evaluation"]
    started: str
    status: RunStatus
    headline: str
    progress: str
    resume: str


def list_runs(output: str | Path) -> tuple[ListedRun, ...]:
    """List the runs of an output folder, the newest first.

    Raises:
        HarnessError: There is no such folder.
    """
    if not Path(output).is_dir():
        hint = "name the folder in which the runs are: harness runs FOLDER"
        raise HarnessError(str(output), "there is no such folder", hint)
    runs = [_describe_run(file.parent) for file in Path(output).glob("*/spec.json")]
    return tuple(sorted(runs, key=lambda run: (run.started, run.name), reverse=True))


def _describe_run(folder: Path) -> ListedRun:
    spec = _load_or_empty(folder / "spec.json")
    arms = spec.get("arms")
    kind: Literal["run", "experiment", "evaluation"] = "run"
    headline = progress = ""
    if isinstance(arms, dict):
        kind = "experiment"
        names = _arm_names(arms, folder)
        count = sum((folder / "arms" / name / "report.json").is_file() for name in names)
        is_finished = count == len(names) and (folder / "arms.json").is_file()
        headline = str(_load_or_empty(folder / "arms.json").get("advice", ""))
        progress = f"{count:,} of {len(names):,} arms"
    elif (folder / "measured.json").is_file():
        kind, is_finished = "evaluation", True
    else:
        kind = "evaluation" if (folder / "tuned.json").is_file() else "run"  # of a model tuned elsewhere
        is_finished = (folder / "report.json").is_file()
        verdict = _load_or_empty(folder / "report.json").get("verdict")
        headline = str(verdict.get("headline", "")) if isinstance(verdict, Mapping) else ""
    error = _first_line(folder / ERROR_FILE)
    status: RunStatus = "failed" if error else "finished" if is_finished else "interrupted"
    if is_running(folder):
        status = "running"
    return ListedRun(
        name=folder.name,
        folder=str(folder),
        kind=kind,
        started=_start_time(folder).isoformat(sep=" ", timespec="seconds"),
        status=status,
        headline=error or headline,
        progress=progress,
        resume="" if is_finished or status == "running" or kind == "evaluation" else resume_command(folder),
    )


def _arm_names(arms: Mapping[str, Any], folder: Path) -> list[str]:
    try:
        return [arm.name for arm in expand_arms(arms, "arms")]
    except (HarnessError, KeyError, TypeError, AttributeError):  # written by another version
        return [arm.name for arm in (folder / "arms").glob("*") if arm.is_dir()]


def _start_time(folder: Path) -> datetime:
    """Return the time in the folder's name; of a folder that was renamed, the time of its spec."""
    match = _STAMP.search(folder.name)
    if match:
        try:
            return datetime.strptime(match[1], "%Y%m%d-%H%M%S")
        except ValueError:
            pass
    return datetime.fromtimestamp((folder / "spec.json").stat().st_mtime)


def _first_line(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").partition("\n")[0]
    except (OSError, ValueError):
        return ""


def _load_or_empty(file: Path) -> dict[str, Any]:
    try:
        document = load_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}

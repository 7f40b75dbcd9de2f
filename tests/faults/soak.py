"""Many runs at once into one output folder and one SQLite store: all must finish equally and leave nothing behind."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

from faults import command
from faults.results import Section, differences, snapshot

SPEC = "plain"
AT_ONCE = 4


def soak(bench: Path, work: Path, section: Section, count: int) -> None:
    """Run a spec `count` times, `AT_ONCE` at a time.

    Args:
        bench: The workbench.
        work: A folder for the runs.
        section: Receives the outcomes.
        count: Number of runs.
    """
    output, store = work / "soak" / "runs", work / "soak" / "mlflow.db"
    if not output.exists():
        shutil.rmtree(work / "soak", ignore_errors=True)
        output.mkdir(parents=True)
    arguments = [
        *("run", bench / f"{SPEC}.json", "--set", f"output={output}"),
        *("--set", f"track.mlflow.uri=sqlite:///{store}", "--set", "train.steps=2"),
    ]

    active: dict[int, Path] = {}
    started = 0
    while started < count or active:
        while started < count and len(active) < AT_ONCE:
            folder = work / "soak" / f"desk-{started % (2 * AT_ONCE)}-{started}"
            folder.mkdir(parents=True, exist_ok=True)
            active[command.start(arguments, folder)] = folder
            started += 1
        process = next(iter(active))
        folder = active.pop(process)
        outcome = command.wait(process, folder)
        if outcome.code != 0 or outcome.has_traceback:
            section.add("failed", f"exit {outcome.code}: {outcome.text[-300:]}")
        else:
            section.add("finished")
            shutil.rmtree(folder, ignore_errors=True)
    _check_together(output, store, section, count)


def _check_together(output: Path, store: Path, section: Section, count: int) -> None:
    runs = sorted(file.parent for file in output.glob("*/report.json"))
    expected = snapshot(runs[0]) if runs else {}
    unequal = [run.name for run in runs[1:] if differences(expected, snapshot(run))]
    leftovers = [str(path) for path in output.rglob(".*") if path.name != ".lock"]
    with sqlite3.connect(store) as connection:
        stored = connection.execute("select status, count(*) from runs group by status").fetchall()
    problems = [f"{len(unequal)} results differ"] if unequal else []
    problems += [f"left over: {leftovers[:3]}"] if leftovers else []
    problems += [f"in MLflow: {stored}"] if [status for status, _ in stored] != ["FINISHED"] else []
    problems += [f"{len(runs)} of {count} runs have a report"] if len(runs) < count else []
    section.failures += problems

"""Kill a run at a point in the order of its own work, resume it, and compare it with the uninterrupted run.

Points are counted and not timed, so that a seed gives the same kills on every machine: the k-th event or progress
report, or the k-th file that is flushed to the disk (checkpoints, snapshots, reports, the model).
"""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from faults import command
from faults.results import Section, differences, snapshot

SIGNALS = ("SIGKILL", "SIGKILL", "SIGKILL", "SIGTERM", "SIGUSR1", "SIGINT", "twice SIGINT")
STOP_CODES = {"SIGTERM": 75, "SIGUSR1": 75, "SIGINT": 130, "twice SIGINT": 130}
POINTS_FILE = "points.txt"
UNTRACKED = ("--set", "track.enabled=false")


def kill_at(kind: str, point: int, signal_name: str) -> Callable[[], None]:
    """Return what makes a command send itself a signal at a point.

    Args:
        kind: `report` (an event or progress report) or `write` (a file that is flushed to the disk).
        point: The number of the point, from 1; 0: count them, and write their number to `POINTS_FILE`.
        signal_name: See `SIGNALS`.
    """

    def install() -> None:
        seen = 0

        def count() -> None:
            nonlocal seen
            seen += 1
            if not point:
                Path(POINTS_FILE).write_text(str(seen))
            elif seen == point:
                for _ in range(2 if signal_name.startswith("twice") else 1):
                    os.kill(os.getpid(), getattr(signal, signal_name.removeprefix("twice ")))

        if kind == "write":
            real_fsync = os.fsync

            def fsync(descriptor: int) -> None:
                count()
                real_fsync(descriptor)

            os.fsync = fsync
            return
        from harness.registry import Registry

        real_emit = Registry.emit

        def emit(self: Registry, event: object) -> None:
            real_emit(self, event)  # type: ignore[arg-type]
            count()

        Registry.emit = emit  # type: ignore[method-assign,assignment]

    return install


class KillRound:
    """Kills over several specs, with the results of their uninterrupted runs."""

    def __init__(self, bench: Path, work: Path, draw: random.Random) -> None:
        self.bench, self.work, self.draw = bench, work, draw
        self.expected: dict[str, dict[str, str]] = {}
        self.points: dict[tuple[str, str], int] = {}

    def prepare(self, spec: str) -> str:
        """Run a spec without a fault, once for each kind of point; return a failure or ""."""
        if spec in self.expected:
            return ""
        for kind in ("report", "write"):
            folder = command.empty_folder(self.work / f"{spec}-{kind}-uninterrupted")
            outcome = command.run(["run", self.bench / f"{spec}.json", *UNTRACKED], folder, before=kill_at(kind, 0, ""))
            run = command.run_folder(folder)
            if outcome.code != 0 or run is None:
                return f"{spec}: the uninterrupted run exits with {outcome.code}: {outcome.text[-400:]}"
            self.expected[spec] = snapshot(run)
            self.points[spec, kind] = int((folder / POINTS_FILE).read_text())
        return ""

    def kill(self, spec: str, section: Section) -> None:
        """Kill one run of a spec, up to three times, and compare the result."""
        failure = self.prepare(spec)
        if failure:
            section.add("not started", failure)
            return
        folder = command.empty_folder(self.work / f"{spec}-killed")
        arguments: list[object] = ["run", self.bench / f"{spec}.json", *UNTRACKED]
        kills = self.draw.choice((1, 1, 2, 3))
        label = spec
        for _ in range(kills):
            kind = self.draw.choice(("report", "report", "write"))
            point = self.draw.randint(1, self.points[spec, kind])
            signal_name = self.draw.choice(SIGNALS)
            label += f", {signal_name} at {kind} {point}"
            outcome = command.run(arguments, folder, before=kill_at(kind, point, signal_name))
            section.counts["signals sent"] += 1
            allowed = {0, -signal.SIGKILL} if signal_name == "SIGKILL" else {0, STOP_CODES[signal_name]}
            run = command.run_folder(folder)
            if outcome.code == 2 and run is not None and "is finished" in outcome.text:
                break
            if outcome.code not in allowed or outcome.has_traceback:
                section.add("failed", f"{label}: exit {outcome.code}: {outcome.text[-300:]}")
                return
            if run is None:
                section.add("killed before the run had a folder")
                return
            arguments = ["run", "--resume", run]
            if outcome.code == 0:
                break
        outcome = command.run(arguments, folder, output="resumed.txt")
        run = command.run_folder(folder)
        is_finished = outcome.code == 0 or (outcome.code == 2 and "is finished" in outcome.text)
        if run is None or not is_finished or outcome.has_traceback:
            section.add("failed", f"{label}: the resumed run exits with {outcome.code}: {outcome.text[-300:]}")
            return
        unequal = differences(self.expected[spec], snapshot(run))
        leftovers = [str(path) for path in run.rglob(".*") if path.name != ".lock"]
        if unequal or leftovers:
            section.add("unequal", f"{label}: {unequal[:4]} differ, left over: {leftovers[:3]}")
        else:
            section.add("equal after resume")
            shutil.rmtree(folder, ignore_errors=True)


def kill_installed_command(bench: Path, work: Path, draw: random.Random, section: Section, expected: dict) -> None:
    """Kill the installed command after a random time, with its own process, and compare the resumed run."""
    from faults.round import ENVIRONMENT

    folder = command.empty_folder(work / "installed")
    seconds = draw.uniform(8, 30)
    arguments: list[object] = ["run", bench / "two-stages.json", *UNTRACKED]
    command.run_installed(arguments, folder, environment=ENVIRONMENT, kill_after=seconds)
    run = command.run_folder(folder)
    if run is None:
        section.add("killed before the run had a folder")
        return
    outcome = command.run(["run", "--resume", run], folder)
    unequal = differences(expected, snapshot(run))
    if outcome.code not in (0, 2) or unequal or outcome.has_traceback:
        section.add(
            "unequal", f"after {seconds:.1f} s: exit {outcome.code}, {unequal[:3]} differ: {outcome.text[-200:]}"
        )
    else:
        section.add("equal after resume")

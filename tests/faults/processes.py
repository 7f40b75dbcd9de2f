"""Kill one process of a run of two, or stop the run, resume it with two, and compare."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from faults import command
from faults.kills import UNTRACKED
from faults.results import Section, differences, snapshot

SPEC = "two-stages"
FAULTS = {"SIGKILL of the main process": 1, "SIGKILL of the other process": 1, "SIGTERM": 75, "SIGINT": 130}
"""Fault -> the exit code of the command."""


class TwoProcessRound:
    """Runs of `harness run --gpus 2` under one spec, killed at a random time after the run has its folder."""

    def __init__(self, bench: Path, work: Path, draw: random.Random, environment: Mapping[str, str]) -> None:
        self.bench, self.work, self.draw = bench, work / "processes", draw
        self.environment = {**os.environ, **environment}

    def prepare(self) -> str:
        """Run the spec without a fault; return a failure or ""."""
        folder = command.empty_folder(self.work / "uninterrupted")
        outcome = self._run(folder, "run", self.bench / f"{SPEC}.json", *UNTRACKED)
        run = command.run_folder(folder)
        if outcome.code != 0 or run is None:
            return f"the uninterrupted run exits with {outcome.code}: {outcome.text[-400:]}"
        self.expected = snapshot(run)
        self.seconds = time.time() - (run / "spec.json").stat().st_mtime
        return ""

    def kill(self, section: Section) -> None:
        """Try one fault, and resume."""
        folder = command.empty_folder(self.work / "killed")
        fault, seconds = self.draw.choice(list(FAULTS)), self.draw.uniform(0.0, 1.0) * self.seconds
        label = f"{fault} {seconds:.1f} s after the run had a folder"
        outcome = self._run(folder, "run", self.bench / f"{SPEC}.json", *UNTRACKED, fault=(fault, seconds))
        run = command.run_folder(folder)
        if outcome.code == 0:
            section.add("finished before the fault")
            return
        if run is None or outcome.code != FAULTS[fault] or outcome.has_traceback:
            section.add("failed", f"{label}: exit {outcome.code}: {outcome.text[-400:]}")
            return
        outcome = self._run(folder, "run", "--resume", run)
        is_finished = outcome.code == 0 or (outcome.code == 2 and "is finished" in outcome.text)
        unequal = differences(self.expected, snapshot(run))
        if not is_finished or unequal or outcome.has_traceback:
            said = f"the resumed run exits with {outcome.code}, {unequal[:3]} differ: {outcome.text[-300:]}"
            section.add("unequal", f"{label}: {said}")
        else:
            section.add("equal after resume")

    def _run(self, folder: Path, *arguments: object, fault: tuple[str, float] | None = None) -> command.Outcome:
        """Run the command with two processes, and send a fault so many seconds after the run has its folder."""
        words = [sys.executable, "-m", "harness", *map(str, arguments), "--gpus", "2"]
        with (folder / "output.txt").open("wb") as stream:
            process = subprocess.Popen(
                words, cwd=folder, env=self.environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                if fault is not None:
                    end = time.monotonic() + command.LIMIT_SECONDS
                    while command.run_folder(folder) is None and process.poll() is None and time.monotonic() < end:
                        time.sleep(0.05)
                    time.sleep(fault[1])
                    _send(process, fault[0])
                code: int | None = process.wait(command.LIMIT_SECONDS)
            except subprocess.TimeoutExpired:
                for each in [*psutil.Process(process.pid).children(recursive=True), process]:
                    each.kill()
                process.wait()
                code = None
        return command.Outcome(code, (folder / "output.txt").read_text(errors="replace"))


def _send(process: subprocess.Popen[bytes], fault: str) -> None:
    """Send the signal of a fault to the launcher, or to one of its processes, if it still runs."""
    if process.poll() is not None:
        return
    if not fault.startswith("SIGKILL"):
        process.send_signal(getattr(signal, fault))
        return
    rank = "0" if "main" in fault else "1"
    with contextlib.suppress(psutil.Error):  # it has just ended
        for child in psutil.Process(process.pid).children():
            if child.environ().get("RANK") == rank:
                child.kill()

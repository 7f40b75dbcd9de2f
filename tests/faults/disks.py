"""Fill the disk of a run at a point, make it larger, resume, and compare.

As root the output is on a small tmpfs. Elsewhere the k-th flush of a file fails as on a full disk.
"""

from __future__ import annotations

import errno
import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

from faults import command
from faults.kills import UNTRACKED
from faults.results import Section, differences, snapshot

SPEC = "two-stages"


def fail_flush(point: int) -> Callable[[], None]:
    """Return what makes the `point`-th flush of a file fail, and all later ones, as on a full disk."""

    def install() -> None:
        real_fsync, seen = os.fsync, [0]

        def fsync(descriptor: int) -> None:
            seen[0] += 1
            if seen[0] >= point:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real_fsync(descriptor)

        os.fsync = fsync

    return install


def can_mount(folder: Path) -> bool:
    """Return whether this process may mount a tmpfs."""
    folder.mkdir(parents=True, exist_ok=True)
    command_line = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)]
    if os.name != "posix" or subprocess.run(command_line, capture_output=True, check=False).returncode:
        return False
    subprocess.run(["umount", str(folder)], check=True)
    return True


class DiskRound:
    """Full disks under one spec."""

    def __init__(self, bench: Path, work: Path, draw: random.Random) -> None:
        self.bench, self.work, self.draw = bench, work / "disks", draw
        self.mount_point = work / "mount"
        self.has_tmpfs = can_mount(self.mount_point)

    def prepare(self) -> str:
        """Run the spec with enough space; return a failure or ""."""
        folder = command.empty_folder(self.work / "enough")
        outcome = command.run(["run", self.bench / f"{SPEC}.json", *UNTRACKED], folder)
        run = command.run_folder(folder)
        if outcome.code != 0 or run is None:
            return f"the run with enough space exits with {outcome.code}: {outcome.text[-300:]}"
        self.expected = snapshot(run)
        self.bytes_used = sum(file.stat().st_size for file in run.rglob("*") if file.is_file())
        return ""

    def fill(self, section: Section, *, tmpfs: bool) -> None:
        """Run with too little space for a random part of what the run writes, then resume."""
        folder = command.empty_folder(self.work / "full")
        arguments: list[object] = ["run", self.bench / f"{SPEC}.json", *UNTRACKED]
        if tmpfs:
            size = self.draw.randint(8_000, int(self.bytes_used * 1.2)) // 4096 * 4096
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={max(size, 8192)}", "none", str(self.mount_point)], check=True
            )
            (folder / "runs").symlink_to(self.mount_point)
            label = f"tmpfs of {size} bytes"
        else:
            point = self.draw.randint(1, 60)
            label = f"flush {point}"
        try:
            before = None if tmpfs else fail_flush(point)
            outcome = command.run(arguments, folder, before=before)
            if tmpfs:
                subprocess.run(["mount", "-o", "remount,size=100m", str(self.mount_point)], check=True)
            self._judge(section, label, outcome, folder)
        finally:
            if tmpfs:
                subprocess.run(["umount", "-l", str(self.mount_point)], check=True)

    def _judge(self, section: Section, label: str, outcome: command.Outcome, folder: Path) -> None:
        if outcome.has_traceback or outcome.code not in (0, 1, 2):
            section.add("failed", f"{label}: exit {outcome.code}: {outcome.text[-400:]}")
            return
        run = command.run_folder(folder)
        if outcome.code and run is None:
            section.add("refused before the run had a folder")
            return
        assert run is not None
        if outcome.code:
            resumed = command.run(["run", "--resume", run], folder, output="resumed.txt")
            if resumed.code != 0 or resumed.has_traceback:
                section.add("failed", f"{label}: the resumed run exits with {resumed.code}: {resumed.text[-300:]}")
                return
        unequal = differences(self.expected, snapshot(run))
        said = "resumed to the same result" if outcome.code else "finished"
        section.add("unequal" if unequal else said, f"{label}: {unequal[:4]} differ" if unequal else "")

"""A round of faults: how many of each, within a time, and the table of what was found."""

from __future__ import annotations

import argparse
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from faults import command, kills
from faults.damages import DamageRound
from faults.disks import DiskRound
from faults.inputs import InputRound, copy_run
from faults.processes import TwoProcessRound
from faults.record import Record
from faults.results import Section, format_table
from faults.soak import soak
from faults.trackers import ADDRESSES, MODES, TrackerRound
from faults.workbench import SPECS, write_workbench

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "COLUMNS": "200",
    "HARNESS_EVALUATION_CACHE": "0",
    "HARNESS_BFLOAT16_RATIO": "0.0",
    "HARNESS_NO_THIRD_PARTY": "1",
}


@dataclass(frozen=True)
class Counts:
    """How many tries a round makes."""

    kills: int
    installed_kills: int
    two_process_kills: int
    specs: int
    rows: int
    run_files: int
    plugins: int
    damages: int
    full_disks: int
    trackers: int
    soak: int


SHORT = Counts(5, 0, 0, 400, 400, 25, 20, 4, 3, 2, 0)
LONG = Counts(200, 10, 12, 20_000, 18_000, 1_000, 1_000, 60, 20, 15, 300)
LIMITS = {"short": 90.0, "long": 6 * 3600.0}
"""Seconds after which no further try is started."""


class Round:
    """One round. Tries stop when its time is over; what was not tried is said."""

    def __init__(
        self,
        work: Path,
        counts: Counts,
        *,
        seed: int,
        limit: float,
        only: tuple[str, ...] = (),
        record: Path | None = None,
    ) -> None:
        """Prepare the folder.

        Args:
            work: A folder for everything; it should not exist.
            counts: How many tries.
            seed: Of every random choice.
            limit: Seconds after which no further try is started.
            only: Names of the kinds of faults to try; empty: all.
            record: Receives a line for each try. The tries of an existing file are counted and not repeated.
        """
        self.work, self.counts, self.seed, self.only = work, counts, seed, only
        self.end = time.monotonic() + limit
        self.sections: list[Section] = []
        self.record = Record(record, seed)
        os.environ.update(ENVIRONMENT)
        os.environ["HARNESS_CACHE"] = str(work / "cache")
        self.bench = write_workbench(work / "bench")

    def run(self) -> list[Section]:
        """Try all faults, and return what was found."""
        command.warm_up()
        self._try("inputs", self._inputs)
        self._try("kills", self._kills)
        self._try("processes", self._processes)
        self._try("damages", self._damages)
        self._try("disks", self._disks)
        self._try("trackers", self._trackers)
        self._try("soak", self._soak)
        return self.sections

    @property
    def failures(self) -> list[str]:
        """A line for each try that ended as it must not."""
        return [f"{section.name}: {failure}" for section in self.sections for failure in section.failures]

    def _try(self, kind: str, act: Callable[[random.Random], None]) -> None:
        if not self.only or kind in self.only:
            act(random.Random(f"{self.seed} {kind}"))

    def _section(self, name: str) -> Section:
        section = Section(name)
        self.sections.append(section)
        return section

    def _repeat(self, section: Section, count: int, draw: random.Random, act: Callable[[int], None]) -> None:
        """Call `act` with each number below `count` that is not recorded. Each try has a seed of its own."""
        for index in range(self.record.restore(section), count):
            if time.monotonic() > self.end:
                section.counts[f"of {count:,} planned: the time was over"] = 1
                return
            draw.seed(f"{self.seed} {section.name} {index}")
            with self.record.one_try(section, index):
                act(index)
        print(f"{section.name}: {section.tries:,} tries, {len(section.failures)} failures", flush=True)

    def _inputs(self, draw: random.Random) -> None:
        inputs = InputRound(self.bench, self.work, draw)
        section = self._section("mutated specs")
        self._repeat(section, self.counts.specs, draw, lambda _: inputs.spec(section))
        rows = self._section("mutated files of rows")
        self._repeat(rows, self.counts.rows, draw, lambda _: inputs.rows(rows))
        plugins = self._section("broken plugins")
        self._repeat(plugins, self.counts.plugins, draw, lambda _: inputs.plugin(plugins))
        files = self._section("mutated files of a finished run")
        folder = self.work / "finished"
        folder.mkdir()
        outcome = command.run(["run", self.bench / "two-stages.json", *kills.UNTRACKED], folder)
        run = command.run_folder(folder)
        if outcome.code != 0 or run is None:
            files.add("not started", f"the run exits with {outcome.code}: {outcome.text[-300:]}")
            return
        mutated = copy_run(run, self.work / "mutated")
        self._repeat(files, self.counts.run_files, draw, lambda _: inputs.run_file(mutated, files))

    def _kills(self, draw: random.Random) -> None:
        section = self._section("kills and signals, resumed")
        kill_round = kills.KillRound(self.bench, self.work / "kills", draw)
        names = list(SPECS) if self.counts.kills >= len(SPECS) else ["plain"]
        self._repeat(
            section, self.counts.kills, draw, lambda index: kill_round.kill(names[index % len(names)], section)
        )
        if self.counts.installed_kills and not kill_round.prepare("two-stages"):
            installed = self._section("kills of the installed command, by time")
            expected = kill_round.expected["two-stages"]
            self._repeat(
                installed,
                self.counts.installed_kills,
                draw,
                lambda _: kills.kill_installed_command(self.bench, self.work, draw, installed, expected),
            )

    def _processes(self, draw: random.Random) -> None:
        if not self.counts.two_process_kills:
            return
        section = self._section("kills of a run of two processes, by time")
        two = TwoProcessRound(self.bench, self.work, draw, ENVIRONMENT)
        failure = two.prepare()
        if failure:
            section.add("not started", failure)
            return
        self._repeat(section, self.counts.two_process_kills, draw, lambda _: two.kill(section))

    def _damages(self, draw: random.Random) -> None:
        section = self._section("damaged files of an interrupted run, resumed")
        damages = DamageRound(self.bench, self.work, draw)
        failure = damages.prepare()
        if failure:
            section.add("not started", failure)
            return
        targets = list(islice(damages.targets(), self.counts.damages))
        self._repeat(section, len(targets), draw, lambda index: damages.damage(*targets[index], section))

    def _disks(self, draw: random.Random) -> None:
        disks = DiskRound(self.bench, self.work, draw)
        section = self._section(f"full disks ({'tmpfs' if disks.has_tmpfs else 'failing flushes'}), resumed")
        failure = disks.prepare()
        if failure:
            section.add("not started", failure)
            return
        self._repeat(section, self.counts.full_disks, draw, lambda _: disks.fill(section, tmpfs=disks.has_tmpfs))

    def _trackers(self, draw: random.Random) -> None:
        section = self._section("faults of the tracking server")
        trackers = TrackerRound(self.bench, self.work, draw)
        failure = trackers.prepare()
        if failure:
            section.add("not started", failure)
            return
        faults = [*MODES, *ADDRESSES]

        def act(index: int) -> None:
            if index == 0:
                trackers.kill_while_creating(section)
            else:
                trackers.break_tracker(faults[(index - 1) % len(faults)], section)

        self._repeat(section, self.counts.trackers, draw, act)

    def _soak(self, draw: random.Random) -> None:
        if not self.counts.soak:
            return
        section = self._section("runs, four at a time, one store")
        if self.record.restore(section) < self.counts.soak:
            section.restart()
            with self.record.one_try(section, self.counts.soak - 1):
                soak(self.bench, self.work, section, self.counts.soak)
        print(f"{section.name}: {section.tries:,} tries, {len(section.failures)} failures", flush=True)


def parse_arguments() -> argparse.Namespace:
    """Return the arguments of `make faults`."""
    parser = argparse.ArgumentParser(prog="python tests/faults", description=__doc__)
    parser.add_argument("length", choices=["short", "long"], nargs="?", default="short")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, help="seconds after which no further try is started")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the counts of the round")
    parser.add_argument(
        "--only", action="append", default=[], help="kills, processes, damages, disks, trackers, inputs or soak"
    )
    parser.add_argument("--work", type=Path, help="folder that is kept; default: a temporary one")
    parser.add_argument(
        "--record", type=Path, help="file with a line for each try; an interrupted round is continued from it"
    )
    parser.add_argument("--table", type=Path, help="file for the table; default: standard output")
    return parser.parse_args()


def scale(counts: Counts, share: float) -> Counts:
    """Return a share of the counts, at least one of each."""
    return Counts(**{name: max(1, round(value * share)) if value else 0 for name, value in vars(counts).items()})


def print_round(tried: Round, table: Path | None) -> int:
    """Print the table and the failures; return the exit code."""
    text = format_table(tried.sections)
    print(text)
    if table is not None:
        table.write_text(text + "\n")
    for failure in tried.failures[:60]:
        print(f"- {failure}")
    return 1 if tried.failures else 0

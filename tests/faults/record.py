"""The record of a round: a line for each try, so that an interrupted round is continued."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from faults.results import Section


class Record:
    """The tries of a round in a file of JSON lines; without a file nothing is recorded."""

    def __init__(self, file: Path | None, seed: int) -> None:
        self._file, self._seed = file, seed
        self._lines: list[dict] = []
        if file is not None and file.is_file():
            # The last line of a round that was killed may be incomplete: its try is repeated.
            complete = file.read_text(encoding="utf-8").rpartition("\n")[0]
            self._lines = [json.loads(line) for line in complete.splitlines()]
            file.write_text(f"{complete}\n" if complete else "", encoding="utf-8")

    def restore(self, section: Section) -> int:
        """Count the recorded tries of a section with this seed, and return the number of the next one."""
        lines = [line for line in self._lines if (line["section"], line["seed"]) == (section.name, self._seed)]
        for line in lines:
            section.tries += line["tries"]
            section.counts.update(line["counts"])
            section.failures += line["failures"]
        return max((line["index"] for line in lines), default=-1) + 1

    @contextmanager
    def one_try(self, section: Section, index: int) -> Iterator[None]:
        """Record what the context adds to a section."""
        tries, counts, failures = section.tries, Counter(section.counts), len(section.failures)
        yield
        if self._file is None:
            return
        line = {
            "section": section.name,
            "seed": self._seed,
            "index": index,
            "tries": section.tries - tries,
            "counts": section.counts - counts,
            "failures": section.failures[failures:],
        }
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

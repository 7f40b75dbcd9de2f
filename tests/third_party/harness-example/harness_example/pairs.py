"""A source: a question and an answer, line by line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from harness import HarnessError, Record, Source


class Pairs(Source):
    """Every two lines of a UTF-8 text file. Raises HarnessError when the last question has no answer."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def records(self) -> Iterator[Record]:
        lines = self.path.read_text(encoding="utf-8").splitlines()
        if len(lines) % 2:
            raise HarnessError(f"{self.path}:{len(lines)}", "the question has no answer", "add a line with one")
        for number in range(0, len(lines), 2):
            yield Record(f"{self.path}:{number + 1}", {"instruction": lines[number], "output": lines[number + 1]})

"""A source of question-answer pairs, two lines each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from harness import HarnessError, Record, Source


class Pairs(Source):
    """Pairs of lines of a UTF-8 text file."""

    def __init__(self, path: str) -> None:
        """Create the source of the rows of one file."""
        self.path = Path(path)

    def records(self) -> Iterator[Record]:
        """Yield a row for every two lines.

        Raises:
            HarnessError: The last question has no answer.
        """
        lines = self.path.read_text(encoding="utf-8").splitlines()
        if len(lines) % 2:
            raise HarnessError(f"{self.path}:{len(lines)}", "the question has no answer", "add a line with one")
        for index in range(0, len(lines), 2):
            yield Record(f"{self.path}:{index + 1}", {"instruction": lines[index], "output": lines[index + 1]})

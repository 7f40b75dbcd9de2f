"""The decisions of raters on disk: one append-only JSONL file per rater, whose records are replayed into a state.

A record is on the disk before `append` returns. Undoing a decision is a record too, so nothing is ever overwritten, and
files of several machines are merged by joining their lines. Several raters, tabs and processes can write at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import unicodedata
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from harness.errors import HarnessError
from harness.rating.task import RatingTask
from harness.utils.json_files import read_json_lines
from harness.utils.write_errors import report_write_errors

RECORD_FORMAT = 1
NOT_APPLICABLE = "na"
BOTH_BAD = "both_bad"
MAX_COMMENT = 2000
"""Characters of a comment."""
MAX_RATER = 40
"""Characters of a rater's name."""

Action = Literal["rate", "skip", "undo", "comment", "finish"]
Value = int | str
"""A level from 1 to 5, `na`, or `both_bad`. Of a comparison the levels are those of the page: 1 prefers the left."""
ItemShown = tuple[str, bool]
"""The key of an item, and whether it is a repeat."""


@dataclass
class RaterState:
    """What a rater has decided.

    Attributes:
        values: Item -> dimension -> value.
        skipped: The items that were skipped.
        comments: Item -> comment.
        left: Item -> index of the model that was on the left.
        history: What `undo` takes back, the last one at the end: item, dimension (None: a skip) and the value before.
        finished: Whether the rater has seen the results, after which nothing more is decided.
    """

    values: dict[ItemShown, dict[str, Value]] = field(default_factory=dict)
    skipped: set[ItemShown] = field(default_factory=set)
    comments: dict[ItemShown, str] = field(default_factory=dict)
    left: dict[ItemShown, int] = field(default_factory=dict)
    history: list[tuple[ItemShown, str | None, Value | None]] = field(default_factory=list)
    finished: bool = False

    def is_decided(self, item: ItemShown, dimensions: Sequence[str]) -> bool:
        """Return whether the item was skipped or has a value of every dimension."""
        return item in self.skipped or all(key in self.values.get(item, {}) for key in dimensions)

    def apply(self, record: Mapping[str, Any]) -> None:
        """Apply a record."""
        action, item = record["action"], (str(record.get("item", "")), bool(record.get("repeat", False)))
        if action == "rate":
            values = self.values.setdefault(item, {})
            self.history.append((item, record["dimension"], values.get(record["dimension"])))
            values[record["dimension"]] = record["value"]
            self.left[item] = int(record.get("left", 0))
        elif action == "skip":
            self.history.append((item, None, None))
            self.skipped.add(item)
        elif action == "undo" and self.history:
            undone, dimension, before = self.history.pop()
            if dimension is None:
                self.skipped.discard(undone)
            elif before is None:
                del self.values[undone][dimension]
            else:
                self.values[undone][dimension] = before
        elif action == "comment":
            self.comments[item] = str(record["comment"])
        elif action == "finish":
            self.finished = True


class RatingStore:
    """The ratings of a task."""

    def __init__(self, task: RatingTask) -> None:
        """Use the folder of a task."""
        self._task = task

    def raters(self) -> list[str]:
        """Return the names of the raters who have begun, sorted."""
        return sorted({record["rater"] for file in self._files() for record in self._read(file)[:1]})

    def load(self, rater: str) -> RaterState:
        """Return the state of a rater."""
        state = RaterState()
        for record in self.records(rater):
            state.apply(record)
        return state

    def records(self, rater: str) -> list[dict[str, Any]]:
        """Return the records of a rater, in the order in which they were made."""
        return self._read(self._file(rater))

    def append(self, rater: str, action: Action, **fields: Any) -> None:
        """Write a record, and wait until it is on the disk.

        Raises:
            RunError: It cannot be written.
        """
        record = {
            "format": RECORD_FORMAT,
            "task": self._task.digest,
            "rater": rater,
            "id": uuid.uuid4().hex,
            "action": action,
            **fields,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "harness": version("harness-sft"),
        }
        self.append_records(rater, [record])

    def append_records(self, rater: str, records: Sequence[Mapping[str, Any]]) -> None:
        """Write complete records, and wait until they are on the disk.

        Raises:
            RunError: They cannot be written.
        """
        file = self._file(rater)
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        data = lines.encode(errors="backslashreplace")
        with report_write_errors(file, "the rating", "harness rate"):
            descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                size = os.fstat(descriptor).st_size
                if size and os.pread(descriptor, 1, size - 1) != b"\n":  # a line that a power loss cut off
                    data = b"\n" + data
                while data:  # a write may take only a part of the bytes
                    data = data[os.write(descriptor, data) :]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _files(self) -> Iterator[Path]:
        yield from sorted(self._task.folder.glob("ratings-*.jsonl"))

    def _file(self, rater: str) -> Path:
        return self._task.folder / f"ratings-{_file_slug(rater)}.jsonl"

    def _read(self, file: Path) -> list[dict[str, Any]]:
        records = [record for record in read_json_lines(file) if is_record(record)]
        other = next((record for record in records if record["task"] != self._task.digest), None)
        if other is not None:
            what = "has ratings of another task: of other runs, items, seed or rubric"
            raise HarnessError(str(file), what, "move the file away, or start another task with --name")
        return records


def is_record(record: Mapping[str, Any]) -> bool:
    """Return whether a JSON object is a record of this format."""
    if record.get("format") != RECORD_FORMAT or not isinstance(record.get("rater"), str) or "task" not in record:
        return False
    if record.get("action") == "rate":
        return isinstance(record.get("item"), str) and isinstance(record.get("dimension"), str) and "value" in record
    if record.get("action") == "comment":
        return isinstance(record.get("item"), str) and isinstance(record.get("comment"), str)
    return record.get("action") in ("undo", "finish") or (
        record.get("action") == "skip" and isinstance(record.get("item"), str)
    )


def clean_rater_name(name: str) -> str | None:
    """Return a rater's name without surrounding spaces, in a normal form; None if it is empty or not printable."""
    name = unicodedata.normalize("NFC", " ".join(name.split()))
    return name if 0 < len(name) <= MAX_RATER and name.isprintable() else None


def _file_slug(rater: str) -> str:
    """Return the part of a file name that names a rater: the name if it is a plain one, else with a digest."""
    if re.fullmatch(r"[a-z0-9][a-z0-9_-]*", rater):
        return rater
    plain = re.sub(r"[^a-z0-9]+", "-", rater.lower()).strip("-") or "rater"
    return f"{plain}.{hashlib.sha256(rater.encode()).hexdigest()[:8]}"

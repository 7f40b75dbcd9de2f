"""One source read whole: its conversations on disk, its rows' hashes in arrays, and every bad row by name.

Knows where rows are kept; how they are read, `reading` knows, and which of them are used, the splits.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from harness.contracts import Example, Progress, Source, silent
from harness.data.conversation import prompt_id
from harness.data.reading import Reading
from harness.data.rejects import Rejects
from harness.data.spool import Indices, Spool, body, unwritten

Hashes = NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class Corpus(Sequence[Example]):
    """The conversations of one source, in its order.

    keys, prompts: (N,) uint64, hashes of each row's content and of its prompt (see `conversation`). digest: SHA-256
    over all that can change a token, in order. read: raw rows = N + filtered (left aside by `filter`) + rejected (bad).
    rejections: the file that names every bad row; None when there are none. facts: see `Source.facts`.
    """

    name: str
    rows: Sequence[Example]
    keys: Hashes
    prompts: Hashes
    digest: str
    form: str
    read: int
    filtered: int = 0
    rejected: int = 0
    rejections: Path | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, examples: Iterable[Example], name: str) -> Corpus:
        """A corpus of examples that are held in memory."""
        rows = tuple(examples)
        digest = hashlib.sha256(b"".join(map(body, rows))).hexdigest()
        keys = np.array([int(row.id, 16) for row in rows], np.uint64)
        prompts = np.array([int(prompt_id(row), 16) for row in rows], np.uint64)
        return cls(name, rows, keys, prompts, digest, "auto", len(rows))

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        return self.rows[index]

    def __iter__(self) -> Iterator[Example]:
        return iter(self.rows)

    def take(self, indices: Indices) -> View:
        """The rows of these indices, (M,) int64, in the order given; nothing is copied."""
        return View(self, np.asarray(indices, np.int64))

    def place(self, index: int) -> str:
        """Where a row stands in the data."""
        return self.rows.place(index) if isinstance(self.rows, Spool) else self.rows[index].place


@dataclass(frozen=True, eq=False)
class View(Sequence[Example]):
    """Some rows of a corpus. indices: (M,) int64."""

    corpus: Corpus
    indices: Indices

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> View: ...
    def __getitem__(self, index: int | slice) -> Example | View:
        if isinstance(index, slice):
            return View(self.corpus, self.indices[index])
        return self.corpus[int(self.indices[index])]

    def __iter__(self) -> Iterator[Example]:
        rows = self.corpus.rows
        return rows.walk(self.indices) if isinstance(rows, Spool) else (rows[index] for index in self.indices.tolist())

    def take(self, positions: Indices) -> View:
        """The view of the rows at these positions of this one."""
        return View(self.corpus, self.indices[positions])

    @property
    def keys(self) -> Hashes:
        """(M,) uint64: hashes of each row's content."""
        return self.corpus.keys[self.indices]

    @property
    def prompts(self) -> Hashes:
        """(M,) uint64: hashes of each row's prompt."""
        return self.corpus.prompts[self.indices]

    def place(self, index: int) -> str:
        """Where a row of the view stands in the data."""
        return self.corpus.place(int(self.indices[index]))


def read(
    source: Source,
    options: Mapping[str, Any],
    name: str,
    *,
    folder: Path,
    rejections: Path | None = None,
    progress: Progress = silent,
) -> Corpus:
    """Read a source into `folder`, which is its own: `conversations.jsonl`, and `rejected.jsonl` where rows are bad.

    rejections: another file for the bad rows; its folder is made with it.

    options: of the source, the core's filled in; all are read but those that choose among the rows read. name: the
    source's, for errors. progress: phase `read`, in rows.
    Raises HarnessError for what cannot be read, for a form that cannot be told, when no row is left, and when more of
    the rows are bad than `rejected` allows: the first five by place, then their number. The conversations must not be
    removed while the corpus is in use.
    """
    bad = folder / "rejected.jsonl" if rejections is None else rejections
    reading = Reading(source, options, name, Rejects(bad), progress)
    prompts = array("Q")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        bad.unlink(missing_ok=True)
    except OSError as error:
        raise unwritten(folder, error) from error
    try:
        spool, digest = Spool.write(_noting(reading.examples(), prompts), folder / "conversations.jsonl")
    finally:
        reading.rejects.close()
    reading.check()
    return Corpus(
        name=name,
        rows=spool,
        keys=spool.ids,
        prompts=np.array(prompts, np.uint64),
        digest=digest,
        form=reading.form,
        read=reading.read,
        filtered=reading.filtered,
        rejected=reading.rejects.count,
        rejections=reading.rejects.path if reading.rejects.count else None,
        facts=dict(source.facts()),
        warnings=(*source.warnings(), *reading.warnings()),
    )


def examples(source: Source, options: Mapping[str, Any], name: str) -> list[Example]:
    """The conversations of a source in memory, for where they are few; otherwise as `read`, and nothing is written."""
    reading = Reading(source, options, name, Rejects(None), silent)
    found = list(reading.examples())
    reading.check()
    return found


def _noting(examples: Iterable[Example], prompts: array[int]) -> Iterator[Example]:
    for example in examples:
        prompts.append(int(prompt_id(example), 16))
        yield example

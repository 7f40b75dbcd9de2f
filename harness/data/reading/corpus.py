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

from harness.data.reading.conversation import prompt_ids
from harness.data.reading.conversation_store import Indices, Spool, body, unwritten
from harness.data.reading.rejected_rows import ELSEWHERE, Rejects
from harness.data.reading.source_reader import Reading
from harness.interfaces.source import Source
from harness.types import Example, Progress, silent

Hashes = NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class Corpus(Sequence[Example]):
    """The conversations of one source, in its order.

    keys, prompts, openings: (N,) uint64, hashes of each row's content, of its prompt and of its opening. earlier:
    (K,) uint64, hashes of the prompts of all earlier responses that are trained; of_rows: (K,) int64, the row of each,
    ascending (see `conversation`). digest: SHA-256
    over all that can change a token, in order. read: raw rows = N + filtered (left aside by `filter`) + rejected (bad).
    rejections: the file that names every bad row; None when there are none. facts: see `Source.facts`.
    """

    name: str
    rows: Sequence[Example]
    keys: Hashes
    prompts: Hashes
    openings: Hashes
    earlier: Hashes
    of_rows: Indices
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
        noted = _Prompts()
        for row in rows:
            noted.add(row)
        return cls(name, rows, keys, *noted.arrays(), digest, "auto", len(rows))

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

    def trained_prompts(self) -> tuple[Hashes, Indices]:
        """Hashes of the prompts of every response that is trained, and the position in the view of the row of each."""
        position = np.full(len(self.corpus), -1, np.int64)
        position[self.indices] = np.arange(len(self))
        owners = position[self.corpus.of_rows]
        here = owners >= 0
        prompts = np.concatenate([self.prompts, self.corpus.earlier[here]])
        return prompts, np.concatenate([np.arange(len(self)), owners[here]])

    def place(self, index: int) -> str:
        """Where a row of the view stands in the data."""
        return self.corpus.place(int(self.indices[index]))


def read(
    source: Source,
    options: Mapping[str, Any],
    name: str,
    *,
    folder: Path | None,
    rejections: Path | None = None,
    progress: Progress = silent,
) -> Corpus:
    """Read a source; its conversations stand on disk, in a file without a name that goes with the corpus.

    folder: on the disk that takes them, which is there; None: where the system keeps such files. rejections: the file
    that gets every bad row, its folder made with it; None: they are only counted.
    options: of the source, the core's filled in; all are read but those that choose among the rows read. name: the
    source's, for errors. progress: phase `read`, in rows.
    Raises HarnessError for what cannot be read, for a form that cannot be told, when no row is left, and when more of
    the rows are bad than `rejected` allows: the first five by place, then their number.
    """
    reading = Reading(source, options, name, Rejects(rejections), progress)
    prompts = _Prompts()
    if rejections is not None:
        try:
            rejections.unlink(missing_ok=True)
        except OSError as error:
            raise unwritten(rejections, error, ELSEWHERE) from error
    try:
        spool, digest = Spool.write(prompts.noting(reading.examples()), folder)
    finally:
        reading.rejects.close()
    reading.check()
    asked, openings, earlier, of_rows = prompts.arrays()
    return Corpus(
        name=name,
        rows=spool,
        keys=spool.ids,
        prompts=asked,
        openings=openings,
        earlier=earlier,
        of_rows=of_rows,
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


class _Prompts:
    """Takes note of what rows ask, in eight bytes a hash."""

    def __init__(self) -> None:
        self._prompts, self._openings, self._earlier, self._of = array("Q"), array("Q"), array("Q"), array("q")

    def add(self, example: Example) -> None:
        prompt, opening, earlier = prompt_ids(example)
        for one in earlier:
            self._earlier.append(int(one, 16))
            self._of.append(len(self._prompts))
        self._openings.append(int(opening, 16))
        self._prompts.append(int(prompt, 16))

    def noting(self, examples: Iterable[Example]) -> Iterator[Example]:
        """The examples, each noted."""
        for example in examples:
            self.add(example)
            yield example

    def arrays(self) -> tuple[Hashes, Hashes, Hashes, Indices]:
        """`Corpus.prompts`, `openings`, `earlier` and `of_rows`."""
        prompts, openings, earlier = (
            np.array(one, np.uint64) for one in (self._prompts, self._openings, self._earlier)
        )
        return prompts, openings, earlier, np.array(self._of, np.int64)

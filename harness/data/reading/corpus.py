"""One source read whole: its conversations on disk, its rows' hashes in arrays, and every bad row by name.

Knows where rows are kept; how they are read, `source_reader` knows, and which of them are used, the splits.
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

from harness.data.reading.conversation import prompt_hashes
from harness.data.reading.conversation_store import ConversationStore, Indices, disk_write_error, serialize_example
from harness.data.reading.rejected_rows import OUTPUT_FOLDER_HINT, InvalidRowLog
from harness.data.reading.source_reader import SourceReader
from harness.interfaces.source import Source
from harness.types import Example, Progress, no_progress

HashArray = NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class Corpus(Sequence[Example]):
    """The conversations of one source, in its order.

    keys, prompts, openings: (N,) uint64, hashes of each row's content, of its prompt and of its opening. earlier:
    (K,) uint64, hashes of the prompts of all earlier responses that are trained; of_rows: (K,) int64, the row of each,
    ascending (see `conversation`). digest: SHA-256
    over all that can change a token, in order. read: raw rows = N + filtered (left aside by `filter`) + rejected (bad).
    rejections: the file that names every bad row; None when there are none. facts: see `Source.metadata`.
    """

    name: str
    examples: Sequence[Example]
    content_hashes: HashArray
    prompt_hashes: HashArray
    opening_hashes: HashArray
    earlier_prompt_hashes: HashArray
    earlier_prompt_rows: Indices
    digest: str
    row_format: str
    rows_read: int
    rows_filtered: int = 0
    rows_invalid: int = 0
    invalid_rows_file: Path | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @classmethod
    def from_examples(cls, examples: Iterable[Example], name: str) -> Corpus:
        """A corpus of examples that are held in memory."""
        rows = tuple(examples)
        digest = hashlib.sha256(b"".join(map(serialize_example, rows))).hexdigest()
        keys = np.array([int(row.id, 16) for row in rows], np.uint64)
        noted = _PromptHashes()
        for row in rows:
            noted.add(row)
        return cls(name, rows, keys, *noted.to_arrays(), digest, "auto", len(rows))

    def __len__(self) -> int:
        return len(self.examples)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        return self.examples[index]

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples)

    def select(self, indices: Indices) -> CorpusView:
        """The rows of these indices, (M,) int64, in the order given; nothing is copied."""
        return CorpusView(self, np.asarray(indices, np.int64))

    def location_of(self, index: int) -> str:
        """Where a row stands in the data."""
        return (
            self.examples.location_of(index)
            if isinstance(self.examples, ConversationStore)
            else self.examples[index].location
        )


@dataclass(frozen=True, eq=False)
class CorpusView(Sequence[Example]):
    """Some rows of a corpus. indices: (M,) int64."""

    corpus: Corpus
    indices: Indices

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> CorpusView: ...
    def __getitem__(self, index: int | slice) -> Example | CorpusView:
        if isinstance(index, slice):
            return CorpusView(self.corpus, self.indices[index])
        return self.corpus[int(self.indices[index])]

    def __iter__(self) -> Iterator[Example]:
        rows = self.corpus.examples
        return (
            rows.iter_rows(self.indices)
            if isinstance(rows, ConversationStore)
            else (rows[index] for index in self.indices.tolist())
        )

    def select(self, positions: Indices) -> CorpusView:
        """The view of the rows at these positions of this one."""
        return CorpusView(self.corpus, self.indices[positions])

    @property
    def content_hashes(self) -> HashArray:
        """(M,) uint64: hashes of each row's content."""
        return self.corpus.content_hashes[self.indices]

    @property
    def prompt_hashes(self) -> HashArray:
        """(M,) uint64: hashes of each row's prompt."""
        return self.corpus.prompt_hashes[self.indices]

    def trained_prompt_hashes(self) -> tuple[HashArray, Indices]:
        """Hashes of the prompts of every response that is trained, and the position in the view of the row of each."""
        position = np.full(len(self.corpus), -1, np.int64)
        position[self.indices] = np.arange(len(self))
        owners = position[self.corpus.earlier_prompt_rows]
        here = owners >= 0
        prompts = np.concatenate([self.prompt_hashes, self.corpus.earlier_prompt_hashes[here]])
        return prompts, np.concatenate([np.arange(len(self)), owners[here]])

    def location_of(self, index: int) -> str:
        """Where a row of the view stands in the data."""
        return self.corpus.location_of(int(self.indices[index]))


def read_corpus(
    source: Source,
    options: Mapping[str, Any],
    name: str,
    *,
    folder: Path | None,
    invalid_rows_file: Path | None = None,
    progress: Progress = no_progress,
) -> Corpus:
    """Read a source; its conversations stand on disk, in a file without a name that goes with the corpus.

    folder: on the disk that takes them, which is there; None: where the system keeps such files. rejections: the file
    that gets every bad row, its folder made with it; None: they are only counted.
    options: of the source, the core's filled in; all are read but those that choose among the rows read. name: the
    source's, for errors. progress: phase `read`, in rows.
    Raises HarnessError for what cannot be read, for a form that cannot be told, when no row is left, and when more of
    the rows are bad than `rejected` allows: the first five by place, then their number.
    """
    reading = SourceReader(source, options, name, InvalidRowLog(invalid_rows_file), progress)
    prompts = _PromptHashes()
    if invalid_rows_file is not None:
        try:
            invalid_rows_file.unlink(missing_ok=True)
        except OSError as error:
            raise disk_write_error(invalid_rows_file, error, OUTPUT_FOLDER_HINT) from error
    try:
        spool, digest = ConversationStore.write_examples(prompts.add_each(reading.iter_examples()), folder)
    finally:
        reading.invalid_rows.close()
    reading.raise_if_unusable()
    asked, openings, earlier, of_rows = prompts.to_arrays()
    return Corpus(
        name=name,
        examples=spool,
        content_hashes=spool.ids,
        prompt_hashes=asked,
        opening_hashes=openings,
        earlier_prompt_hashes=earlier,
        earlier_prompt_rows=of_rows,
        digest=digest,
        row_format=reading.row_format,
        rows_read=reading.rows_read,
        rows_filtered=reading.rows_filtered,
        rows_invalid=reading.invalid_rows.count,
        invalid_rows_file=reading.invalid_rows.path if reading.invalid_rows.count else None,
        metadata=dict(source.metadata()),
        warnings=(*source.warnings(), *reading.warnings()),
    )


def read_examples(source: Source, options: Mapping[str, Any], name: str) -> list[Example]:
    """The conversations of a source in memory, for where they are few; otherwise as `read`, and nothing is written."""
    reading = SourceReader(source, options, name, InvalidRowLog(None), no_progress)
    found = list(reading.iter_examples())
    reading.raise_if_unusable()
    return found


class _PromptHashes:
    """Takes note of what rows ask, in eight bytes a hash."""

    def __init__(self) -> None:
        self._prompts, self._openings, self._earlier, self._earlier_rows = (
            array("Q"),
            array("Q"),
            array("Q"),
            array("q"),
        )

    def add(self, example: Example) -> None:
        prompt, opening, earlier = prompt_hashes(example)
        for one in earlier:
            self._earlier.append(int(one, 16))
            self._earlier_rows.append(len(self._prompts))
        self._openings.append(int(opening, 16))
        self._prompts.append(int(prompt, 16))

    def add_each(self, examples: Iterable[Example]) -> Iterator[Example]:
        """The examples, each noted."""
        for example in examples:
            self.add(example)
            yield example

    def to_arrays(self) -> tuple[HashArray, HashArray, HashArray, Indices]:
        """`Corpus.prompt_hashes`, `opening_hashes`, `earlier_prompt_hashes` and `earlier_prompt_rows`."""
        prompts, openings, earlier = (
            np.array(one, np.uint64) for one in (self._prompts, self._openings, self._earlier)
        )
        return prompts, openings, earlier, np.array(self._earlier_rows, np.int64)

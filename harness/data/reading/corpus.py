"""Read a source into a corpus: its conversations on disk, the hashes of its rows in arrays, its invalid rows logged.

`source_reader` reads the rows; `splits` chooses which of them are used.
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
from harness.data.reading.conversation_store import ConversationStore, Indices, serialize_example
from harness.data.reading.disk_errors import disk_write_error
from harness.data.reading.rejected_rows import OUTPUT_FOLDER_HINT, InvalidRowLog
from harness.data.reading.source_reader import SourceReader
from harness.interfaces.source import Source
from harness.types import Example, Progress, no_progress

HashArray = NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class Corpus(Sequence[Example]):
    """The N conversations of one source, in its order.

    `rows_read == N + rows_filtered + rows_invalid`. The hashes are those of `conversation.prompt_hashes`.

    Attributes:
        name: The name of the source.
        examples: The conversations, on disk or in memory.
        content_hashes: `(N,)` uint64, the id of each row.
        prompt_hashes: `(N,)` uint64, the hash of each row's prompt.
        opening_hashes: `(N,)` uint64, the hash of each row's opening.
        earlier_prompt_hashes: `(K,)` uint64, the prompt hashes of all earlier responses that are trained.
        earlier_prompt_rows: `(K,)` int64, the row of each of them, ascending.
        digest: SHA-256 over everything that can change a token, in order.
        row_format: A key of `row_formats.ROW_FORMATS`.
        rows_read: Raw rows read.
        rows_filtered: Rows dropped by the option `filter`.
        rows_invalid: Rows that are not valid conversations.
        invalid_rows_file: The file that lists every invalid row; None without invalid rows.
        unread_keys: See `UnreadKeys.counts`.
        metadata: See `Source.metadata`.
        warnings: Warnings of the source, about invalid rows and about unread keys.
        split_keys: `(N,)` uint64, `HeldOutRule.key_of_row` of each row; None if `held_out` reads no column.
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
    unread_keys: Mapping[str, int] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    split_keys: HashArray | None = None

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
        """Return a view of the rows of these indices, `(M,)` int64, in the given order; nothing is copied."""
        return CorpusView(self, np.asarray(indices, np.int64))

    def location_of(self, index: int) -> str:
        """Return the location of a row in the data."""
        return (
            self.examples.location_of(index)
            if isinstance(self.examples, ConversationStore)
            else self.examples[index].location
        )


@dataclass(frozen=True, eq=False)
class CorpusView(Sequence[Example]):
    """Some rows of a corpus.

    Attributes:
        corpus: The corpus.
        indices: `(M,)` int64, indices of rows of the corpus, in the order of the view.
    """

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
        """Return a view of the rows at these positions of this view."""
        return CorpusView(self.corpus, self.indices[positions])

    @property
    def content_hashes(self) -> HashArray:
        """The hash of each row's content, `(M,)` uint64."""
        return self.corpus.content_hashes[self.indices]

    @property
    def prompt_hashes(self) -> HashArray:
        """The hash of each row's prompt, `(M,)` uint64."""
        return self.corpus.prompt_hashes[self.indices]

    def trained_prompt_hashes(self) -> tuple[HashArray, Indices]:
        """Return the prompt hashes of every trained response of the view.

        Returns:
            The hashes, `(L,)` uint64, and the position in the view of the row of each, `(L,)` int64.
        """
        view_positions = np.full(len(self.corpus), -1, np.int64)  # (N,): -1 for rows outside the view
        view_positions[self.indices] = np.arange(len(self))
        earlier_positions = view_positions[self.corpus.earlier_prompt_rows]  # (K,)
        in_view = earlier_positions >= 0
        prompts = np.concatenate([self.prompt_hashes, self.corpus.earlier_prompt_hashes[in_view]])
        return prompts, np.concatenate([np.arange(len(self)), earlier_positions[in_view]])

    def location_of(self, index: int) -> str:
        """Return the location in the data of a row of the view."""
        return self.corpus.location_of(int(self.indices[index]))


def read_corpus(
    source: Source,
    options: Mapping[str, Any],
    name: str,
    *,
    folder: Path | None,
    invalid_rows_file: Path | None = None,
    progress: Progress = no_progress,
    group_columns: Sequence[str] = (),
) -> Corpus:
    """Read a source; its conversations are stored in an unlinked temporary file that is freed with the corpus.

    Args:
        source: Yields the raw rows.
        options: The source's options, with the defaults of the core filled in. All are applied here except those that
            choose among the rows (`held_out`, `limit`, `shuffle`).
        name: The name of the source, for errors.
        folder: An existing folder on the disk for the conversations; None uses the system's temporary folder.
        invalid_rows_file: The file for every invalid row, created with its folder when needed; None only counts them.
        progress: Receives the phase `read`, in rows.
        group_columns: Columns by which suites group the rows.

    Raises:
        HarnessError: The source cannot be read, its row format cannot be detected, no row is left, or more rows are
            invalid than the option `rejected` allows. The first five invalid rows are named.
    """
    reader = SourceReader(source, options, name, InvalidRowLog(invalid_rows_file), progress, group_columns)
    hashes = _PromptHashes()
    if invalid_rows_file is not None:
        try:
            invalid_rows_file.unlink(missing_ok=True)
        except OSError as error:
            raise disk_write_error(invalid_rows_file, error, OUTPUT_FOLDER_HINT) from error
    try:
        store, digest = ConversationStore.write_examples(hashes.add_each(reader.iter_examples()), folder)
    finally:
        reader.invalid_rows.close()
    reader.raise_if_unusable()
    row_prompt_hashes, opening_hashes, earlier_hashes, earlier_rows = hashes.to_arrays()
    return Corpus(
        name=name,
        examples=store,
        content_hashes=store.ids,
        prompt_hashes=row_prompt_hashes,
        opening_hashes=opening_hashes,
        earlier_prompt_hashes=earlier_hashes,
        earlier_prompt_rows=earlier_rows,
        digest=digest,
        row_format=reader.row_format,
        rows_read=reader.rows_read,
        rows_filtered=reader.rows_filtered,
        rows_invalid=reader.invalid_rows.count,
        invalid_rows_file=reader.invalid_rows.path if reader.invalid_rows.count else None,
        unread_keys=dict(sorted(reader.unread_keys.counts.items())),
        metadata=dict(source.metadata()),
        warnings=(*source.warnings(), *reader.warnings()),
        split_keys=np.array(reader.split_keys, np.uint64) if reader.held_out.read_column is not None else None,
    )


def build_corpus(name: str, examples: Sequence[Example]) -> Corpus:
    """Build a corpus of conversations in memory, e.g. of those that a model has written.

    Args:
        name: The name of the source.
        examples: The conversations, whose ids are those of their content.
    """
    hashes = _PromptHashes()
    digest = hashlib.sha256()
    for example in hashes.add_each(examples):
        digest.update(serialize_example(example))
    row_prompt_hashes, opening_hashes, earlier_hashes, earlier_rows = hashes.to_arrays()
    return Corpus(
        name=name,
        examples=examples,
        content_hashes=np.array([int(example.id, 16) for example in examples], np.uint64),
        prompt_hashes=row_prompt_hashes,
        opening_hashes=opening_hashes,
        earlier_prompt_hashes=earlier_hashes,
        earlier_prompt_rows=earlier_rows,
        digest=digest.hexdigest(),
        row_format="messages",
        rows_read=len(examples),
    )


def read_examples(source: Source, options: Mapping[str, Any], name: str) -> list[Example]:
    """Read the conversations of a small source into memory, as `read_corpus` does, without writing a file."""
    reader = SourceReader(source, options, name, InvalidRowLog(None), no_progress)
    examples = list(reader.iter_examples())
    reader.raise_if_unusable()
    return examples


class _PromptHashes:
    """Collects the prompt hashes of rows, eight bytes each."""

    def __init__(self) -> None:
        self._prompts, self._openings, self._earlier = array("Q"), array("Q"), array("Q")
        self._earlier_rows = array("q")

    def add(self, example: Example) -> None:
        prompt, opening, earlier = prompt_hashes(example)
        for earlier_hash in earlier:
            self._earlier.append(int(earlier_hash, 16))
            self._earlier_rows.append(len(self._prompts))
        self._openings.append(int(opening, 16))
        self._prompts.append(int(prompt, 16))

    def add_each(self, examples: Iterable[Example]) -> Iterator[Example]:
        """Add each example and yield it."""
        for example in examples:
            self.add(example)
            yield example

    def to_arrays(self) -> tuple[HashArray, HashArray, HashArray, Indices]:
        """Return `Corpus.prompt_hashes`, `opening_hashes`, `earlier_prompt_hashes` and `earlier_prompt_rows`."""
        prompts, openings, earlier = (
            np.array(hashes, np.uint64) for hashes in (self._prompts, self._openings, self._earlier)
        )
        return prompts, openings, earlier, np.array(self._earlier_rows, np.int64)

"""Tokenised rows as one sequence: tokens in flat arrays, on disk or in memory; a row is made when it is asked for.

A token and whether it is trained are one number: a trained token is stored as it is, any other as its complement
(`~token`, which is negative). What is counted about rows stands in arrays of a few bytes a row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from harness.types import TokenizedExample

IGNORE_INDEX = -100
"""The label of a token that is not trained."""

StoredTokens = NDArray[np.int32]


class TokenizedRows(Sequence[TokenizedExample]):
    """Rows of one or more sources, in a fixed order; nothing in it changes.

    ids: (N,) uint64, with `TokenizedExample.id == f"{id:016x}"`. lengths: (N,) int32, tokens of each row. loss_tokens:
    (N,) int32, see `TokenizedExample`. source_indices: (N,) uint16, an index into `source_names`.
    """

    def __init__(
        self,
        stores: Sequence[StoredTokens],
        *,
        ids: NDArray[np.uint64],
        lengths: NDArray[np.int32],
        loss_tokens: NDArray[np.int32],
        source_indices: NDArray[np.uint16],
        source_names: Sequence[str],
        store_indices: NDArray[np.uint16],
        offsets: NDArray[np.int64],
    ) -> None:
        """stores: flat tokens, each (T,) int32 as told above. store, begins: (N,), which of them, and where in it."""
        self.ids, self.lengths, self.loss_tokens = ids, lengths, loss_tokens
        self.source_indices, self.source_names = source_indices, tuple(source_names)
        self._stores, self._store_indices, self._offsets = tuple(stores), store_indices, offsets

    @classmethod
    def from_rows(cls, rows: Iterable[TokenizedExample]) -> TokenizedRows:
        """The rows, in memory.

        Raises ValueError for an id that is no 16 hex digits, and for labels that are neither the token nor -100.
        """
        given = list(rows)
        names = tuple(dict.fromkeys(row.source for row in given))
        number = {name: index for index, name in enumerate(names)}
        parts = [_to_stored_tokens(row) for row in given]
        lengths = np.array([len(part) for part in parts], np.int32)
        return cls(
            [np.concatenate([np.empty(0, np.int32), *parts])],
            ids=np.array([_parse_row_id(row.id) for row in given], np.uint64),
            lengths=lengths,
            loss_tokens=np.array([row.loss_tokens for row in given], np.int32),
            source_indices=np.array([number[row.source] for row in given], np.uint16),
            source_names=names,
            store_indices=np.zeros(len(given), np.uint16),
            offsets=row_offsets(lengths),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[TokenizedRows]) -> TokenizedRows:
        """The rows of all parts, one part after the other. No token is copied."""
        if len(parts) == 1:
            return parts[0]
        stores = {id(store): store for part in parts for store in part._stores}
        names = tuple(dict.fromkeys(chain.from_iterable(part.source_names for part in parts)))
        at = {key: index for index, key in enumerate(stores)}
        named = {name: index for index, name in enumerate(names)}

        def together(arrays: Iterable[NDArray[Any]], kind: Any) -> NDArray[Any]:
            return np.concatenate([np.empty(0, kind), *arrays]).astype(kind, copy=False)

        def renumbered(index: NDArray[np.uint16], to: Sequence[int]) -> NDArray[np.uint16]:
            return np.array(to or [0], np.uint16)[index]

        return cls(
            list(stores.values()),
            ids=together((part.ids for part in parts), np.uint64),
            lengths=together((part.lengths for part in parts), np.int32),
            loss_tokens=together((part.loss_tokens for part in parts), np.int32),
            source_indices=together(
                (renumbered(part.source_indices, [named[name] for name in part.source_names]) for part in parts),
                np.uint16,
            ),
            source_names=names,
            store_indices=together(
                (renumbered(part._store_indices, [at[id(store)] for store in part._stores]) for part in parts),
                np.uint16,
            ),
            offsets=together((part._offsets for part in parts), np.int64),
        )

    def select(self, indices: Sequence[int] | NDArray[Any]) -> TokenizedRows:
        """The rows with these indices, in this order; one may stand several times. No token is copied."""
        chosen = np.asarray(indices, np.int64)
        return TokenizedRows(
            self._stores,
            ids=self.ids[chosen],
            lengths=self.lengths[chosen],
            loss_tokens=self.loss_tokens[chosen],
            source_indices=self.source_indices[chosen],
            source_names=self.source_names,
            store_indices=self._store_indices[chosen],
            offsets=self._offsets[chosen],
        )

    def tokens(self, index: int) -> StoredTokens:
        """(T,) int32: the tokens of a row."""
        stored = self._stored_tokens(index)
        return stored ^ (stored >> 31)

    def labels(self, index: int) -> StoredTokens:
        """(T,) int32: the labels of a row: the token where it is trained, -100 elsewhere."""
        stored = self._stored_tokens(index)
        return np.where(stored < 0, np.int32(IGNORE_INDEX), stored)

    def source_of(self, index: int) -> str:
        """The source that a row comes from."""
        return self.source_names[self.source_indices[index]]

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> TokenizedExample: ...

    @overload
    def __getitem__(self, index: slice) -> TokenizedRows: ...

    def __getitem__(self, index: int | slice) -> TokenizedExample | TokenizedRows:
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        at = range(len(self))[index]  # negative indices and IndexError as a list has them
        return TokenizedExample(
            f"{int(self.ids[at]):016x}",
            self.source_names[int(self.source_indices[at])],
            tuple(self.tokens(at).tolist()),
            tuple(self.labels(at).tolist()),
        )

    def __iter__(self) -> Iterator[TokenizedExample]:
        return (self[index] for index in range(len(self)))

    def __eq__(self, other: object) -> bool:
        """Whether the rows are the same, ids, sources and labels included."""
        if not isinstance(other, TokenizedRows):
            return NotImplemented
        return (
            len(self) == len(other)
            and all(
                np.array_equal(a, b)
                for a, b in (
                    (self.ids, other.ids),
                    (self.lengths, other.lengths),
                    (self.loss_tokens, other.loss_tokens),
                )
            )
            and all(
                self.source_of(index) == other.source_of(index)
                and np.array_equal(self._stored_tokens(index), other._stored_tokens(index))
                for index in range(len(self))
            )
        )

    __hash__ = None  # type: ignore[assignment]

    def _stored_tokens(self, index: int) -> StoredTokens:
        begin = int(self._offsets[index])
        return self._stores[self._store_indices[index]][begin : begin + int(self.lengths[index])]


def row_offsets(lengths: NDArray[Any]) -> NDArray[np.int64]:
    """(N,) int64: where each row begins when rows of these lengths follow one another."""
    ends: NDArray[np.int64] = np.cumsum(lengths, dtype=np.int64)
    return ends - lengths


def _to_stored_tokens(row: TokenizedExample) -> StoredTokens:
    tokens, labels = np.array(row.input_ids, np.int32), np.array(row.labels, np.int32)
    trained = labels != IGNORE_INDEX
    if len(tokens) != len(labels) or (labels[trained] != tokens[trained]).any():
        raise ValueError(f"the labels of row {row.id} are not its tokens or {IGNORE_INDEX}")
    return np.where(trained, tokens, ~tokens)


def _parse_row_id(row_id: str) -> int:
    if not re.fullmatch("[0-9a-f]{16}", row_id):
        raise ValueError(f"the id {row_id!r} of a row is not 16 hex digits")
    return int(row_id, 16)

"""Tokenized rows as one sequence: tokens in flat arrays on disk or in memory, row objects built on access.

A token and its label are one stored number: a trained token is stored as it is, any other as its complement `~token`,
which is negative::

    input_ids     5    6    7    8
    labels     -100    6    7 -100
    stored       ~5    6    7   ~8      (int32)

The other properties of rows are arrays of a few bytes for each row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from harness.types import IGNORE_INDEX, TokenizedExample

StoredTokens = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class TokenStorage:
    """Where the tokens of N rows are stored.

    Attributes:
        stores: Flat arrays of stored tokens, each (T,) int32.
        store_indices: (N,) uint16, the store of each row.
        offsets: (N,) int64, where in its store each row begins.
    """

    stores: tuple[StoredTokens, ...]
    store_indices: NDArray[np.uint16]
    offsets: NDArray[np.int64]

    def select(self, indices: NDArray[Any]) -> TokenStorage:
        """Return the storage of the rows with these indices. No token is copied."""
        return TokenStorage(self.stores, self.store_indices[indices], self.offsets[indices])


class TokenizedRows(Sequence[TokenizedExample]):
    """Immutable sequence of N rows of one or more sources.

    Attributes:
        ids: (N,) uint64, with `TokenizedExample.id == f"{id:016x}"`.
        lengths: (N,) int32, tokens of each row.
        loss_tokens: (N,) int32, see `TokenizedExample.loss_tokens`.
        source_indices: (N,) uint16, an index into `source_names`.
        source_names: The names of the sources.
    """

    def __init__(
        self,
        storage: TokenStorage,
        *,
        ids: NDArray[np.uint64],
        lengths: NDArray[np.int32],
        loss_tokens: NDArray[np.int32],
        source_indices: NDArray[np.uint16],
        source_names: Sequence[str],
    ) -> None:
        """Store the arrays, see `TokenStorage` and the attributes."""
        self.ids, self.lengths, self.loss_tokens = ids, lengths, loss_tokens
        self.source_indices, self.source_names = source_indices, tuple(source_names)
        self._storage = storage

    @classmethod
    def from_rows(cls, rows: Iterable[TokenizedExample]) -> TokenizedRows:
        """Store rows in memory.

        Raises:
            ValueError: For an id that is not 16 hex digits, and for a label that is neither its token nor -100.
        """
        rows = list(rows)
        names = tuple(dict.fromkeys(row.source for row in rows))
        index_of = {name: index for index, name in enumerate(names)}
        stored = [_to_stored_tokens(row) for row in rows]
        lengths = np.array([len(tokens) for tokens in stored], np.int32)
        store = np.concatenate([np.empty(0, np.int32), *stored])
        return cls(
            TokenStorage((store,), np.zeros(len(rows), np.uint16), row_offsets(lengths)),
            ids=np.array([_parse_row_id(row.id) for row in rows], np.uint64),
            lengths=lengths,
            loss_tokens=np.array([row.loss_tokens for row in rows], np.int32),
            source_indices=np.array([index_of[row.source] for row in rows], np.uint16),
            source_names=names,
        )

    @classmethod
    def concatenate(cls, parts: Sequence[TokenizedRows]) -> TokenizedRows:
        """Return the rows of all parts, one part after the other. No token is copied."""
        if len(parts) == 1:
            return parts[0]
        stores = {id(store): store for part in parts for store in part._storage.stores}
        names = tuple(dict.fromkeys(chain.from_iterable(part.source_names for part in parts)))
        store_position = {key: index for index, key in enumerate(stores)}
        name_position = {name: index for index, name in enumerate(names)}

        def join(arrays: Iterable[NDArray[Any]], dtype: Any) -> NDArray[Any]:
            return np.concatenate([np.empty(0, dtype), *arrays]).astype(dtype, copy=False)

        def remap(indices: NDArray[np.uint16], new_indices: Sequence[int]) -> NDArray[np.uint16]:
            return np.array(new_indices or [0], np.uint16)[indices]

        storages = [part._storage for part in parts]
        store_indices = (
            remap(storage.store_indices, [store_position[id(store)] for store in storage.stores])
            for storage in storages
        )
        source_indices = (
            remap(part.source_indices, [name_position[name] for name in part.source_names]) for part in parts
        )
        return cls(
            TokenStorage(
                tuple(stores.values()),
                join(store_indices, np.uint16),
                join((storage.offsets for storage in storages), np.int64),
            ),
            ids=join((part.ids for part in parts), np.uint64),
            lengths=join((part.lengths for part in parts), np.int32),
            loss_tokens=join((part.loss_tokens for part in parts), np.int32),
            source_indices=join(source_indices, np.uint16),
            source_names=names,
        )

    def select(self, indices: Sequence[int] | NDArray[Any]) -> TokenizedRows:
        """Return the rows with these indices, in this order; an index may repeat. No token is copied."""
        selected = np.asarray(indices, np.int64)
        return TokenizedRows(
            self._storage.select(selected),
            ids=self.ids[selected],
            lengths=self.lengths[selected],
            loss_tokens=self.loss_tokens[selected],
            source_indices=self.source_indices[selected],
            source_names=self.source_names,
        )

    def tokens(self, index: int) -> StoredTokens:
        """Return the tokens of a row, (T,) int32."""
        stored = self._stored_tokens(index)
        return stored ^ (stored >> 31)  # ~token where stored is negative

    def labels(self, index: int) -> StoredTokens:
        """Return the labels of a row, (T,) int32: the token where it is trained, -100 elsewhere."""
        stored = self._stored_tokens(index)
        return np.where(stored < 0, np.int32(IGNORE_INDEX), stored)

    def source_of(self, index: int) -> str:
        """Return the name of a row's source."""
        return self.source_names[int(self.source_indices[index])]

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> TokenizedExample: ...

    @overload
    def __getitem__(self, index: slice) -> TokenizedRows: ...

    def __getitem__(self, index: int | slice) -> TokenizedExample | TokenizedRows:
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        position = range(len(self))[index]  # negative indices and IndexError as in a list
        return TokenizedExample(
            f"{int(self.ids[position]):016x}",
            self.source_names[int(self.source_indices[position])],
            tuple(self.tokens(position).tolist()),
            tuple(self.labels(position).tolist()),
        )

    def __iter__(self) -> Iterator[TokenizedExample]:
        return (self[index] for index in range(len(self)))

    def __eq__(self, other: object) -> bool:
        """Return whether ids, sources, tokens and labels of all rows are equal."""
        if not isinstance(other, TokenizedRows):
            return NotImplemented
        return (
            np.array_equal(self.ids, other.ids)
            and np.array_equal(self.lengths, other.lengths)
            and np.array_equal(self.loss_tokens, other.loss_tokens)
            and all(
                self.source_of(index) == other.source_of(index)
                and np.array_equal(self._stored_tokens(index), other._stored_tokens(index))
                for index in range(len(self))
            )
        )

    __hash__ = None  # type: ignore[assignment]

    def _stored_tokens(self, index: int) -> StoredTokens:
        begin = int(self._storage.offsets[index])
        store = self._storage.stores[int(self._storage.store_indices[index])]
        return store[begin : begin + int(self.lengths[index])]


def row_offsets(lengths: NDArray[Any]) -> NDArray[np.int64]:
    """Return where each row begins when rows of these lengths follow one another, (N,) int64."""
    ends: NDArray[np.int64] = np.cumsum(lengths, dtype=np.int64)
    return np.asarray(ends - lengths, np.int64)


def _to_stored_tokens(row: TokenizedExample) -> StoredTokens:
    tokens, labels = np.array(row.input_ids, np.int32), np.array(row.labels, np.int32)
    is_trained = labels != IGNORE_INDEX
    if len(tokens) != len(labels) or (labels[is_trained] != tokens[is_trained]).any():
        raise ValueError(f"the labels of row {row.id} are not its tokens or {IGNORE_INDEX}")
    return np.where(is_trained, tokens, ~tokens)


def _parse_row_id(row_id: str) -> int:
    if not re.fullmatch("[0-9a-f]{16}", row_id):
        raise ValueError(f"the id {row_id!r} of a row is not 16 hex digits")
    return int(row_id, 16)

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

from harness.types import Row

IGNORED = -100
"""The label of a token that is not trained."""

Stored = NDArray[np.int32]


class Rows(Sequence[Row]):
    """Rows of one or more sources, in a fixed order; nothing in it changes.

    ids: (N,) uint64, with `Row.id == f"{id:016x}"`. lengths: (N,) int32, tokens of each row. loss_tokens: (N,) int32,
    see `Row`. source: (N,) uint16, an index into `source_names`.
    """

    def __init__(
        self,
        stores: Sequence[Stored],
        *,
        ids: NDArray[np.uint64],
        lengths: NDArray[np.int32],
        loss_tokens: NDArray[np.int32],
        source: NDArray[np.uint16],
        source_names: Sequence[str],
        store: NDArray[np.uint16],
        begins: NDArray[np.int64],
    ) -> None:
        """stores: flat tokens, each (T,) int32 as told above. store, begins: (N,), which of them, and where in it."""
        self.ids, self.lengths, self.loss_tokens = ids, lengths, loss_tokens
        self.source, self.source_names = source, tuple(source_names)
        self._stores, self._store, self._begins = tuple(stores), store, begins

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Rows:
        """The rows, in memory.

        Raises ValueError for an id that is no 16 hex digits, and for labels that are neither the token nor -100.
        """
        given = list(rows)
        names = tuple(dict.fromkeys(row.source for row in given))
        number = {name: index for index, name in enumerate(names)}
        parts = [_folded(row) for row in given]
        lengths = np.array([len(part) for part in parts], np.int32)
        return cls(
            [np.concatenate([np.empty(0, np.int32), *parts])],
            ids=np.array([_number(row.id) for row in given], np.uint64),
            lengths=lengths,
            loss_tokens=np.array([row.loss_tokens for row in given], np.int32),
            source=np.array([number[row.source] for row in given], np.uint16),
            source_names=names,
            store=np.zeros(len(given), np.uint16),
            begins=begins_of(lengths),
        )

    @classmethod
    def join(cls, parts: Sequence[Rows]) -> Rows:
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
            source=together(
                (renumbered(part.source, [named[name] for name in part.source_names]) for part in parts), np.uint16
            ),
            source_names=names,
            store=together(
                (renumbered(part._store, [at[id(store)] for store in part._stores]) for part in parts), np.uint16
            ),
            begins=together((part._begins for part in parts), np.int64),
        )

    def take(self, indices: Sequence[int] | NDArray[Any]) -> Rows:
        """The rows with these indices, in this order; one may stand several times. No token is copied."""
        chosen = np.asarray(indices, np.int64)
        return Rows(
            self._stores,
            ids=self.ids[chosen],
            lengths=self.lengths[chosen],
            loss_tokens=self.loss_tokens[chosen],
            source=self.source[chosen],
            source_names=self.source_names,
            store=self._store[chosen],
            begins=self._begins[chosen],
        )

    def tokens(self, index: int) -> Stored:
        """(T,) int32: the tokens of a row."""
        stored = self._stored(index)
        return stored ^ (stored >> 31)

    def labels(self, index: int) -> Stored:
        """(T,) int32: the labels of a row: the token where it is trained, -100 elsewhere."""
        stored = self._stored(index)
        return np.where(stored < 0, np.int32(IGNORED), stored)

    def source_of(self, index: int) -> str:
        """The source that a row comes from."""
        return self.source_names[self.source[index]]

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> Rows: ...

    def __getitem__(self, index: int | slice) -> Row | Rows:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        at = range(len(self))[index]  # negative indices and IndexError as a list has them
        return Row(
            f"{int(self.ids[at]):016x}",
            self.source_names[int(self.source[at])],
            tuple(self.tokens(at).tolist()),
            tuple(self.labels(at).tolist()),
        )

    def __iter__(self) -> Iterator[Row]:
        return (self[index] for index in range(len(self)))

    def __eq__(self, other: object) -> bool:
        """Whether the rows are the same, ids, sources and labels included."""
        if not isinstance(other, Rows):
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
                and np.array_equal(self._stored(index), other._stored(index))
                for index in range(len(self))
            )
        )

    __hash__ = None  # type: ignore[assignment]

    def _stored(self, index: int) -> Stored:
        begin = int(self._begins[index])
        return self._stores[self._store[index]][begin : begin + int(self.lengths[index])]


def begins_of(lengths: NDArray[Any]) -> NDArray[np.int64]:
    """(N,) int64: where each row begins when rows of these lengths follow one another."""
    ends: NDArray[np.int64] = np.cumsum(lengths, dtype=np.int64)
    return ends - lengths


def _folded(row: Row) -> Stored:
    tokens, labels = np.array(row.input_ids, np.int32), np.array(row.labels, np.int32)
    trained = labels != IGNORED
    if len(tokens) != len(labels) or (labels[trained] != tokens[trained]).any():
        raise ValueError(f"the labels of row {row.id} are not its tokens or {IGNORED}")
    return np.where(trained, tokens, ~tokens)


def _number(name: str) -> int:
    if not re.fullmatch("[0-9a-f]{16}", name):
        raise ValueError(f"the id {name!r} of a row is not 16 hex digits")
    return int(name, 16)

"""Tokenized rows: stored without loss, views share their tokens."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.data.tokenization.tokenized_rows import TokenizedRows
from harness.types import TokenizedExample

token_lists = st.lists(st.tuples(st.integers(0, 2**31 - 1), st.booleans()), max_size=12)


@st.composite
def row_lists(draw):
    rows = []
    for number in draw(st.lists(st.integers(0, 2**64 - 1), max_size=6)):
        pairs = draw(token_lists)
        labels = tuple(token if trained else -100 for token, trained in pairs)
        source = draw(st.sampled_from("abc"))
        rows.append(TokenizedExample(f"{number:016x}", source, tuple(token for token, _ in pairs), labels))
    return rows


@given(row_lists())
def test_rows_are_stored_without_loss(examples):
    rows = TokenizedRows.from_rows(examples)
    assert list(rows) == examples
    assert len(rows) == len(examples)
    assert rows.lengths.tolist() == [len(row.input_ids) for row in examples]
    assert rows.loss_tokens.tolist() == [row.loss_tokens for row in examples]
    assert [f"{number:016x}" for number in rows.ids.tolist()] == [row.id for row in examples]
    assert [rows.source_names[number] for number in rows.source_indices] == [row.source for row in examples]
    assert all(type(token) is int for row in rows for token in (*row.input_ids, *row.labels))
    for index, row in enumerate(examples):
        assert rows.tokens(index).tolist() == list(row.input_ids)
        assert rows.labels(index).tolist() == list(row.labels)
        assert rows.source_of(index) == row.source


@given(row_lists(), row_lists(), st.data())
def test_concatenate_and_select_equal_a_list(first, second, data):
    joined = TokenizedRows.concatenate(
        [TokenizedRows.from_rows(first), TokenizedRows.from_rows(second), TokenizedRows.from_rows(first)]
    )
    expected = [*first, *second, *first]
    assert list(joined) == expected
    indices = data.draw(st.lists(st.sampled_from(range(len(expected))), max_size=9)) if expected else []
    assert list(joined.select(indices)) == [expected[index] for index in indices]
    assert list(joined.select(np.array(indices, np.int64)).select(range(len(indices)))) == [
        expected[i] for i in indices
    ]
    assert list(joined[1:4]) == expected[1:4]
    assert list(joined[::-1]) == expected[::-1]


ROWS = [
    TokenizedExample("00000000000000aa", "a", (1, 2, 3), (-100, 2, 3)),
    TokenizedExample("00000000000000bb", "b", (0,), (0,)),
    TokenizedExample("ffffffffffffffff", "a", (7, 8), (-100, -100)),
]


def test_indexing_equals_a_list():
    rows = TokenizedRows.from_rows(ROWS)
    assert rows[-1] == ROWS[-1]
    assert rows[np.int64(1)] == ROWS[1]
    with pytest.raises(IndexError):
        rows[3]
    assert ROWS[0] in rows
    assert rows.index(ROWS[2]) == 2


def test_equality_is_independent_of_storage():
    rows = TokenizedRows.from_rows(ROWS)
    assert rows == TokenizedRows.from_rows(ROWS)
    assert rows.select([1, 0, 2]) != rows
    assert rows.select([1, 0, 2]).select([1, 0, 2]) == rows
    assert TokenizedRows.concatenate([TokenizedRows.from_rows(ROWS[:1]), TokenizedRows.from_rows(ROWS[1:])]) == rows
    other = [TokenizedExample("00000000000000aa", "a", (1, 2, 3), (-100, -100, 3)), *ROWS[1:]]
    assert TokenizedRows.from_rows(other) != rows
    assert rows != ROWS


def test_views_share_the_stored_tokens():
    rows = TokenizedRows.from_rows(ROWS)
    concatenated = TokenizedRows.concatenate([rows, rows.select([2, 0])])
    assert np.shares_memory(rows._stored_tokens(0), concatenated._stored_tokens(4))
    assert len(concatenated._storage.stores) == 1


def test_rows_that_cannot_be_stored_are_refused():
    with pytest.raises(ValueError, match="'row-1' of a row is not 16 hex digits"):
        TokenizedRows.from_rows([TokenizedExample("row-1", "a", (1,), (1,))])
    for labels in ((1, 2), (-100, 2, 4), (-1, 2, 3)):
        with pytest.raises(ValueError, match="are not its tokens or -100"):
            TokenizedRows.from_rows([TokenizedExample("00000000000000aa", "a", (1, 2, 3), labels)])

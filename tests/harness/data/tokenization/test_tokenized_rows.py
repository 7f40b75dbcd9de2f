"""Rows: what was put in comes out, views share their tokens, and nothing of a row is kept as an object."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.data.tokenization.tokenized_rows import TokenizedRows
from harness.types import TokenizedExample

tokens = st.lists(st.tuples(st.integers(0, 2**31 - 1), st.booleans()), max_size=12)


@st.composite
def some_rows(draw):
    made = []
    for number in draw(st.lists(st.integers(0, 2**64 - 1), max_size=6)):
        one = draw(tokens)
        labels = tuple(token if trained else -100 for token, trained in one)
        source = draw(st.sampled_from("abc"))
        made.append(TokenizedExample(f"{number:016x}", source, tuple(token for token, _ in one), labels))
    return made


@given(some_rows())
def test_rows_come_out_as_they_went_in(given):
    rows = TokenizedRows.from_rows(given)
    assert list(rows) == given
    assert len(rows) == len(given)
    assert rows.lengths.tolist() == [len(row.input_ids) for row in given]
    assert rows.loss_tokens.tolist() == [row.loss_tokens for row in given]
    assert [f"{number:016x}" for number in rows.ids.tolist()] == [row.id for row in given]
    assert [rows.source_names[number] for number in rows.source_indices] == [row.source for row in given]
    assert all(type(token) is int for row in rows for token in (*row.input_ids, *row.labels))
    for index, row in enumerate(given):
        assert rows.tokens(index).tolist() == list(row.input_ids)
        assert rows.labels(index).tolist() == list(row.labels)
        assert rows.source_of(index) == row.source


@given(some_rows(), some_rows(), st.data())
def test_joined_and_taken_rows_are_those_of_a_list(first, second, data):
    joined = TokenizedRows.concatenate(
        [TokenizedRows.from_rows(first), TokenizedRows.from_rows(second), TokenizedRows.from_rows(first)]
    )
    whole = [*first, *second, *first]
    assert list(joined) == whole
    chosen = data.draw(st.lists(st.sampled_from(range(len(whole))), max_size=9)) if whole else []
    assert list(joined.select(chosen)) == [whole[index] for index in chosen]
    assert list(joined.select(np.array(chosen, np.int64)).select(range(len(chosen)))) == [whole[i] for i in chosen]
    assert list(joined[1:4]) == whole[1:4]
    assert list(joined[::-1]) == whole[::-1]


ROWS = [
    TokenizedExample("00000000000000aa", "a", (1, 2, 3), (-100, 2, 3)),
    TokenizedExample("00000000000000bb", "b", (0,), (0,)),
    TokenizedExample("ffffffffffffffff", "a", (7, 8), (-100, -100)),
]


def test_indices_are_those_of_a_sequence():
    rows = TokenizedRows.from_rows(ROWS)
    assert rows[-1] == ROWS[-1]
    assert rows[np.int64(1)] == ROWS[1]
    with pytest.raises(IndexError):
        rows[3]
    assert ROWS[0] in rows
    assert rows.index(ROWS[2]) == 2


def test_equal_rows_are_equal_however_they_are_held():
    rows = TokenizedRows.from_rows(ROWS)
    assert rows == TokenizedRows.from_rows(ROWS)
    assert rows.select([1, 0, 2]) != rows
    assert rows.select([1, 0, 2]).select([1, 0, 2]) == rows
    assert TokenizedRows.concatenate([TokenizedRows.from_rows(ROWS[:1]), TokenizedRows.from_rows(ROWS[1:])]) == rows
    other = [TokenizedExample("00000000000000aa", "a", (1, 2, 3), (-100, -100, 3)), *ROWS[1:]]
    assert TokenizedRows.from_rows(other) != rows
    assert rows != ROWS


def test_views_share_the_tokens():
    rows = TokenizedRows.from_rows(ROWS)
    again = TokenizedRows.concatenate([rows, rows.select([2, 0])])
    assert np.shares_memory(rows._stored_tokens(0), again._stored_tokens(4))
    assert len(again._stores) == 1


def test_rows_that_cannot_be_told_apart_later_are_refused():
    with pytest.raises(ValueError, match="'row-1' of a row is not 16 hex digits"):
        TokenizedRows.from_rows([TokenizedExample("row-1", "a", (1,), (1,))])
    for labels in ((1, 2), (-100, 2, 4), (-1, 2, 3)):
        with pytest.raises(ValueError, match="are not its tokens or -100"):
            TokenizedRows.from_rows([TokenizedExample("00000000000000aa", "a", (1, 2, 3), labels)])

"""Rows: what was put in comes out, views share their tokens, and nothing of a row is kept as an object."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.data.tokenization.tokenized_rows import Rows
from harness.types import Row

tokens = st.lists(st.tuples(st.integers(0, 2**31 - 1), st.booleans()), max_size=12)


@st.composite
def some_rows(draw):
    made = []
    for number in draw(st.lists(st.integers(0, 2**64 - 1), max_size=6)):
        one = draw(tokens)
        labels = tuple(token if trained else -100 for token, trained in one)
        source = draw(st.sampled_from("abc"))
        made.append(Row(f"{number:016x}", source, tuple(token for token, _ in one), labels))
    return made


@given(some_rows())
def test_rows_come_out_as_they_went_in(given):
    rows = Rows.of(given)
    assert list(rows) == given
    assert len(rows) == len(given)
    assert rows.lengths.tolist() == [len(row.input_ids) for row in given]
    assert rows.loss_tokens.tolist() == [row.loss_tokens for row in given]
    assert [f"{number:016x}" for number in rows.ids.tolist()] == [row.id for row in given]
    assert [rows.source_names[number] for number in rows.source] == [row.source for row in given]
    assert all(type(token) is int for row in rows for token in (*row.input_ids, *row.labels))
    for index, row in enumerate(given):
        assert rows.tokens(index).tolist() == list(row.input_ids)
        assert rows.labels(index).tolist() == list(row.labels)
        assert rows.source_of(index) == row.source


@given(some_rows(), some_rows(), st.data())
def test_joined_and_taken_rows_are_those_of_a_list(first, second, data):
    joined = Rows.join([Rows.of(first), Rows.of(second), Rows.of(first)])
    whole = [*first, *second, *first]
    assert list(joined) == whole
    chosen = data.draw(st.lists(st.sampled_from(range(len(whole))), max_size=9)) if whole else []
    assert list(joined.take(chosen)) == [whole[index] for index in chosen]
    assert list(joined.take(np.array(chosen, np.int64)).take(range(len(chosen)))) == [whole[i] for i in chosen]
    assert list(joined[1:4]) == whole[1:4]
    assert list(joined[::-1]) == whole[::-1]


ROWS = [
    Row("00000000000000aa", "a", (1, 2, 3), (-100, 2, 3)),
    Row("00000000000000bb", "b", (0,), (0,)),
    Row("ffffffffffffffff", "a", (7, 8), (-100, -100)),
]


def test_indices_are_those_of_a_sequence():
    rows = Rows.of(ROWS)
    assert rows[-1] == ROWS[-1]
    assert rows[np.int64(1)] == ROWS[1]
    with pytest.raises(IndexError):
        rows[3]
    assert ROWS[0] in rows
    assert rows.index(ROWS[2]) == 2


def test_equal_rows_are_equal_however_they_are_held():
    rows = Rows.of(ROWS)
    assert rows == Rows.of(ROWS)
    assert rows.take([1, 0, 2]) != rows
    assert rows.take([1, 0, 2]).take([1, 0, 2]) == rows
    assert Rows.join([Rows.of(ROWS[:1]), Rows.of(ROWS[1:])]) == rows
    other = [Row("00000000000000aa", "a", (1, 2, 3), (-100, -100, 3)), *ROWS[1:]]
    assert Rows.of(other) != rows
    assert rows != ROWS


def test_views_share_the_tokens():
    rows = Rows.of(ROWS)
    again = Rows.join([rows, rows.take([2, 0])])
    assert np.shares_memory(rows._stored(0), again._stored(4))
    assert len(again._stores) == 1


def test_rows_that_cannot_be_told_apart_later_are_refused():
    with pytest.raises(ValueError, match="'row-1' of a row is not 16 hex digits"):
        Rows.of([Row("row-1", "a", (1,), (1,))])
    for labels in ((1, 2), (-100, 2, 4), (-1, 2, 3)):
        with pytest.raises(ValueError, match="are not its tokens or -100"):
            Rows.of([Row("00000000000000aa", "a", (1, 2, 3), labels)])

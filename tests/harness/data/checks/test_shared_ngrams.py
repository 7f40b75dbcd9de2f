"""The index of stretches against a plain search."""

from __future__ import annotations

import random

import pytest

from harness.data.checks.contamination import SharedNgramIndex


def windows(words, size):
    return [tuple(words[at : at + size]) for at in range(len(words) - size + 1)]


@pytest.mark.parametrize("seed", range(8))
def test_the_counts_are_those_of_a_plain_search(seed):
    rng = random.Random(seed)
    texts = [(rng.choices("abc", k=rng.randrange(9)), rng.choice([2, 4])) for _ in range(12)]
    rows = [[*rng.choices("abcd", k=rng.randrange(12)), None, *rng.choices("abcd", k=4)] for _ in range(40)]
    index = SharedNgramIndex(texts, max_rows=3)
    for begin in range(0, len(rows), 7):
        index.scan_rows(rows[begin : begin + 7], begin)
    for number, (words, size) in enumerate(texts):
        found = index.ngrams_of_text(number)
        assert len(found) == len(words)
        for at, window in enumerate(windows(words, size)):
            holders = [row for row, said in enumerate(rows) if window in windows(said, size)]
            assert index.row_counts[found[at]] == len(holders)
            assert index.rows_with_ngram(int(found[at])) == holders[:3]
        assert all(one == -1 for one in found[max(len(words) - size + 1, 0) :])


def test_reading_names_the_rows_that_hold_a_stretch_until_it_is_in_too_many():
    index = SharedNgramIndex([(["a", "b"], 2)], max_rows=2)
    assert index.scan_rows([["a", "b"], ["b", "a"], ["x", "a", "b"]], 10) == {10, 12}
    assert index.scan_rows([["a", "b"]], 13) == set()
    assert index.row_counts.tolist() == [3]


def test_no_stretch_goes_from_one_text_into_the_next_or_over_a_gap():
    index = SharedNgramIndex([(["a"], 1), (["b", "c"], 2)], max_rows=5)
    assert index.scan_rows([["b", None, "c"], ["b"], ["c"]], 0) == set()
    assert index.scan_rows([["a", "b", "c"]], 3) == {3}


def test_texts_too_short_for_a_stretch_have_none():
    index = SharedNgramIndex([(["a"], 3), ([], 3)], max_rows=5)
    assert index.scan_rows([["a", "a", "a"]], 0) == set()
    assert index.ngrams_of_text(0).tolist() == [-1]

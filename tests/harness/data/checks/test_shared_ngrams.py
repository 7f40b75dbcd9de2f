"""The index of shared n-grams against a naive search."""

from __future__ import annotations

import random

import pytest

from harness.data.checks.contamination import SharedNgramIndex


def windows(words, size):
    return [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]


@pytest.mark.parametrize("seed", range(8))
def test_counts_equal_those_of_a_naive_search(seed):
    rng = random.Random(seed)
    texts = [(rng.choices("abc", k=rng.randrange(9)), rng.choice([2, 4])) for _ in range(12)]
    rows = [[*rng.choices("abcd", k=rng.randrange(12)), None, *rng.choices("abcd", k=4)] for _ in range(40)]
    index = SharedNgramIndex(texts, max_rows=3)
    for begin in range(0, len(rows), 7):
        index.scan_rows(rows[begin : begin + 7], begin)
    for text_index, (words, size) in enumerate(texts):
        ngrams = index.ngrams_of_text(text_index)
        assert len(ngrams) == len(words)
        for start, window in enumerate(windows(words, size)):
            matching_rows = [row for row, row_words in enumerate(rows) if window in windows(row_words, size)]
            assert index.row_counts[ngrams[start]] == len(matching_rows)
            assert index.rows_with_ngram(int(ngrams[start])) == matching_rows[:3]
        assert all(ngram == -1 for ngram in ngrams[max(len(words) - size + 1, 0) :])


def test_scan_returns_rows_with_an_ngram_until_it_is_in_too_many():
    index = SharedNgramIndex([(["a", "b"], 2)], max_rows=2)
    assert index.scan_rows([["a", "b"], ["b", "a"], ["x", "a", "b"]], 10) == {10, 12}
    assert index.scan_rows([["a", "b"]], 13) == set()
    assert index.row_counts.tolist() == [3]


def test_no_ngram_crosses_a_text_boundary():
    index = SharedNgramIndex([(["a"], 1), (["b", "c"], 2)], max_rows=5)
    assert index.scan_rows([["b", None, "c"], ["b"], ["c"]], 0) == set()
    assert index.scan_rows([["a", "b", "c"]], 3) == {3}


def test_texts_shorter_than_an_ngram_have_none():
    index = SharedNgramIndex([(["a"], 3), ([], 3)], max_rows=5)
    assert index.scan_rows([["a", "a", "a"]], 0) == set()
    assert index.ngrams_of_text(0).tolist() == [-1]

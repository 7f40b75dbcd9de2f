"""Near duplicates: what is found is right, what is alike is found, and a sample is said to be one."""

from __future__ import annotations

import random

import numpy as np
import pytest

from harness.data.checks.near_duplicates import (
    cross_source_duplicates,
    find_near_duplicates,
    hash_shingles,
    sample_row_indices,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz"
HAN = [chr(0x4E00 + number) for number in range(400)]


def sentences(count, seed=0, words=30):
    rng = random.Random(seed)
    return [" ".join("".join(rng.choices(LETTERS, k=6)) for _ in range(words)) for _ in range(count)]


def placed(texts):
    return [(f"x:{number}", text) for number, text in enumerate(texts, 1)]


def jaccard(one, other):
    one, other = set(hash_shingles(one).tolist()), set(hash_shingles(other).tolist())
    return len(one & other) / len(one | other)


def test_texts_that_have_nothing_in_common_are_no_duplicates():
    found = find_near_duplicates(placed(sentences(50)))
    assert (found.rows, found.examined, found.repeats, found.share, found.worst) == (50, 50, 0, 0.0, ())


def test_a_row_with_one_word_changed_is_named_with_the_row_that_it_repeats_and_their_exact_similarity():
    texts = sentences(20)
    changed = texts[4].replace(texts[4].split()[-1], "another")
    (pair,) = find_near_duplicates(placed([*texts, changed])).worst
    assert (pair.row, pair.earlier) == ("x:21", "x:5")
    assert pair.similarity == pytest.approx(jaccard(texts[4], changed))


def test_nothing_below_the_threshold_counts_however_likely_a_candidate_it_is():
    texts = sentences(1)
    words = texts[0].split()
    for kept in range(len(words)):
        other = " ".join([*words[:kept], *sentences(1, seed=9)[0].split()[kept:]])
        found = find_near_duplicates(placed([texts[0], other]), threshold=0.8)
        assert found.repeats <= (jaccard(texts[0], other) >= 0.8)


def test_nearly_all_pairs_well_above_the_threshold_are_found():
    texts = sentences(100, words=40)
    changed = [" ".join([*text.split()[:-1], "zzzzzz"]) for text in texts]
    assert min(jaccard(one, other) for one, other in zip(texts, changed, strict=True)) > 0.9
    assert find_near_duplicates(placed([*texts, *changed])).repeats >= 98


def test_a_row_copied_many_times_counts_each_time_but_the_first():
    found = find_near_duplicates(placed([sentences(1)[0]] * 30))
    assert found.repeats == 29
    assert {pair.earlier for pair in found.worst} == {"x:1"}


def test_scripts_without_spaces_are_compared_as_well():
    rng = random.Random(1)
    text = "".join(rng.choices(HAN, k=60))
    other = "".join(rng.choices(HAN, k=60))
    found = find_near_duplicates(placed([text, other, text[:-2] + "水火"]))
    assert [(pair.row, pair.earlier) for pair in found.worst] == [("x:3", "x:1")]


def test_case_white_space_and_composition_do_not_count():
    assert hash_shingles("A  Café\n is").tolist() == hash_shingles("a cafe\u0301 is").tolist()
    assert len(hash_shingles("ab")) == 1
    assert len(hash_shingles(" \n")) == 0


def test_blank_rows_are_no_duplicates_of_each_other():
    assert find_near_duplicates(placed(["", " "])).repeats == 0


def test_beyond_the_limit_a_seeded_sample_is_examined_and_its_size_is_told():
    texts = placed([sentences(1)[0]] * 40)
    found = find_near_duplicates(texts, limit=10, seed=3)
    assert (found.rows, found.examined, found.repeats) == (40, 10, 9)
    assert sample_row_indices(40, 10, 3) == sample_row_indices(40, 10, 3) != sample_row_indices(40, 10, 4)
    assert sample_row_indices(40, 10, 3) == sorted(set(sample_row_indices(40, 10, 3)))
    assert list(sample_row_indices(40, 40, 3)) == list(range(40))


def test_progress_is_told():
    told = []
    find_near_duplicates(placed(sentences(3)), progress=lambda phase, done, total, note="", unit="": told.append(done))
    assert told[-1] == 3


def test_rows_of_two_sources_that_are_equal_are_paired_in_order():
    keys = {"a": np.array([5, 1, 9], np.uint64), "b": np.array([9, 7, 5], np.uint64), "c": np.array([2], np.uint64)}
    ((one, other, left, right),) = cross_source_duplicates(keys)
    assert (one, other, left.tolist(), right.tolist()) == ("a", "b", [0, 2], [2, 0])

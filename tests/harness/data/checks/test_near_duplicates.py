"""Near duplicates: reported pairs are right, similar rows are found, and samples are reported."""

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
HAN = [chr(0x4E00 + offset) for offset in range(400)]


def sentences(count, seed=0, words=30):
    rng = random.Random(seed)
    return [" ".join("".join(rng.choices(LETTERS, k=6)) for _ in range(words)) for _ in range(count)]


def with_locations(texts):
    return [(f"x:{number}", text) for number, text in enumerate(texts, 1)]


def jaccard(text, other_text):
    shingles, others = set(hash_shingles(text).tolist()), set(hash_shingles(other_text).tolist())
    return len(shingles & others) / len(shingles | others)


def test_unrelated_texts_are_not_duplicates():
    report = find_near_duplicates(with_locations(sentences(50)))
    assert (report.rows, report.examined, report.repeats, report.share, report.worst) == (50, 50, 0, 0.0, ())


def test_row_with_one_changed_word_is_reported_with_its_exact_similarity():
    texts = sentences(20)
    changed = texts[4].replace(texts[4].split()[-1], "another")
    (pair,) = find_near_duplicates(with_locations([*texts, changed])).worst
    assert (pair.row, pair.earlier) == ("x:21", "x:5")
    assert pair.similarity == pytest.approx(jaccard(texts[4], changed))


def test_pairs_below_the_threshold_do_not_count():
    texts = sentences(1)
    words = texts[0].split()
    for shared in range(len(words)):
        other = " ".join([*words[:shared], *sentences(1, seed=9)[0].split()[shared:]])
        report = find_near_duplicates(with_locations([texts[0], other]), threshold=0.8)
        assert report.repeats <= (jaccard(texts[0], other) >= 0.8)


def test_nearly_all_pairs_well_above_the_threshold_are_found():
    texts = sentences(100, words=40)
    changed = [" ".join([*text.split()[:-1], "zzzzzz"]) for text in texts]
    assert min(jaccard(text, other) for text, other in zip(texts, changed, strict=True)) > 0.9
    assert find_near_duplicates(with_locations([*texts, *changed])).repeats >= 98


def test_each_copy_of_a_row_counts_except_the_first():
    report = find_near_duplicates(with_locations([sentences(1)[0]] * 30))
    assert report.repeats == 29
    assert {pair.earlier for pair in report.worst} == {"x:1"}


def test_unspaced_scripts_are_compared():
    rng = random.Random(1)
    text = "".join(rng.choices(HAN, k=60))
    other = "".join(rng.choices(HAN, k=60))
    report = find_near_duplicates(with_locations([text, other, text[:-2] + "水火"]))
    assert [(pair.row, pair.earlier) for pair in report.worst] == [("x:3", "x:1")]


def test_case_white_space_and_composition_are_ignored():
    assert hash_shingles("A  Café\n is").tolist() == hash_shingles("a cafe\u0301 is").tolist()
    assert len(hash_shingles("ab")) == 1
    assert len(hash_shingles(" \n")) == 0


def test_blank_rows_are_not_duplicates_of_each_other():
    assert find_near_duplicates(with_locations(["", " "])).repeats == 0


def test_sample_above_the_limit_is_seeded_and_its_size_reported():
    texts = with_locations([sentences(1)[0]] * 40)
    report = find_near_duplicates(texts, limit=10, seed=3)
    assert (report.rows, report.examined, report.repeats) == (40, 10, 9)
    assert sample_row_indices(40, 10, 3) == sample_row_indices(40, 10, 3) != sample_row_indices(40, 10, 4)
    assert sample_row_indices(40, 10, 3) == sorted(set(sample_row_indices(40, 10, 3)))
    assert list(sample_row_indices(40, 40, 3)) == list(range(40))


def test_progress_is_reported():
    reported = []
    find_near_duplicates(
        with_locations(sentences(3)), progress=lambda phase, done, total, note="", unit="": reported.append(done)
    )
    assert reported[-1] == 3


def test_equal_rows_of_two_sources_are_paired_in_order():
    keys = {"a": np.array([5, 1, 9], np.uint64), "b": np.array([9, 7, 5], np.uint64), "c": np.array([2], np.uint64)}
    ((first, second, first_rows, second_rows),) = cross_source_duplicates(keys)
    assert (first, second, first_rows.tolist(), second_rows.tolist()) == ("a", "b", [0, 2], [2, 0])

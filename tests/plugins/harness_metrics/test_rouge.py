"""ROUGE compared with ROUGE-1.5.5 and with known values for Chinese."""

from __future__ import annotations

import random
from importlib.metadata import version

import pytest


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("testing", (1 / 2, 0, 1 / 2)),
        ("testing one", (4 / 5, 2 / 3, 4 / 5)),
        ("testing two", (4 / 5, 0, 4 / 5)),
        ("testing one two", (1, 1, 1)),
        ("", (0, 0, 0)),
    ],
)
def test_values_of_the_tests_of_rouge_score(score, answer, expected):
    scores = score("rouge", [answer], ["testing one two"])
    assert (scores["rouge1"], scores["rouge2"], scores["rougeL"]) == pytest.approx(expected)


def test_the_best_reference_counts_for_each_score(score):
    scores = score("rouge", ["text first"], [["first text", "first something"]])
    assert (scores["rouge1"], scores["rouge2"], scores["rougeL"]) == pytest.approx((1, 0, 0.5))


def test_values_of_the_readme_of_evaluate_without_its_random_aggregate(score):
    assert score("rouge", ["hello goodbye", "ankh morpork"], ["goodbye", "general kenobi"])["rouge1"] == pytest.approx(
        (2 / 3 + 0) / 2
    )
    answers, references = ["hello there", "general kenobi"], [["hello", "there"], ["general kenobi", "general yoda"]]
    scores = score("rouge", answers, references)
    assert tuple(scores.values()) == pytest.approx((0.8333, 0.5, 0.8333, 0.8333), abs=1e-4)


def test_rouge_lsum_splits_a_text_into_lines(score):
    # Ground truth of ROUGE-1.5.5: recall 0.8, precision 0.4.
    lines = "w1 w2 w6 w7 w8\nw1 w3 w8 w9 w5"
    assert score("rouge", [lines], ["w1 w2 w3 w4 w5"])["rougeLsum"] == pytest.approx(2 * 0.8 * 0.4 / 1.2)
    swapped = score("rouge", ["Second Sentence.\nFirst sentence."], ["First sentence.\nSecond Sentence."])
    assert (swapped["rougeLsum"], swapped["rougeL"]) == (1.0, pytest.approx(0.5))
    spaced = score("rouge", ["Second Sentence. First sentence."], ["First sentence. Second Sentence."])
    assert spaced["rougeLsum"] == pytest.approx(0.5)


def test_chinese_is_scored_per_character(score):
    scores = score("rouge", ["今天天气很好，我们去公园玩。"], ["今天天气非常好，我们去公园散步。"])
    assert tuple(scores.values()) == pytest.approx((0.8, 0.642857, 0.8, 0.8), abs=1e-6)


@pytest.mark.parametrize("stem", [False, True])
def test_english_scores_equal_those_of_rouge_score(score, stem):
    from rouge_score.rouge_scorer import RougeScorer

    theirs = RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"], use_stemmer=stem)
    draw = random.Random(0)
    vocabulary = ["The", "dogs", "dog's", "were", "running", "runs", "in", "2", "parks,", "easily", "e-mail"]
    for _ in range(30):
        answer, reference = (" ".join(draw.choices(vocabulary, k=draw.randint(1, 9))) for _ in range(2))
        expected = {name: value.fmeasure for name, value in theirs.score(reference, answer).items()}
        assert score("rouge", [answer], [reference], stem=stem) == pytest.approx(expected)


def test_signature_names_version_and_options(metric):
    assert metric("rouge").signature() == f"rouge|tok:harness-cjk2|stem:no|version:{version('rouge-score')}"
    assert "|stem:yes|" in metric("rouge", stem=True).signature()

"""pass@k: the share of subsets of k answers with a right one."""

from __future__ import annotations

from itertools import combinations

import pytest
from harness_metrics.pass_at_k import pass_probability

from harness import HarnessError, Item


def item(*answers: str) -> Item:
    return Item("a", "p", "42", answers[0], more_answers=tuple(answers[1:]))


@pytest.mark.parametrize(("n", "correct", "k"), [(1, 1, 1), (5, 0, 3), (5, 2, 1), (6, 2, 3), (6, 5, 3), (4, 4, 4)])
def test_the_estimate_is_the_share_of_all_subsets_with_a_right_answer(n, correct, k):
    subsets = list(combinations([True] * correct + [False] * (n - correct), k))
    assert pass_probability(n, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_each_k_is_a_score(metric):
    instance = metric("pass_at_k", k=[1, 3], extract="#### (.*)")
    assert instance.score_names == ("pass_at_1", "pass_at_3")
    assert instance.min_samples == 3
    answers = ["so #### 41", "#### 42", "42", "thus #### 42."]
    assert instance.statistics(item(*answers)) == {"pass_at_1": (0.5, 1.0), "pass_at_3": (1.0, 1.0)}
    assert instance.signature() == (
        "pass_at_k|estimator:unbiased|exact_match|norm:case+punctuation+articles|extract:'#### (.*)'|version:1"
    )


def test_pass_at_1_of_one_answer_is_exact_match(metric, score):
    answers, references = ["the cat", "dog", "1"], ["cat", "cat", "1"]
    assert score("pass_at_k", answers, references)["pass_at_1"] == pytest.approx(
        score("exact_match", answers, references)["exact_match"]
    )


def test_too_few_answers_are_an_error_with_the_key_to_set(metric):
    with pytest.raises(HarnessError, match=r'item a: has 2 answers, but pass_at_3 needs 3; set "samples" .* 3 or more'):
        metric("pass_at_k", k=[1, 3]).statistics(item("42", "41"))


def test_a_wrong_pattern_names_the_metric_of_the_spec(metric):
    with pytest.raises(HarnessError, match=r"metrics\.pass_at_k\.extract"):
        metric("pass_at_k", extract="(")

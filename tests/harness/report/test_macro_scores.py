"""A score that is not a function of sums, such as a macro F1, in every part of a report."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support.paths import ROOT

from harness.evaluation.scoring import item_values, score_items
from harness.report.linearized_scores import linearize_score
from harness.report.paired_difference import compare_scores, score_difference
from harness.report.slices import slice_changes
from harness.report.stage_suite_matrix import _Column
from harness.statistics.seeds import pool_over_seeds
from harness.types import Evaluation, Item

LABELS = ("red", "green", "blue")
IDS = [f"item-{number}" for number in range(90)]


@pytest.fixture
def macro_f1(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tests" / "third_party" / "harness-example")
    from harness_example.macro_f1 import MacroF1

    return MacroF1(LABELS)


@pytest.fixture
def evaluate(macro_f1):
    """Return a function that evaluates a classifier: a share of its answers is right."""

    def run(stage, skill):
        generator = np.random.default_rng(stage)
        items = []
        for number, item_id in enumerate(IDS):
            reference = LABELS[number % 3]
            answer = reference if generator.random() < skill else LABELS[int(generator.integers(3))]
            slices = (("half", "first" if number < 45 else "second"),)
            items.append(Item(item_id, "p", reference, answer, "eos", slices=slices))
        (score,) = score_items(items, {"macro_f1": macro_f1}, suite="desk", stage=stage)
        return Evaluation(stage, "desk", tuple(items), (score,)), score

    return run


def f1_by_hand(items):
    scores = []
    for label in LABELS:
        hits = sum(item.answer == item.reference == label for item in items)
        precision = hits / sum(item.answer == label for item in items)
        recall = hits / sum(item.reference == label for item in items)
        scores.append(2 * precision * recall / (precision + recall))
    return sum(scores) / len(scores)


def test_the_value_and_its_interval(evaluate, macro_f1):
    evaluation, score = evaluate(1, 0.7)
    assert score.value == pytest.approx(f1_by_hand(evaluation.items))
    assert (score.method, score.n) == ("bootstrap", 90)
    assert score.low < score.value < score.high
    assert set(item_values(score, macro_f1)) == {0.0, 1.0}


@pytest.mark.slow
def test_comparison_slices_and_matrix_use_the_items(evaluate, macro_f1):
    before, after = evaluate(0, 0.9), evaluate(1, 0.4)
    difference = score_difference(before, after, macro_f1).difference
    assert difference.value == pytest.approx(f1_by_hand(after[0].items) - f1_by_hand(before[0].items))
    assert difference.high < 0.0
    compared = compare_scores(before, after, IDS[:60], macro_f1, seed=0, trials=300)
    assert (compared.n, compared.test) == (60, "approximate randomisation")
    assert compared.first.value == pytest.approx(f1_by_hand(before[0].items[:60]))
    assert compared.p < 0.05
    slices = list(slice_changes(before, after, macro_f1))
    assert [(each.value, each.n) for each in slices] == [("first", 45), ("second", 45)]
    assert slices[1].after.value == pytest.approx(f1_by_hand(after[0].items[45:]))
    level = pool_over_seeds([linearize_score(after, IDS, macro_f1)]).estimate
    assert (level.value, level.stderr) == pytest.approx((after[1].value, after[1].stderr))
    loss = _Column((before, after), macro_f1, None, True).relative_loss()
    assert loss.value == pytest.approx(100 * (before[1].value - after[1].value) / before[1].value)
    assert loss.low > 0.0


def test_answers_that_are_no_label_are_counted(evaluate, macro_f1):
    items = [replace(item, answer="purple") for item in evaluate(0, 1.0)[0].items[:10]]
    (score,) = score_items(items, {"macro_f1": macro_f1})
    assert (score.value, score.counts["unparsed"]) == (0.0, 10)

"""Right → wrong and wrong → right are counted per item, with Wilson's interval and the part that guessing explains."""

from __future__ import annotations

import math
import random

import pytest

from harness.interfaces.metric import Metric
from harness.report.display_text import describe_flips
from harness.report.flips import find_flips
from harness.statistics.intervals import wilson
from harness.types import Evaluation, Item, Score


class Mean(Metric):
    requires = "answer"
    score_names = ("right",)

    def aggregate(self, name, total):
        return total[0] / total[1] if total[1] else math.nan


class Loss(Mean):
    higher_is_better = False


def evaluation(stage, values, choices=(), finish="eos"):
    items = tuple(
        Item(f"id{i}", f"question {i}", f"reference {i}", f"answer {stage}.{i}", finish, choices=choices)
        for i in range(len(values))
    )
    statistics = tuple((float(value), 1.0) for value in values)
    score = Score(stage, "general", "mean", "right", 0.0, len(values), 0.0, 0.0, 0.0, True, "s", statistics)
    return Evaluation(stage, "general", items, (score,))


def test_flips_are_counted_in_both_directions_with_wilsons_interval():
    before = [1] * 20 + [0] * 20
    after = [1] * 17 + [0] * 3 + [0] * 19 + [1]
    flips = find_flips(evaluation(0, before), evaluation(1, after), Mean(), "right")
    assert (flips.lost.value, flips.gained.value) == (3 / 40, 1 / 40)
    assert (flips.lost.low, flips.lost.high) == pytest.approx(wilson(3, 40))
    assert [item.id for item in flips.worse] == ["id17", "id18", "id19"]
    (gained,) = flips.better
    assert (gained.id, gained.before.answer, gained.after.answer) == ("id39", "answer 0.39", "answer 1.39")
    assert flips.guessed is None
    assert describe_flips(flips)[0] == "right → wrong: 3 of 40, 7.5 % [2.6, 19.9]"


def test_an_answer_that_was_cut_is_marked():
    flips = find_flips(evaluation(0, [1]), evaluation(1, [0], finish="length"), Mean(), "right")
    assert (flips.worse[0].before.finish, flips.worse[0].after.finish) == ("eos", "length")


def test_other_scores_list_the_items_that_moved_most_in_the_better_direction():
    before = [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, math.nan]
    after = [0.1, 0.2, 0.3, 0.4, 0.9, 0.5, 0.5]
    flips = find_flips(evaluation(0, before), evaluation(1, after), Mean(), "right")
    assert (flips.lost, flips.gained) == (None, None)
    assert [item.id for item in flips.worse] == ["id0", "id1", "id2"], "the three largest"
    assert [item.id for item in flips.better] == ["id4"]
    flips = find_flips(evaluation(0, before), evaluation(1, after), Loss(), "right")
    assert [item.id for item in flips.worse] == ["id4"]


def test_guessing_alone_explains_the_flips_of_a_model_that_always_guesses():
    """Two models that know half of the answers and guess the rest: all flips are expected by chance."""
    draw = random.Random(0)
    items, choices = 20_000, 4
    known = [draw.random() < 0.5 for _ in range(items)]
    before, after = ([int(k or draw.random() < 1 / choices) for k in known] for _ in range(2))
    # A model that guesses twice forgets nothing, yet loses 0.5 · 1/4 · 3/4 = 9.4 % of the items.
    flips = find_flips(evaluation(0, before, tuple("abcd")), evaluation(1, after, tuple("abcd")), Mean(), "right")
    assert flips.lost.value == pytest.approx(0.09375, abs=0.01)
    # (1 − 0.625)² / 3 = 4.7 %: the model of independent guesses explains half of them here.
    assert flips.guessed == pytest.approx(0.375**2 / 3, abs=0.005)


def test_evaluations_without_the_score_have_no_flips():
    first = evaluation(0, [1, 0])
    assert find_flips(first, Evaluation(1, "general", first.items, ()), Mean(), "right") is None

"""The contract of metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

from harness.evaluation.metric_values import iter_values, with_values
from harness.interfaces.metric import Metric, MetricInput
from harness.testing.checks.declaration import check_light_creation
from harness.testing.component_under_test import CheckSkipped, ComponentUnderTest, require
from harness.types import Item

_MEASURED: dict[str, Any] = {
    "kl": 0.4, "agreed": 1, "choices": ("yes", "never"), "gold": 1, "text_nll": 20.0, "text_tokens": 7
}  # fmt: skip
_MAT = "the cat sat on the mat"
ITEMS = (
    Item("a", "Where did the cat sit?", _MAT, _MAT, "eos", 3.0, 6, choice_lls=(-2.0, -1.0), **_MEASURED),
    Item("b", "What time is it?", "it is 4 pm", "it is noon", "eos", 9.5, 4, choice_lls=(-2.0, -5.0), **_MEASURED),
    Item("c", "Will it rain?", "never", "", "empty", 2.5, 1, choice_lls=(-2.0, -2.5), **_MEASURED),
)
"""A right answer, a wrong one and an empty one, each with everything that a metric may require."""


def check_members(subject: ComponentUnderTest) -> None:
    """It declares its input, its scores and their direction."""
    metric = subject.create()
    require(metric.requires in get_args(MetricInput), f"`requires` is {metric.requires!r}")
    require(metric.score_names, "`score_names` is empty")
    require(metric.higher_is_better in (True, False, None), f"`higher_is_better` is {metric.higher_is_better!r}")


def check_signature(subject: ComponentUnderTest) -> None:
    """The signature is one line of text."""
    signature = subject.create().signature()
    require(signature == signature.strip() != "" and "\n" not in signature, f"the signature is {signature!r}")


def check_score_names(subject: ComponentUnderTest) -> None:
    """The statistics have exactly the declared scores."""
    metric = subject.create()
    names = set(metric.statistics(_measured_items(subject, metric)[0]))
    require(names == set(metric.score_names), f"the statistics have {sorted(names)}, not {sorted(metric.score_names)}")


def check_additivity(subject: ComponentUnderTest) -> None:
    """Counting every item twice does not change a score."""
    metric = subject.create()
    statistics = [metric.statistics(item) for item in _measured_items(subject, metric)]
    for score in metric.score_names:
        vectors = [item_statistics[score] for item_statistics in statistics]
        require(len({len(vector) for vector in vectors}) == 1, f"the vectors of {score!r} differ in length: {vectors}")
        value = _aggregate(metric, score, vectors)
        require(not math.isnan(value), f"the score {score!r} of three items is not a number")
        twice = _aggregate(metric, score, vectors * 2)
        require(
            math.isclose(twice, value, rel_tol=1e-6, abs_tol=1e-12),
            f"the score {score!r} of three items is {value}, but {twice} if each of them is counted twice",
        )


def check_is_ratio(subject: ComponentUnderTest) -> None:
    """A score with `is_ratio` is the first statistic divided by the second, up to a factor."""
    metric = subject.create()
    for score in metric.score_names:
        if metric.is_ratio(score):
            factor, value = metric.aggregate(score, (1.0, 1.0)), metric.aggregate(score, (3.0, 8.0))
            require(math.isclose(value, factor * 3 / 8, rel_tol=1e-6), f"{score!r} of (3, 8) is {value}")


def check_is_parsed(subject: ComponentUnderTest) -> None:
    """`is_parsed` returns a truth value, also for an empty answer."""
    metric = subject.create()
    for item in _complete(ITEMS, subject, metric):
        result = metric.is_parsed(item)
        require(type(result).__name__ in ("bool", "bool_"), f"it returned {result!r} for the answer {item.answer!r}")


def check_available(subject: ComponentUnderTest) -> None:
    """`check_available` passes with the options of the example."""
    subject.create().check_available()


def check_direction(subject: ComponentUnderTest) -> None:
    """A better answer has a better score."""
    metric = subject.create()
    if metric.requires == "model":
        raise CheckSkipped("its scores are those of the model, not of an answer")
    read: dict[str, Any] = {"choices": ("yes", "no"), "gold": 0, "text_tokens": 7}
    best = Item("a", "Q", _MAT, subject.example.better, "eos", 0.5, 6, kl=0.1, agreed=6, text_nll=1.0,
                choice_lls=(-1.0, -9.0), **read)  # fmt: skip
    worst = Item("a", "Q", _MAT, subject.example.worse, "eos", 30.0, 6, kl=3.0, agreed=2, text_nll=50.0,
                 choice_lls=(-9.0, -1.0), **read)  # fmt: skip
    hint = "declare Component(example=ComponentExample(better=…, worse=…))"
    for score in metric.score_names:
        high, low = (
            _aggregate(metric, score, [metric.statistics(item)[score]])
            for item in with_values(_complete((best, worst), subject, metric), metric)
        )
        require(high != low, f"{score!r} is {high} for both answers; {hint}")
        is_right = metric.higher_is_better is None or (high > low) is metric.higher_is_better
        require(is_right, f"{score!r} is {high} for the better answer and {low} for the worse one; {hint}")


def _measured_items(subject: ComponentUnderTest, metric: Metric) -> Sequence[Item]:
    """Return the items with all that the statistics need; values of the model are those of the tiny model."""
    items = _complete(ITEMS, subject, metric)
    if metric.requires != "model":
        return with_values(items, metric)
    import torch

    with torch.no_grad():
        measured = metric.measure(subject.build_model().eval(), subject.tokenizer, items)
        values = dict(iter_values(metric, items, "measure", measured))
    return with_values(items, metric, [values[index] for index in range(len(items))])


def _complete(items: Sequence[Item], subject: ComponentUnderTest, metric: Metric) -> list[Item]:
    """Return items with the columns of the component's example, and with as many answers as the metric needs."""
    more_answers = (_MAT,) * (metric.min_samples - 1)
    return [replace(item, data=subject.example.data, more_answers=more_answers) for item in items]


def _aggregate(metric: Metric, name: str, vectors: Sequence[Sequence[float]]) -> float:
    """Return a score of items, from their statistics."""
    if metric.sums_statistics:
        return metric.aggregate(name, [sum(column) for column in zip(*vectors, strict=True)])
    import numpy

    return metric.aggregate_items(name, numpy.array(vectors))


CHECKS = (
    check_light_creation,
    check_members,
    check_signature,
    check_score_names,
    check_additivity,
    check_is_ratio,
    check_is_parsed,
    check_available,
    check_direction,
)

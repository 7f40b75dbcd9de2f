"""Fixtures that create a metric as a run does, and score lists of texts with it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import harness_metrics
import pytest

from harness import Item, Metric

Score = Callable[..., dict[str, float]]


def create_metric(name: str, **options: Any) -> Metric:
    component = harness_metrics.harness_metrics()[name]
    module, factory = component.factory.split(":")
    defaults = {key: schema["default"] for key, schema in component.options.items() if "default" in schema}
    return getattr(importlib.import_module(module), factory)(**(defaults | options))


def sum_statistics(
    metric: Metric, answers: Sequence[str], references: Sequence[str | list[str]]
) -> dict[str, list[float]]:
    sums: dict[str, list[float]] = {}
    for index, (answer, reference) in enumerate(zip(answers, references, strict=True)):
        if isinstance(reference, str):
            statistics = metric.statistics(Item(str(index), "", reference, answer))
        else:
            statistics = metric.answer_statistics(answer, reference)
        for name, vector in statistics.items():
            sums[name] = [x + y for x, y in zip(sums.get(name, [0.0] * len(vector)), vector, strict=True)]
    return sums


@pytest.fixture
def metric() -> Callable[..., Metric]:
    """Return a function that creates a metric by name, with the defaults of its schema."""
    return create_metric


@pytest.fixture
def score() -> Score:
    """Return a function that scores answers against references (one string each, or a list)."""

    def score_answers(name: str, answers: Sequence[str], references: Sequence[Any], **options: Any) -> dict[str, float]:
        instance = create_metric(name, **options)
        return {
            key: instance.aggregate(key, sums) for key, sums in sum_statistics(instance, answers, references).items()
        }

    return score_answers

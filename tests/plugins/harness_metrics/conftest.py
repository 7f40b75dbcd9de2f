"""How the tests of metrics make one as a run does, and score lists of texts with it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import harness_metrics
import pytest

from harness import Item, Metric

Score = Callable[..., dict[str, float]]


def make(name: str, **options: Any) -> Metric:
    component = harness_metrics.harness_metrics()[name]
    module, factory = component.factory.split(":")
    defaults = {key: schema["default"] for key, schema in component.options.items() if "default" in schema}
    return getattr(importlib.import_module(module), factory)(**(defaults | options))


def total(metric: Metric, answers: Sequence[str], references: Sequence[str | list[str]]) -> dict[str, list[float]]:
    sums: dict[str, list[float]] = {}
    for index, (answer, reference) in enumerate(zip(answers, references, strict=True)):
        if isinstance(reference, str):
            given = metric.statistics(Item(str(index), "", reference, answer))
        else:
            given = metric.answer_statistics(answer, reference)
        for name, vector in given.items():
            sums[name] = [x + y for x, y in zip(sums.get(name, [0.0] * len(vector)), vector, strict=True)]
    return sums


@pytest.fixture
def metric() -> Callable[..., Metric]:
    """A metric by its name, its defaults filled in from its schema."""
    return make


@pytest.fixture
def score() -> Score:
    """The values of a metric over answers and references (a string each, or a list)."""

    def scored(name: str, answers: Sequence[str], references: Sequence[Any], **options: Any) -> dict[str, float]:
        made = make(name, **options)
        return {key: made.aggregate(key, sums) for key, sums in total(made, answers, references).items()}

    return scored

"""Other weights that a stage's mitigations offered to be measured, e.g. a sweep between two models: `variants.json`.

Knows scores and how a run keeps them; not how the weights came to be, nor how they are shown.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from harness.interfaces.metric import Metric
from harness.report.run_report import estimate_of_score
from harness.seeding import derive_seed
from harness.spec.arms import is_summary_axis
from harness.statistics.intervals import Estimate, difference
from harness.types import Evaluation


def variant_scores_as_dicts(
    variant_evaluations: Sequence[Evaluation],
    evaluations: Sequence[tuple[Evaluation, ...]],
    metrics: Mapping[str, Mapping[str, Metric]],
    *,
    seed: int,
) -> list[dict[str, Any]]:
    """Every score of a variant, with its `change`: the paired difference to where the run's report begins.

    variant_evaluations: of the variant. evaluations: of the run so far, the base first. metrics: suite -> metric name
    -> instance.
    """
    first = {one.suite: one for stage in reversed(evaluations) for one in stage}
    made = []
    for one in variant_evaluations:
        before = {(score.metric, score.name): score for score in first[one.suite].scores}
        for score in one.scores:
            old, metric = before.get((score.metric, score.name)), metrics[one.suite][score.metric]
            change = None
            if old is not None:
                change = difference(
                    old.statistics,
                    score.statistics,
                    partial(metric.aggregate, score.name),
                    seed=derive_seed(seed, "report", one.suite),
                    ratio=metric.is_ratio(score.name),
                )
            facts = {"suite": one.suite, "score": score.name, "higher_is_better": score.higher_is_better}
            made.append(
                {**facts, **asdict(estimate_of_score(score)), "change": None if change is None else asdict(change)}
            )
    return made


@dataclass(frozen=True)
class WeightVariant:
    """Weights that were measured and are not the stage's result. parameter_value: the number after the name's `=`, NaN
    without one.

    changes: `suite/score` -> (difference to the base model, whether higher is better), of scores with a direction.
    """

    stage: str
    mitigation: str
    name: str
    parameter_value: float
    changes: Mapping[str, tuple[Estimate, bool]]

    def improvement_on(self, score: str) -> Estimate | None:
        """How much better than the base model it is by this score, positive for the better; None: not measured."""
        if score not in self.changes:
            return None
        change, higher = self.changes[score]
        return change if higher else negated(change)

    def degradation_on(self, score: str) -> Estimate | None:
        """How much worse, positive for the worse; None where it was not measured, or for a summary of the matrix."""
        found = None if is_summary_axis(score) else self.improvement_on(score)
        return None if found is None else negated(found)


def parse_variants(document: Mapping[str, Any]) -> tuple[WeightVariant, ...]:
    """The variants that a `variants.json` holds. Raises KeyError, TypeError or ValueError for one that is none."""
    return tuple(
        WeightVariant(
            str(one["stage"]),
            str(one["mitigation"]),
            str(one["variant"]),
            _parse_parameter_value(str(one["variant"])),
            dict(_parse_changes(one["scores"])),
        )
        for one in document.get("variants", ())
    )


def negated(estimate: Estimate) -> Estimate:
    """The same with its sign changed."""
    return Estimate(-estimate.value, estimate.stderr, -estimate.high, -estimate.low, estimate.n, estimate.method)


def _parse_changes(scores: Iterable[Mapping[str, Any]]) -> Iterable[tuple[str, tuple[Estimate, bool]]]:
    for one in scores:
        given = one.get("change")
        if given is not None and one["higher_is_better"] is not None:
            value, stderr, low, high = (
                math.nan if given[key] is None else float(given[key]) for key in ("value", "stderr", "low", "high")
            )
            change = Estimate(value, stderr, low, high, int(given["n"]), str(given["method"]))
            yield f"{one['suite']}/{one['score']}", (change, bool(one["higher_is_better"]))


def _parse_parameter_value(name: str) -> float:
    try:
        return float(name.rpartition("=")[2])
    except ValueError:
        return math.nan

"""Weight variants of a stage that mitigations offer for evaluation, e.g. interpolated weights: `variants.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from harness.interfaces.metric import Metric
from harness.report.finished_run import parse_estimate
from harness.report.paired_difference import score_difference
from harness.report.score_change import estimate_of_score
from harness.spec.arms import is_summary_axis
from harness.statistics.intervals import Estimate
from harness.types import Evaluation


def variant_scores_as_dicts(
    variant_evaluations: Sequence[Evaluation],
    evaluations: Sequence[tuple[Evaluation, ...]],
    metrics: Mapping[str, Mapping[str, Metric]],
) -> list[dict[str, Any]]:
    """Return every score of a variant as plain data, with its `change`.

    The change is the paired difference to the run's first evaluation of the suite; None if that has no such score.

    Args:
        variant_evaluations: Evaluations of the variant.
        evaluations: Evaluations of the run so far, one tuple per stage, the base first.
        metrics: Suite -> metric name -> metric.
    """
    first = {evaluation.suite: evaluation for stage in reversed(evaluations) for evaluation in stage}
    scores = []
    for evaluation in variant_evaluations:
        for score in evaluation.scores:
            first_score, metric = first[evaluation.suite].matching_score(score), metrics[evaluation.suite][score.metric]
            change = None
            if first_score is not None:
                change = score_difference(
                    (first[evaluation.suite], first_score), (evaluation, score), metric
                ).difference
            scores.append(
                {
                    "suite": evaluation.suite,
                    "score": score.name,
                    "higher_is_better": score.higher_is_better,
                    **asdict(estimate_of_score(score)),
                    "change": None if change is None else asdict(change),
                }
            )
    return scores


@dataclass(frozen=True)
class WeightVariant:
    """Weights that were evaluated but are not the result of the stage.

    Attributes:
        stage: Name of the stage.
        mitigation: Name of the mitigation.
        name: Name of the variant.
        parameter_value: The number after `=` in the name; NaN without one.
        changes: `suite/score` -> (difference to the base model, whether higher is better), of scores with a direction.
    """

    stage: str
    mitigation: str
    name: str
    parameter_value: float
    changes: Mapping[str, tuple[Estimate, bool]]

    def improvement_on(self, score: str) -> Estimate | None:
        """Return the improvement over the base model, positive if better; None if the score was not measured."""
        if score not in self.changes:
            return None
        change, higher_is_better = self.changes[score]
        return change if higher_is_better else negated(change)

    def degradation_on(self, score: str) -> Estimate | None:
        """Return the deterioration, positive if worse; None if not measured, or for a summary of the matrix."""
        improvement = None if is_summary_axis(score) else self.improvement_on(score)
        return None if improvement is None else negated(improvement)


def parse_variants(document: Mapping[str, Any]) -> tuple[WeightVariant, ...]:
    """Return the variants of a `variants.json`.

    Raises:
        KeyError, TypeError, ValueError: The document is not a valid `variants.json`.
    """
    return tuple(
        WeightVariant(
            stage=str(variant["stage"]),
            mitigation=str(variant["mitigation"]),
            name=str(variant["variant"]),
            parameter_value=_parse_parameter_value(str(variant["variant"])),
            changes={
                f"{score['suite']}/{score['score']}": (parse_estimate(score["change"]), bool(score["higher_is_better"]))
                for score in variant["scores"]
                if score.get("change") is not None and score["higher_is_better"] is not None
            },
        )
        for variant in document.get("variants", ())
    )


def negated(estimate: Estimate) -> Estimate:
    """Return the estimate with its sign changed."""
    return estimate.scaled(-1)


def _parse_parameter_value(name: str) -> float:
    try:
        return float(name.rpartition("=")[2])
    except ValueError:
        return math.nan

"""Compute scores and their uncertainty from items, without a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from harness.errors import HarnessError, RunError
from harness.evaluation.metric_values import with_values
from harness.interfaces.metric import Metric
from harness.spec.preflight import duplicate_score_names
from harness.statistics.intervals import estimate
from harness.statistics.item_statistics import ItemsAggregate, groups_of, score_function, score_of
from harness.types import Evaluation, Item, LimitViolation, Score, Suite


def find_limit_violations(
    suite: Suite, stage: int, items: Sequence[Item], scores: Sequence[Score]
) -> tuple[LimitViolation, ...]:
    """Return the limits of the suite that its items exceed.

    The limits are `max_empty`, `max_truncated`, `max_unparsed` and `max_cut`.

    Args:
        suite: The suite with its limits.
        stage: Index of the stage.
        items: The measured items.
        scores: The scores of the items; their counts include `unparsed`.
    """
    answered = [item for item in items if item.answer is not None]
    counts = (
        ("empty", suite.max_empty, sum(item.finish == "empty" for item in answered), len(answered), ""),
        ("truncated", suite.max_truncated, sum(item.finish == "length" for item in answered), len(answered), ""),
        ("cut", suite.max_cut, sum(item.prompt_cut or item.row_cut for item in items), len(items), ""),
        *(
            ("unparsed", suite.max_unparsed, score.counts["unparsed"], score.n, score.metric)
            for score in _one_score_per_metric(scores)
            if "unparsed" in score.counts
        ),
    )
    return tuple(
        LimitViolation(stage, suite.name, what, count, n, allowed, metric)
        for what, allowed, count, n, metric in counts
        if allowed is not None and n and count > allowed * n
    )


def raise_on_violations(evaluations: Iterable[Evaluation], *, first_stage: int = 0) -> None:
    """Raise an error with every limit that the evaluations exceed. Call it after everything is saved.

    Args:
        evaluations: The evaluations.
        first_stage: The first stage that counts. A pretrained base model (stage 0) may be unable to end an answer
            under a chat template. A run that trains it to do so must not fail because of that.

    Raises:
        RunError: A limit is exceeded (exit code 1).
    """
    violations = [
        violation
        for evaluation in evaluations
        if evaluation.stage >= first_stage
        for violation in evaluation.violations
    ]
    if violations:
        descriptions = [
            f"evaluate.{violation.suite}.max_{violation.what}: after stage {violation.stage} {violation}"
            for violation in violations
        ]
        hint = "read the answers in the run's folder; check the template, max_new_tokens and stop"
        raise RunError("; ".join(descriptions), "the scores do not measure the model", hint)


def _one_score_per_metric(scores: Sequence[Score]) -> Iterator[Score]:
    yield from {score.metric: score for score in scores}.values()


def item_values(score: Score, metric: Metric) -> list[float]:
    """Return the score of each item alone, in the order of the suite's items.

    Of a corpus score, such as BLEU, it is what the metric returns for that item alone.
    """
    aggregate = score_function(metric, score.name)
    if isinstance(aggregate, ItemsAggregate):
        return [score_of(aggregate, np.array([vector])) for vector in score.statistics]
    return [float(aggregate(list(map(float, vector)))) for vector in score.statistics]


_COUNTERS: dict[str, dict[str, Callable[[Item], bool]]] = {
    "answer": {
        "empty": lambda item: item.finish == "empty",
        "truncated": lambda item: item.finish == "length",
        "prompt_cut": lambda item: item.prompt_cut,
    },
    "likelihood": {"row_cut": lambda item: item.row_cut},
    "base": {"row_cut": lambda item: item.row_cut},
    "choices": {"row_cut": lambda item: item.row_cut, "boundary": lambda item: item.joined > 0},
    "text": {},
    "model": {},
}
"""`Metric.requires` -> name of a count -> whether an item belongs to it."""


def score_items(
    items: Sequence[Item],
    metrics: Mapping[str, Metric],
    *,
    suite: str = "",
    stage: int = 0,
    computed: Mapping[str, Sequence[Any]] | None = None,
) -> tuple[Score, ...]:
    """Compute every score of the metrics from a suite's items, with standard error, 95 % interval and counts.

    Args:
        items: The measured items.
        metrics: Name -> metric.
        suite: Name of the suite.
        stage: Index of the stage.
        computed: Metric -> its value of each item, for metrics that compute values; None: `prepare` computes them.

    Raises:
        HarnessError: An item lacks what a metric requires, a metric returns other scores than its `score_names`, or
            two metrics return scores of the same name.
    """
    for score_name, metric_names in duplicate_score_names(metrics):
        what = f"the score {score_name!r} is returned by {' and '.join(map(repr, metric_names))}"
        raise HarnessError(f"metrics.{metric_names[-1]}", what, "remove one of them, or score it separately")
    return tuple(
        score
        for name, metric in metrics.items()
        for score in _scores_of_metric(
            with_values(items, metric, (computed or {}).get(name)), name, metric, suite=suite, stage=stage
        )
    )


def _scores_of_metric(
    items: Sequence[Item], metric_name: str, metric: Metric, *, suite: str, stage: int
) -> Sequence[Score]:
    statistics = [metric.statistics(item) for item in items]
    for item_statistics in statistics:
        if set(item_statistics) != set(metric.score_names):
            returned, expected = ", ".join(sorted(item_statistics)), ", ".join(sorted(metric.score_names))
            what = f"returns {returned or 'no score'}, but its score_names are {expected}"
            raise HarnessError(f"metrics.{metric_name}", what, "fix Metric.statistics in the plugin")
    counts = {what: sum(map(is_counted, items)) for what, is_counted in _COUNTERS[metric.requires].items()}
    if metric.requires == "answer":
        counts["unparsed"] = sum(not metric.is_parsed(item) for item in items)
    scores, signature = [], metric.signature()
    diagnostics, unusable = dict(metric.diagnostics(items)), metric.unusable_reason(items)
    for name in metric.score_names:
        vectors = tuple(item_statistics[name] for item_statistics in statistics)
        result = estimate(vectors, score_function(metric, name), ratio=metric.is_ratio(name), groups=groups_of(items))
        scores.append(
            Score(
                stage=stage,
                suite=suite,
                metric=metric_name,
                name=name,
                value=result.value,
                n=result.n,
                stderr=result.stderr,
                low=result.low,
                high=result.high,
                higher_is_better=metric.higher_is_better,
                signature=signature,
                statistics=vectors,
                method=result.method,
                groups=result.groups,
                counts=counts,
                diagnostics=diagnostics,
                unusable=unusable,
            )
        )
    return scores

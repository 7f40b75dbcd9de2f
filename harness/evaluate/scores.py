"""Items → scores with their uncertainty. Needs no model: what was generated once can be scored again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from harness.contracts import Item, Metric, Score
from harness.errors import HarnessError
from harness.intervals import estimate
from harness.seeds import derive


def score_items(
    items: Sequence[Item], metrics: Mapping[str, Metric], *, suite: str, stage: int, seed: int
) -> tuple[Score, ...]:
    """Every score that the metrics draw from a suite's items, with standard error and 95 % interval by bootstrap.

    The items are drawn by (seed, suite, score): the same draws at every stage.
    Raises HarnessError when a metric gives other scores than it names.
    """
    return tuple(
        score
        for name, metric in metrics.items()
        for score in _scores(items, name, metric, suite=suite, stage=stage, seed=seed)
    )


def _scores(
    items: Sequence[Item], metric_name: str, metric: Metric, *, suite: str, stage: int, seed: int
) -> Sequence[Score]:
    statistics = [metric.statistics(item) for item in items]
    for given in statistics:
        if set(given) != set(metric.names):
            what = f"gives {', '.join(sorted(given)) or 'no score'} where it names {', '.join(sorted(metric.names))}"
            raise HarnessError(f"metrics.{metric_name}", what, "the plugin that defines the metric must mend this")
    found = []
    for name in metric.names:
        vectors = tuple(given[name] for given in statistics)
        bootstrap = derive(seed, "bootstrap", suite, name)
        result = estimate(vectors, partial(metric.aggregate, name), seed=bootstrap)
        found.append(
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
                signature=metric.signature(),
                statistics=vectors,
            )
        )
    return found

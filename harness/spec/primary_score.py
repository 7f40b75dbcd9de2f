"""The primary score of a suite: the one score by which the run's verdict judges the suite."""

from __future__ import annotations

from collections.abc import Mapping

from harness.interfaces.metric import Metric
from harness.types import Suite


def primary_score(suite: Suite, metrics: Mapping[str, Metric]) -> tuple[Metric, str] | None:
    """Return the metric and the name of the suite's primary score.

    It is the score that the suite's key `primary` names, else the first score whose direction is known, in the order
    of the suite's metrics.

    Args:
        suite: The suite.
        metrics: Metric name -> metric of this suite.

    Returns:
        Metric and score name; None if no score has a direction, or if none has the name in `primary`.
    """
    candidates = (
        (metric, name)
        for metric in metrics.values()
        for name in metric.score_names
        if metric.higher_is_better is not None and suite.primary in (None, name)
    )
    return next(candidates, None)

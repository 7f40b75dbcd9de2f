"""The primary score of each part of a suite: by language, customer, topic or another column of its rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from harness.interfaces.metric import Metric
from harness.report.paired_difference import ScoredEvaluation, estimate_over_items, score_difference
from harness.report.score_change import Verdict, verdict_of_difference
from harness.statistics.intervals import Estimate

MAX_SLICES = 50
"""Values of one column that are reported, those with the most items first."""


@dataclass(frozen=True)
class SliceChange:
    """The primary score of a suite over the items with one value of a column.

    Attributes:
        suite: Name of the suite.
        column: The column.
        value: Its value.
        score: Name of the primary score.
        higher_is_better: Its direction.
        n: Number of items.
        before: The score of the base model.
        after: The score after the last stage.
        difference: after − before, paired over the items.
        verdict: As for a whole suite. It is not corrected for the number of slices.
    """

    suite: str
    column: str
    value: str
    score: str
    higher_is_better: bool | None
    n: int
    before: Estimate
    after: Estimate
    difference: Estimate
    verdict: Verdict

    @property
    def needed(self) -> int | None:
        """None: the number of items for a verdict is given for whole suites only."""
        return None


def slice_changes(first: ScoredEvaluation, last: ScoredEvaluation, metric: Metric) -> Iterator[SliceChange]:
    """Yield the change of a score in every slice of a suite, column by column, the largest slice first.

    Args:
        first: The evaluation of the base model and its score.
        last: The evaluation after the last stage and its score, of the same items.
        metric: The metric of the score.
    """
    ids_by_slice: dict[tuple[str, str], list[str]] = {}
    for item in last[0].items:
        for column, value in item.slices:
            ids_by_slice.setdefault((column, value), []).append(item.id)
    for wanted in dict.fromkeys(column for column, _ in ids_by_slice):
        slices = [(value, ids) for (column, value), ids in ids_by_slice.items() if column == wanted]
        for value, ids in sorted(slices, key=lambda each: (-len(each[1]), each[0]))[:MAX_SLICES]:
            difference = score_difference(first, last, metric, ids).difference
            yield SliceChange(
                suite=first[0].suite,
                column=wanted,
                value=value,
                score=first[1].name,
                higher_is_better=first[1].higher_is_better,
                n=len(ids),
                before=estimate_over_items(first, ids, metric),
                after=estimate_over_items(last, ids, metric),
                difference=difference,
                verdict=verdict_of_difference(difference, first[1].higher_is_better),
            )

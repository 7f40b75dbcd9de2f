"""One score of two runs over the items that both were measured on: the difference, its interval, and a test of it.

Knows evaluations and metrics; neither where runs lie nor how a comparison is shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from harness.errors import HarnessError
from harness.interfaces.metric import Metric
from harness.report.run_report import Verdict, estimate_of_score, verdict_of_difference
from harness.statistics.intervals import Aggregate, Estimate, Statistics, estimate
from harness.statistics.significance import approximate_randomization, mcnemar, paired_bootstrap
from harness.types import Evaluation, Score

SignificanceTest = Literal["McNemar", "approximate randomisation", "paired bootstrap"]
ScoredEvaluation = tuple[Evaluation, Score]

SIGNIFICANCE_LEVEL = 0.05


@dataclass(frozen=True)
class ItemAlignment:
    """The ids of the items that two evaluations share, in the order of the first. dropped: why -> how many items."""

    ids: tuple[str, ...]
    dropped: Mapping[str, int]


@dataclass(frozen=True)
class PairedDifference:
    """A score of two runs over the same `n` items. difference: second − first, with a 95 % bootstrap interval.

    p: of "no difference", by `test`; NaN where it says nothing.
    """

    n: int
    first: Estimate
    second: Estimate
    difference: Estimate
    test: SignificanceTest
    p: float


def align_items(
    first: Evaluation, second: Evaluation, names: tuple[str, str] = ("the first", "the second")
) -> ItemAlignment:
    """The items that both have, by id, which is a hash of an item's content. names: of the two runs, for the reasons.

    An id that stands twice in one of the two is left out: which of its answers belong together is not known.
    """
    here, there = (Counter(item.id for item in one.items) for one in (first, second))
    shared = [one for one in here if one in there]
    kept = tuple(one for one in shared if here[one] == there[one] == 1)
    dropped = {
        f"only in {names[0]}": len(here) - len(shared),
        f"only in {names[1]}": len(there) - len(shared),
        "twice in one of the two": len(shared) - len(kept),
    }
    return ItemAlignment(kept, {why: count for why, count in dropped.items() if count})


def compare_scores(
    first: ScoredEvaluation,
    second: ScoredEvaluation,
    ids: Sequence[str],
    metric: Metric,
    *,
    seed: int,
    trials: int = 10_000,
) -> PairedDifference:
    """The difference of a score over the items of these ids, and a two-sided test that fits the score.

    - A score that is 0 or 1 for each item: McNemar's exact test.
    - Another mean over the items: the paired bootstrap.
    - A score of the corpus, which is no mean of its items (BLEU, chrF, TER, perplexity …): approximate randomisation,
      as sacrebleu's own paired test.

    trials: of the last two. Raises HarnessError when there is no item, or the two were not measured in one way.
    """
    score = second[1]
    if not ids:
        what = f"two runs share no item of {first[0].suite!r}"
        raise HarnessError("compare", what, "give them the same held-out rows")
    require_same_signature(first[0].suite, first[1], score)
    old, new = item_statistics(first, ids), item_statistics(second, ids)
    aggregate = partial(metric.aggregate, score.name)
    estimates = [
        _estimate_over_items(side, aggregate, some, seed, metric) for side, some in ((first, old), (second, new))
    ]
    is_mean = metric.is_ratio(score.name) and all(len(one) == 2 and one[1] == 1.0 for one in (*old, *new))
    difference, p = paired_bootstrap(old, new, aggregate, seed=seed, resamples=trials if is_mean else 2000)
    test: SignificanceTest = "paired bootstrap"
    if is_mean and all(one[0] in (0.0, 1.0) for one in (*old, *new)):
        test, p = "McNemar", mcnemar([one[0] == 1.0 for one in old], [one[0] == 1.0 for one in new])
    elif not is_mean:
        test, p = "approximate randomisation", approximate_randomization(old, new, aggregate, seed=seed, trials=trials)
    return PairedDifference(len(ids), estimates[0], estimates[1], difference, test, p)


def require_same_signature(suite: str, first: Score, second: Score) -> None:
    """Raise HarnessError when two scores of one name do not mean the same number."""
    if first.signature != second.signature:
        what = f"{first.name} of {suite!r} was measured in two ways: {first.signature}; {second.signature}"
        raise HarnessError("compare", what, "score one of them again with the other's options: harness score RUN")


def item_statistics(scored: ScoredEvaluation, ids: Sequence[str]) -> list[tuple[float, ...]]:
    """The statistics of the items of these ids, in their order."""
    evaluation, score = scored
    by_id = {item.id: vector for item, vector in zip(evaluation.items, score.statistics, strict=True)}
    return [by_id[one] for one in ids]


def corrected_verdict(difference: Estimate, higher_is_better: bool | None, p_holm: float) -> Verdict:
    """What a comparison comes to: `better` or `worse` only when its interval leaves 0 out, over at least 30 items, and
    p, adjusted for all comparisons, is below 5 %."""
    verdict = verdict_of_difference(difference, higher_is_better)
    return "no evidence" if verdict in ("better", "worse") and not p_holm < SIGNIFICANCE_LEVEL else verdict


def trials_for_comparisons(comparisons: int) -> int:
    """Trials that let a p-value survive Holm's correction for this many comparisons: the least is 1 / (trials + 1)."""
    return max(10_000, 100 * comparisons)


def _estimate_over_items(
    scored: ScoredEvaluation, aggregate: Aggregate, statistics: Statistics, seed: int, metric: Metric
) -> Estimate:
    """The score over these items; the run's own numbers where none was dropped."""
    score = scored[1]
    if len(statistics) == len(scored[0].items):
        return estimate_of_score(score)
    return estimate(statistics, aggregate, seed=seed, ratio=metric.is_ratio(score.name))

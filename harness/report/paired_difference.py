"""Compare one score of two runs over the items that both have: difference, interval and significance test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from harness.errors import HarnessError
from harness.interfaces.metric import Metric
from harness.report.score_change import Verdict, estimate_of_score, verdict_of_difference
from harness.statistics.intervals import Estimate, PairedTest, estimate, paired_test
from harness.statistics.item_statistics import groups_of, score_function
from harness.statistics.significance import approximate_randomization
from harness.types import Evaluation, Score

SignificanceTest = Literal["McNemar", "approximate randomisation", "paired t"]
ScoredEvaluation = tuple[Evaluation, Score]

SIGNIFICANCE_LEVEL = 0.05


@dataclass(frozen=True)
class ItemAlignment:
    """The items that two evaluations share.

    Attributes:
        ids: Their ids, in the order of the first evaluation.
        dropped: Reason -> number of items that are not shared.
    """

    ids: tuple[str, ...]
    dropped: Mapping[str, int]


@dataclass(frozen=True)
class PairedDifference:
    """A score of two runs over the same items.

    Attributes:
        n: Number of items.
        first: The score of the first run.
        second: The score of the second run.
        difference: second − first, with its 95 % interval.
        test: The significance test.
        p: Its p-value for "no difference"; NaN if the test is not possible.
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
    """Return the items that both evaluations have, by id, which is a hash of an item's content.

    An id that occurs twice in one evaluation is dropped, because its answers cannot be matched.

    Args:
        first: The first evaluation.
        second: The second evaluation.
        names: Names of the two runs, for the reasons in `dropped`.
    """
    first_counts, second_counts = (Counter(item.id for item in evaluation.items) for evaluation in (first, second))
    shared = [item_id for item_id in first_counts if item_id in second_counts]
    unique = tuple(item_id for item_id in shared if first_counts[item_id] == second_counts[item_id] == 1)
    dropped = {
        f"only in {names[0]}": len(first_counts) - len(shared),
        f"only in {names[1]}": len(second_counts) - len(shared),
        "twice in one of the two": len(shared) - len(unique),
    }
    return ItemAlignment(unique, {reason: count for reason, count in dropped.items() if count})


def compare_scores(
    first: ScoredEvaluation,
    second: ScoredEvaluation,
    ids: Sequence[str],
    metric: Metric,
    *,
    seed: int,
    trials: int = 10_000,
) -> PairedDifference:
    """Compare a score over the items of these ids, with the test that fits the score.

    - A fraction (0 or 1 for each item): McNemar's exact test.
    - A ratio (a mean, NLL per token, TER …) or a function of one (perplexity): the paired t-test of its interval.
    - Another score of the corpus (BLEU, chrF): approximate randomization, as in sacrebleu's paired test.

    Args:
        first: An evaluation of the first run and its score.
        second: An evaluation of the second run and its score.
        ids: Ids of the items.
        metric: The metric of the score.
        seed: Seed of the randomization.
        trials: Number of random trials.

    Raises:
        HarnessError: There is no item, or the two scores have different signatures.
    """
    score = second[1]
    if not ids:
        what = f"two runs have no common item in {first[0].suite!r}"
        raise HarnessError("compare", what, "use the same held-out rows in both")
    require_same_signature(first[0].suite, first[1], score)
    result = score_difference(first, second, metric, ids)
    test: SignificanceTest = result.test
    p = result.p
    if not metric.is_ratio(metric.tested_as(score.name)):
        test = "approximate randomisation"
        p = approximate_randomization(
            item_statistics(first, ids),
            item_statistics(second, ids),
            score_function(metric, score.name),
            seed=seed,
            trials=trials,
            groups=item_groups(first[0], ids),
        )
    return PairedDifference(
        n=len(ids),
        first=estimate_over_items(first, ids, metric),
        second=estimate_over_items(second, ids, metric),
        difference=result.difference,
        test=test,
        p=p,
    )


def score_difference(
    first: ScoredEvaluation, second: ScoredEvaluation, metric: Metric, ids: Sequence[str] | None = None
) -> PairedTest:
    """Return second − first over the same items, with its interval and the test that belongs to the interval.

    A score that is tested as another one (`Metric.tested_as`) has that one's p-value. Its interval includes 0 if that
    one's does: a perplexity does not differ where its NLL does not.

    Args:
        first: An evaluation and its score.
        second: Another evaluation of the same suite and its score.
        metric: The metric of the score.
        ids: Ids of the items; None: all, which are the same in both, in the same order.
    """
    groups = item_groups(first[0], ids)

    def test_as(scored: tuple[ScoredEvaluation, ScoredEvaluation], name: str) -> PairedTest:
        before, after = (item_statistics(each, ids) for each in scored)
        return paired_test(before, after, score_function(metric, name), ratio=metric.is_ratio(name), groups=groups)

    name = second[1].name
    result = test_as((first, second), name)
    tested = metric.tested_as(name)
    if tested == name:
        return result
    scores = [evaluation.matching_score(replace(second[1], name=tested)) for evaluation in (first[0], second[0])]
    if scores[0] is None or scores[1] is None:
        return result
    decisive = test_as(((first[0], scores[0]), (second[0], scores[1])), tested)
    estimate = result.difference
    if not decisive.difference.excludes_zero:
        estimate = replace(estimate, low=min(estimate.low, 0.0), high=max(estimate.high, 0.0))
    return PairedTest(estimate, decisive.p, decisive.test)


def named_score(evaluation: Evaluation | None, name: str) -> ScoredEvaluation | None:
    """Return an evaluation with its score of this name; None if it has none."""
    scores = evaluation.scores if evaluation is not None else ()
    score = next((score for score in scores if score.name == name), None)
    return None if evaluation is None or score is None else (evaluation, score)


def require_same_signature(suite: str, first: Score, second: Score) -> None:
    """Check that two scores of one name are comparable.

    Raises:
        HarnessError: Their signatures differ.
    """
    if first.signature != second.signature:
        what = f"{first.name} of {suite!r} has two signatures: {first.signature}; {second.signature}"
        raise HarnessError("compare", what, "score one of them again with the other's options: harness score RUN")


def item_statistics(scored: ScoredEvaluation, ids: Sequence[str] | None) -> Sequence[tuple[float, ...]]:
    """Return the statistics of the items of these ids, in their order; None: of all."""
    evaluation, score = scored
    if ids is None:
        return score.statistics
    by_id = {item.id: vector for item, vector in zip(evaluation.items, score.statistics, strict=True)}
    return [by_id[item_id] for item_id in ids]


def item_groups(evaluation: Evaluation, ids: Sequence[str] | None) -> list[str] | None:
    """Return the groups of the items of these ids, in their order (None: of all); None if the suite has none."""
    if ids is None:
        return groups_of(evaluation.items)
    by_id = {item.id: item for item in evaluation.items}
    return groups_of([by_id[item_id] for item_id in ids])


def corrected_verdict(difference: Estimate, higher_is_better: bool | None, p_holm: float) -> Verdict:
    """Return the verdict of a comparison among several.

    It is `better`, `worse` or `different` only if the interval excludes 0, there are at least 30 items, and the
    adjusted p-value is below 5 %.

    Args:
        difference: The difference with its interval.
        higher_is_better: Direction of the score; None if neither is better.
        p_holm: The p-value, adjusted for all comparisons.
    """
    verdict = verdict_of_difference(difference, higher_is_better)
    return "no evidence" if verdict in ("better", "worse", "different") and not p_holm < SIGNIFICANCE_LEVEL else verdict


def trials_for_comparisons(comparisons: int) -> int:
    """Return the number of trials with which a p-value can be significant after Holm's correction.

    The smallest possible p-value is 1 / (trials + 1).
    """
    return max(10_000, 100 * comparisons)


def estimate_over_items(scored: ScoredEvaluation, ids: Sequence[str], metric: Metric) -> Estimate:
    """Return the score over these items: the run's own estimate if no item was dropped."""
    evaluation, score = scored
    if len(ids) == len(evaluation.items):
        return estimate_of_score(score)
    return estimate(
        item_statistics(scored, ids),
        score_function(metric, score.name),
        ratio=metric.is_ratio(score.name),
        groups=item_groups(evaluation, ids),
    )

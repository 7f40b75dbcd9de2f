"""Simulated coverage of every kind of interval that a report prints, and error rates of its tests.

Every interval is nominally 95 %. Each case draws samples of a known population and counts how many intervals contain
the true value. The bounds of each case are stated with it. By the draws alone, a coverage of .95 has a standard error
of .006 over 1,500 samples and .015 over 200. Random numbers are seeded, so a test never fails by chance.

`PYTHONPATH=.:plugins:tests python tests/statistics/test_coverage.py` prints the table of docs/metrics.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
from support.paired import difference

from harness.evaluation.rescore import create_metric
from harness.registry import discover_plugins
from harness.statistics.intervals import Estimate, estimate, mean_over_suites, paired_test
from harness.statistics.item_statistics import ItemsAggregate
from harness.types import Item

SIZES = (30, 70, 500)
Random = np.random.Generator
Sample = tuple[np.ndarray, np.ndarray]
"""Statistics before and after, (items, statistics) each."""


def mean(total):
    return total[0] / total[1]


def perplexity(total):
    return math.exp(total[0] / total[1])


def as_means(values: np.ndarray) -> np.ndarray:
    return np.column_stack([values, np.ones(len(values))])


# -- populations ------------------------------------------------------------------------------------------------------


def fractions(random: Random, n: int, gained: float, lost: float) -> Sample:
    """Draw items that are 0 or 1, 60 % of the unchanged ones 1."""
    unchanged = 1 - gained - lost
    kind = random.choice(4, n, p=[gained, lost, unchanged * 0.6, unchanged * 0.4])
    return as_means(np.isin(kind, (1, 2)).astype(float)), as_means(np.isin(kind, (0, 2)).astype(float))


def bounded_means(random: Random, n: int, changed: float) -> Sample:
    """Draw values in [0, 1], such as ROUGE. A share of the items changes, by −0.1 on average."""
    before = random.beta(0.8, 0.8, n)
    after = np.where(random.random(n) < changed, before * random.beta(4, 1, n), before)
    return as_means(before), as_means(after)


def likelihoods(random: Random, n: int) -> Sample:
    """Draw nats and tokens of responses of very different lengths: 2 nats per token before, 2.1 after."""
    tokens = np.ceil(random.lognormal(3, 0.9, n))
    difficulty = random.gamma(4, 0.5, n)
    before = tokens * difficulty * np.exp(random.normal(0, 0.2, n) - 0.02)
    change = 0.1 + 0.3 * random.standard_normal(n) * np.sqrt(difficulty)
    return np.column_stack([before, tokens]), np.column_stack([before + tokens * change, tokens])


class Corpus:
    """A finite population of answers before and after, sampled with replacement."""

    WORDS = np.array([f"{a}{b}" for a in "bcdfghklmnprst" for b in ("an", "er", "in", "old", "ust", "ick", "ade")])

    def __init__(self, metric: str, quality: float) -> None:
        random = np.random.default_rng(1)
        self.metric = create_metric(discover_plugins(), metric, {"lang": "en"} if metric == "bleu" else {})
        items = [self._item_statistics(random, quality) for _ in range(2000)]
        self.before, self.after = (np.array([item[side] for item in items]) for side in (0, 1))

    def aggregate(self, total):
        return self.metric.aggregate(self.metric.score_names[0], total)

    def draw(self, random: Random, n: int) -> Sample:
        indices = random.integers(0, len(self.before), n)
        return self.before[indices], self.after[indices]

    @property
    def truth(self) -> float:
        return self.aggregate(self.after.sum(axis=0).tolist()) - self.aggregate(self.before.sum(axis=0).tolist())

    def _item_statistics(self, random: Random, quality: float) -> list[tuple[float, ...]]:
        reference = random.choice(self.WORDS, int(random.integers(4, 25)))
        difficulty = random.beta(2 * quality, 2 * (1 - quality))
        statistics = []
        for skill in (0.0, 0.06):
            right = random.random(len(reference)) < difficulty + skill
            answer = np.where(right, reference, random.choice(self.WORDS, len(reference)))
            answer = answer[: max(1, round(len(answer) * random.uniform(0.7, 1.2)))]
            item = Item("", "", " ".join(reference), " ".join(answer))
            statistics.append(self.metric.statistics(item)[self.metric.score_names[0]])
        return statistics


@cache
def corpus(metric: str, quality: float) -> Corpus:
    return Corpus(metric, quality)


def grouped(random: Random, n: int, lost: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw n groups of 1 to 8 items; whether an item is lost depends on its group. Returns groups, before, after."""
    groups = np.repeat(np.arange(n), random.integers(1, 9, n))
    probability = np.repeat(random.beta(0.5, 0.5 * (1 - lost) / lost, n), np.bincount(groups))
    before = np.ones(len(groups))
    return groups, as_means(before), as_means((random.random(len(groups)) >= probability).astype(float))


# -- the cases --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One kind of interval over one population.

    Attributes:
        interval: Draws a sample of n items and returns its interval.
        truth: The true value; a function, because some take a second to compute.
        bounds: The lowest and the highest coverage allowed.
        samples: Number of samples for 30 and 70 items; a third of it for 500.
    """

    interval: Callable[[Random, int], Estimate]
    truth: Callable[[], float]
    bounds: tuple[float, float]
    samples: int = 1500

    def coverage(self, n: int) -> tuple[float, int]:
        """Return the share of samples whose interval contains the truth, and the number of samples."""
        random, truth = np.random.default_rng(n), self.truth()
        samples = self.samples if n < 500 else self.samples // 3
        results = (self.interval(random, n) for _ in range(samples))
        return sum(result.low <= truth <= result.high for result in results) / samples, samples


def corpus_change(metric: str, quality: float) -> Case:
    def interval(random: Random, n: int) -> Estimate:
        population = corpus(metric, quality)
        return difference(*population.draw(random, n), population.aggregate)

    return Case(interval, lambda: corpus(metric, quality).truth, (0.92, 0.98), samples=600)


def fraction_change(gained: float, lost: float, bounds: tuple[float, float]) -> Case:
    def interval(random: Random, n: int) -> Estimate:
        return difference(*fractions(random, n, gained, lost), mean, ratio=True)

    return Case(interval, lambda: gained - lost, bounds)


def mean_change(changed: float, bounds: tuple[float, float]) -> Case:
    def interval(random: Random, n: int) -> Estimate:
        return difference(*bounded_means(random, n, changed), mean, ratio=True)

    return Case(interval, lambda: -0.1 * changed, bounds)


def summary_of_fractions(lost: float) -> Case:
    """A summary of a matrix, such as backward transfer: the mean change of three suites."""

    def interval(random: Random, n: int) -> Estimate:
        changes = [difference(*fractions(random, n, 0.01, lost), mean, ratio=True) for _ in range(3)]
        return mean_over_suites(changes)

    return Case(interval, lambda: 0.01 - lost, (0.93, 1.0), samples=600)


def grouped_change(lost: float, bounds: tuple[float, float]) -> Case:
    def interval(random: Random, n: int) -> Estimate:
        groups, before, after = grouped(random, n, lost)
        return difference(before, after, mean, ratio=True, groups=groups.tolist())

    return Case(interval, lambda: -lost, bounds)


def mixed_summary(random: Random, n: int) -> Estimate:
    """The mean change of the NLL of three suites of different sizes."""
    return mean_over_suites([difference(*likelihoods(random, size), mean, ratio=True) for size in (n, 2 * n, n)])


MEDIAN = ItemsAggregate(lambda rows: float(np.median(rows[:, 0])))


def shifted_values(random: Random, n: int) -> Sample:
    """Draw skewed values whose median rises from 1 to 1.3."""
    before = random.lognormal(0, 0.8, n)
    return as_means(before), as_means(before * 1.3 * np.exp(random.normal(0, 0.3, n)))


# Intervals of fractions are wide where few items change: they may cover up to 1.
CASES = {
    "fraction, 2 % lost": fraction_change(0.0, 0.02, (0.94, 1.0)),
    "fraction, 5 % lost, 1 % gained": fraction_change(0.01, 0.05, (0.93, 1.0)),
    "fraction, 10 % lost, 15 % gained": fraction_change(0.15, 0.10, (0.93, 0.99)),
    "mean in [0, 1], every item changes": mean_change(1.0, (0.90, 0.97)),
    "mean in [0, 1], 5 % of the items change": mean_change(0.05, (0.90, 1.0)),
    "NLL per token": Case(
        lambda random, n: difference(*likelihoods(random, n), mean, ratio=True), lambda: 0.1, (0.93, 0.98)
    ),
    "perplexity": Case(
        lambda random, n: difference(*likelihoods(random, n), perplexity),
        lambda: math.exp(2.1) - math.exp(2.0),
        (0.93, 0.98),
    ),
    "BLEU, about 35": corpus_change("bleu", 0.65),
    "BLEU, about 10": corpus_change("bleu", 0.4),
    "chrF": corpus_change("chrf", 0.65),
    "fraction over groups of 1 to 8 items, 10 % lost": grouped_change(0.10, (0.92, 1.0)),
    "mean over three suites of fractions, 4 % lost": summary_of_fractions(0.05),
    "mean over three suites of NLL": Case(mixed_summary, lambda: 0.1, (0.93, 0.985), samples=600),
    "value of a fraction, 95 %": Case(
        lambda random, n: estimate(as_means((random.random(n) < 0.95).astype(float)), mean, ratio=True),
        lambda: 0.95,
        (0.92, 0.99),
    ),
    "value of an NLL": Case(
        lambda random, n: estimate(likelihoods(random, n)[0], mean, ratio=True), lambda: 2.0, (0.90, 0.97)
    ),
    "value of a perplexity": Case(
        lambda random, n: estimate(likelihoods(random, n)[0], perplexity), lambda: math.exp(2.0), (0.89, 0.97)
    ),
}
MEDIAN_CASE = Case(
    lambda random, n: difference(*shifted_values(random, n), MEDIAN), lambda: 0.3, (0.83, 0.99), samples=150
)
"""A score that is not a function of sums. It has few samples: a coverage of .9 has a standard error of .024."""


@pytest.mark.slow
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("name", CASES)
def test_interval_covers_the_truth_in_about_95_percent(name, n):
    assert_covers(CASES[name], n)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_interval_of_a_median_covers_the_truth_less_often_with_few_items():
    assert_covers(MEDIAN_CASE, 30)


def assert_covers(case, n):
    """Assert that the coverage of intervals over n items is within the bounds of the case."""
    covered, _ = case.coverage(n)
    lowest, highest = case.bounds
    assert lowest <= covered <= highest


# -- tests ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("n", [30, 70])
@pytest.mark.parametrize("level", [0.05, 0.01])
def test_p_values_reject_a_true_hypothesis_at_their_level(n, level):
    """Rejections of 4,000 samples without a difference. Tolerance: 3.3 standard errors of the level above it."""
    random, samples = np.random.default_rng(n), 4000
    allowed = level + 3.3 * math.sqrt(level * (1 - level) / samples)

    def share_rejected(draw, ratio):
        return sum(paired_test(*draw(), mean, ratio=ratio).p < level for _ in range(samples)) / samples

    def unchanged_likelihoods():
        before, after = likelihoods(random, n)
        after[:, 0] -= 0.1 * after[:, 1]
        return before, after

    assert share_rejected(lambda: fractions(random, n, 0.1, 0.1), True) <= allowed
    assert share_rejected(unchanged_likelihoods, True) <= allowed


def test_gate_against_a_loss_of_one_point_rarely_passes_a_run_that_lost_five():
    """The bound of the interval at n = 30: at most 2.5 % of the runs with a true loss of 5 points lose at most 1."""
    random, samples = np.random.default_rng(0), 2000
    changes = (difference(*fractions(random, 30, 0.0, 0.05), mean, ratio=True) for _ in range(samples))
    assert sum(change.low >= -0.01 for change in changes) / samples <= 0.025


if __name__ == "__main__":  # the table in docs/metrics.md
    for name, case in {**CASES, "median (bootstrap)": MEDIAN_CASE}.items():
        shares = [f"{case.coverage(n)[0]:.3f}" for n in SIZES]
        print(f"| {name} | {' | '.join(shares)} |")

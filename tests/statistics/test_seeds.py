"""Coverage of intervals over items and seeds, by simulation; every bound holds for the seed of the simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from harness.statistics.seeds import Linearized, combine, linearize, pool_over_seeds, widen

TRIALS = 400
"""The standard error of a simulated coverage of 95 % is 1.1 points."""


def mean(total):
    return total[0] / total[1]


def linearized(values: np.ndarray, first_item: int = 0) -> Linearized:
    errors = (values - values.mean()) / len(values)
    items = range(first_item, first_item + len(values))
    return Linearized(float(values.mean()), dict(zip(items, errors.tolist(), strict=True)), len(values))


def simulate(seeds: int, n: int, spreads: tuple[float, float, float], *, shared: float = 1.0) -> tuple[float, float]:
    """Return the coverage of the interval and the rate of p < 0.05 where the true mean is 0.

    Args:
        seeds: Number of seeds.
        n: Items of each seed.
        spreads: Standard deviations between seeds, between items, and of an item within a seed.
        shared: Fraction of the items that all seeds share.
    """
    generator = np.random.default_rng([seeds, n, *(round(100 * spread) for spread in spreads), round(10 * shared)])
    covered = rejected = 0
    for _ in range(TRIALS):
        common, count = generator.standard_normal(n), round(shared * n)
        runs = []
        for seed in range(seeds):
            own = generator.standard_normal(n)
            item_effects = np.where(np.arange(n) < count, common, own)
            noise = generator.standard_normal(n)
            values = spreads[0] * generator.standard_normal() + spreads[1] * item_effects + spreads[2] * noise
            run = linearized(values)
            renamed = {item if item < count else (seed, item): error for item, error in run.errors.items()}
            runs.append(Linearized(run.value, renamed, n))
        pooled = pool_over_seeds(runs)
        covered += pooled.estimate.low <= 0 <= pooled.estimate.high
        rejected += pooled.p < 0.05
    return covered / TRIALS, rejected / TRIALS


@pytest.mark.slow
@pytest.mark.parametrize("n", [30, 70, 500])
@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("spreads", [(0.0, 1.0, 0.5), (0.2, 1.0, 1.0), (1.0, 1.0, 1.0), (0.0, 0.2, 1.0)])
def test_interval_over_seeds_and_items_covers_the_truth(seeds, n, spreads) -> None:
    coverage, rejections = simulate(seeds, n, spreads)
    assert 0.93 <= coverage <= 1.0
    assert rejections == pytest.approx(1 - coverage, abs=1e-9), "interval and p-value agree"


@pytest.mark.slow
@pytest.mark.parametrize("shared", [0.0, 0.3])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_interval_covers_the_truth_if_seeds_hold_out_other_items(seeds, shared) -> None:
    for spreads in ((0.2, 1.0, 1.0), (0.0, 1.0, 0.5)):
        assert 0.93 <= simulate(seeds, 70, spreads, shared=shared)[0] <= 1.0


def test_interval_over_items_alone_misses_the_truth_of_other_seeds() -> None:
    """It is what a comparison of one seed gives: with seeds that differ it is far too narrow."""
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(TRIALS):
        items = generator.standard_normal(70)
        runs = [linearized(generator.standard_normal() + items) for _ in range(3)]
        spread = pool_over_seeds(runs).spread
        assert spread is not None
        covered += spread.over_items.low <= 0 <= spread.over_items.high
    assert covered / TRIALS < 0.6


@pytest.mark.parametrize(("changed", "agreement"), [(0.2, 1.0), (0.06, 1.0), (0.2, 0.5)])
def test_differences_of_proportions_cover_the_truth(changed, agreement) -> None:
    """0/1 scores of three seeds, as many gained as lost; some items change in the same way with all seeds."""
    generator = np.random.default_rng([round(100 * changed), round(10 * agreement)])
    covered = 0
    for _ in range(TRIALS):
        before = generator.random(30) < 0.5
        common = generator.random(30)
        gaps = []
        for _ in range(3):
            draws = np.where(generator.random(30) < agreement, common, generator.random(30))
            after = np.where(draws < changed, ~before, before)
            statistics = [[(float(value), 1.0) for value in each] for each in (before, after)]
            first, second = (linearize(each, mean, range(30)) for each in statistics)
            gaps.append(combine([(-1.0, first), (1.0, second)]))
        estimate = pool_over_seeds(gaps).estimate
        covered += estimate.low <= 0 <= estimate.high
    assert covered / TRIALS >= 0.93


def test_unchanged_proportions_have_an_interval() -> None:
    before = linearize([(float(i % 2), 1.0) for i in range(30)], mean, range(30))
    unchanged = pool_over_seeds([combine([(-1.0, before), (1.0, before)])] * 3).estimate
    assert unchanged.value == 0
    assert unchanged.high == pytest.approx(0.0886, abs=0.005), "about as Bonett and Price, ± 0.0866"
    perfect = linearize([(1.0, 1.0)] * 30, mean, range(30))
    assert pool_over_seeds([perfect] * 2).estimate.low < 0.97


def test_linearized_mean_is_the_t_interval_and_differences_are_paired() -> None:
    from scipy import stats

    generator = np.random.default_rng(1)
    first, second = generator.standard_normal((2, 40))
    one, two = (linearize([(v, 1.0) for v in values], mean, range(40)) for values in (first, second))
    gap = pool_over_seeds([combine([(1.0, two), (-1.0, one)])])
    expected = stats.ttest_rel(second, first)
    interval = expected.confidence_interval(0.95)
    assert (gap.estimate.low, gap.estimate.high) == pytest.approx((interval.low, interval.high))
    assert gap.p == pytest.approx(expected.pvalue)
    assert gap.spread is None


def test_linearized_ratio_agrees_with_the_delta_method() -> None:
    generator = np.random.default_rng(2)
    tokens = generator.integers(5, 50, 200).astype(float)
    nll = tokens * (1 + 0.2 * generator.standard_normal(200))
    ratio = linearize(list(zip(nll, tokens, strict=True)), mean, range(200))
    residual = nll - nll.sum() / tokens.sum() * tokens
    delta = residual.std(ddof=1) / tokens.mean() / math.sqrt(200)
    assert pool_over_seeds([ratio]).estimate.stderr == pytest.approx(delta, rel=0.02)


def test_seeds_of_identical_runs_add_nothing() -> None:
    run = linearized(np.random.default_rng(3).standard_normal(50))
    one, three = pool_over_seeds([run]).estimate, pool_over_seeds([run] * 3)
    assert (three.estimate.low, three.estimate.high) == pytest.approx((one.low, one.high))
    assert three.spread is not None
    assert three.spread.sd == 0


def test_widened_intervals_hold_for_several_comparisons_together() -> None:
    from scipy import stats

    run = linearized(np.random.default_rng(4).standard_normal(40))
    one = pool_over_seeds([run]).estimate
    seven = widen(one, 7)
    assert seven.high - seven.value == pytest.approx(one.stderr * stats.t.ppf(1 - 0.025 / 7, 39))
    pooled = pool_over_seeds([run], comparisons=7).estimate
    assert (pooled.low, pooled.high) == pytest.approx((seven.low, seven.high))
    assert widen(one, 1) == one


def test_one_item_for_each_seed_has_values_but_no_interval() -> None:
    runs = [linearize([(value, 1.0)], mean, [item]) for item, value in enumerate((1.0, 3.0))]
    pooled = pool_over_seeds(runs)
    assert (pooled.estimate.value, math.isnan(pooled.estimate.low), math.isnan(pooled.p)) == (2.0, True, True)
    assert pooled.spread is not None
    assert pooled.spread.values == (1.0, 3.0)

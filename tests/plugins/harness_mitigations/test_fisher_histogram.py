"""The histogram of importances against sorting them."""

from __future__ import annotations

import pytest
import torch
from harness_mitigations import fisher


@pytest.fixture
def heavy_tailed():
    """Return values over thirty orders of magnitude, and zeros."""
    torch.manual_seed(0)
    return torch.cat([torch.randn(50_000).mul(3).exp(), torch.zeros(5_000), torch.tensor([1e-30, 1e20])])


@pytest.mark.parametrize("q", [0.01, 0.3, 0.5, 0.9, 0.999])
def test_quantiles_equal_those_of_the_sorted_values(q, heavy_tailed):
    counts = fisher.importance_histogram([heavy_tailed[:20_000].view(100, 200), heavy_tailed[20_000:]])
    assert int(counts.sum()) == len(heavy_tailed)
    expected = heavy_tailed.sort().values[max(0, -(-int(q * 1e6) * len(heavy_tailed) // 1_000_000) - 1)]
    assert fisher.histogram_quantile(counts, q) == pytest.approx(float(expected), rel=0.004)


def test_stats_equal_those_of_the_sorted_values(heavy_tailed):
    heavy_tailed = heavy_tailed[:-1]  # without the one that dominates the sum
    stats = fisher.importance_stats(fisher.importance_histogram([heavy_tailed]))
    ordered, mean = heavy_tailed.sort(descending=True).values.double(), float(heavy_tailed.double().mean())
    assert stats["fisher_median"] == pytest.approx(float(heavy_tailed.median()) / mean, rel=0.01)
    assert stats["fisher_rms"] == pytest.approx(float(ordered.square().mean()) ** 0.5 / mean, rel=0.01)
    assert stats["fisher_largest"] == pytest.approx(float(ordered[0]) / mean, rel=0.01)
    top = -(-len(heavy_tailed) // 1000)
    top_mass = float(ordered[:top].sum() / ordered.sum())
    assert 0.1 < top_mass < 0.9
    assert stats["fisher_mass_of_top_0.1_percent"] == pytest.approx(top_mass, rel=0.01)


def test_equal_values_have_equal_shares_and_zeros_have_no_stats():
    assert fisher.importance_stats(fisher.importance_histogram([torch.full((5000,), 3.0)])) == pytest.approx(
        {
            "fisher_rms": 1,
            "fisher_median": 1,
            "fisher_p99.9": 1,
            "fisher_largest": 1,
            "fisher_mass_of_top_0.1_percent": 0.001,
        },
        rel=1e-6,
    )
    assert fisher.importance_stats(fisher.importance_histogram([torch.zeros(10)])) == {}
    assert fisher.histogram_quantile(fisher.importance_histogram([torch.zeros(10)]), 0.5) == 0


@pytest.mark.parametrize("non_finite", [float("inf"), float("nan")])
def test_infinity_and_nan_are_detected(non_finite):
    good = torch.tensor([1e38, 0.0, 1e-45])
    assert fisher.histogram_is_finite(fisher.importance_histogram([good]))
    assert not fisher.histogram_is_finite(fisher.importance_histogram([good, torch.tensor([non_finite])]))

"""The histogram of importances against sorting them."""

from __future__ import annotations

import pytest
import torch
from harness_mitigations import fisher


@pytest.fixture
def heavy():
    """Numbers over thirty orders of magnitude, and zeros."""
    torch.manual_seed(0)
    return torch.cat([torch.randn(50_000).mul(3).exp(), torch.zeros(5_000), torch.tensor([1e-30, 1e20])])


@pytest.mark.parametrize("q", [0.01, 0.3, 0.5, 0.9, 0.999])
def test_quantiles_equal_those_of_the_sorted_values(q, heavy):
    counts = fisher.importance_histogram([heavy[:20_000].view(100, 200), heavy[20_000:]])
    assert int(counts.sum()) == len(heavy)
    wanted = heavy.sort().values[max(0, -(-int(q * 1e6) * len(heavy) // 1_000_000) - 1)]
    assert fisher.histogram_quantile(counts, q) == pytest.approx(float(wanted), rel=0.004)


def test_stats_equal_those_of_the_sorted_values(heavy):
    heavy = heavy[:-1]  # without the one that holds everything
    found = fisher.importance_stats(fisher.importance_histogram([heavy]))
    ordered, mean = heavy.sort(descending=True).values.double(), float(heavy.double().mean())
    assert found["fisher_median"] == pytest.approx(float(heavy.median()) / mean, rel=0.01)
    assert found["fisher_largest"] == pytest.approx(float(ordered[0]) / mean, rel=0.01)
    top = -(-len(heavy) // 1000)
    held = float(ordered[:top].sum() / ordered.sum())
    assert 0.1 < held < 0.9
    assert found["fisher_mass_of_top_0.1_percent"] == pytest.approx(held, rel=0.01)


def test_equal_values_have_equal_shares_and_zeros_have_no_stats():
    assert fisher.importance_stats(fisher.importance_histogram([torch.full((5000,), 3.0)])) == pytest.approx(
        {
            "fisher_median": 1,
            "fisher_p99.9": 1,
            "fisher_largest": 1,
            "fisher_mass_of_top_0.1_percent": 0.001,
        },
        rel=1e-6,
    )
    assert fisher.importance_stats(fisher.importance_histogram([torch.zeros(10)])) == {}
    assert fisher.histogram_quantile(fisher.importance_histogram([torch.zeros(10)]), 0.5) == 0


@pytest.mark.parametrize("wrong", [float("inf"), float("nan")])
def test_infinity_and_nan_are_detected(wrong):
    good = torch.tensor([1e38, 0.0, 1e-45])
    assert fisher.histogram_is_finite(fisher.importance_histogram([good]))
    assert not fisher.histogram_is_finite(fisher.importance_histogram([good, torch.tensor([wrong])]))

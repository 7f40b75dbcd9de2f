"""Perplexity from summed likelihoods."""

from __future__ import annotations

import math

import pytest

from harness import HarnessError, Item


def test_perplexity_is_that_of_the_corpus_not_a_mean_of_items(metric):
    instance = metric("response_perplexity")
    items = [Item("a", "", "r", nll=3 * math.log(4), tokens=3), Item("b", "", "r", nll=math.log(64), tokens=1)]
    sums = [sum(values) for values in zip(*(instance.statistics(item)["response_nll"] for item in items), strict=True)]
    assert instance.aggregate("response_nll", sums) == pytest.approx(math.log(4**3 * 64) / 4)
    assert instance.aggregate("response_perplexity", sums) == pytest.approx((4**3 * 64) ** 0.25)
    assert not instance.higher_is_better


def test_no_tokens_give_nan_and_overflow_gives_infinity(metric):
    instance = metric("response_perplexity")
    assert math.isnan(instance.aggregate("response_perplexity", (0.0, 0.0)))
    assert instance.aggregate("response_perplexity", (1e4, 1.0)) == math.inf
    with pytest.raises(HarnessError, match="no likelihood"):
        instance.statistics(Item("a", "", "r", answer="text"))
